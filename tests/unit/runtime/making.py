"""Makes machines that answer as data says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from nexo_lsp.runtime.environment import Battery
from nexo_lsp.runtime.readings.readings import Readings
from nexo_lsp.runtime.readings.windows import FEATURES, WindowsReadings

GIB = 2**30


def fail(*_: object) -> None:
    """What an unknown reading does."""
    raise NotImplementedError("not on this platform")


def names_in(files: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """The folders that `files` lie in, with the names in each."""
    folders: dict[str, set[str]] = {}
    for path in files:
        parts = path.split("/")
        for end in range(1, len(parts)):
            folders.setdefault("/".join(parts[:end]) or "/", set()).add(parts[end])
    return {folder: tuple(sorted(names)) for folder, names in folders.items()}


def linux(
    machine: str = "x86_64",
    *,
    system: str = "linux",
    cores: int = 4,
    smt: int = 1,
    memory: tuple[int, int] = (16 * GIB, 8 * GIB),
    usable: Iterable[int] | None = None,
    flags: str = "",
    environ: Mapping[str, str] | None = None,
    files: Mapping[str, str] | None = None,
    marks: Iterable[str] = (),
) -> Readings:
    """A Linux with so many cores of `smt` threads each; the threads of a core follow each other."""
    logical = cores * smt
    contents: dict[str, str] = {"/proc/sys/kernel/osrelease": "6.8.0-45-generic\n"}
    for cpu in range(logical):
        first = cpu // smt * smt
        siblings = f"{first}-{first + smt - 1}" if smt > 1 else str(cpu)
        contents[f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"] = siblings + "\n"
    key = "flags\t\t" if machine == "x86_64" else "Features\t"
    if flags:
        contents["/proc/cpuinfo"] = f"processor\t: 0\n{key}: {flags}\n\nprocessor\t: 1\n{key}: other\n"
    contents |= files or {}
    folders = names_in(contents)
    here = frozenset(usable) if usable is not None else frozenset(range(logical))
    return Readings(
        system=system,
        machine=lambda: machine,
        python=lambda: f"linux-{machine}",
        environ=environ or {},
        file=contents.get,
        names=lambda path: folders.get(path, ()),
        exists=frozenset(marks).__contains__,
        usable=lambda: here,
        cpu_count=lambda wants_logical: logical if wants_logical else cores,
        memory=lambda: memory,
        battery=lambda: Battery(1, False),  # Never asked on Linux: it may be a mouse's.
        sysctl=lambda _name: None,
        thermal_pressure=lambda: None,
        windows=WindowsReadings(lambda: None, lambda: (), lambda _number: False),
    )


def mac(
    machine: str,
    sysctls: Mapping[str, str],
    *,
    system: str = "darwin",
    python: str = "macosx-11.0-universal2",
    logical: int = 8,
    memory: tuple[int, int] = (16 * GIB, 6 * GIB),
    battery: Battery | None = None,
    pressure: int = 0,
) -> Readings:
    return Readings(
        system=system,
        machine=lambda: machine,
        python=lambda: python,
        environ={},
        file=lambda _path: None,
        names=lambda _path: (),
        exists=lambda _path: False,
        usable=lambda: None,
        cpu_count=lambda _wants_logical: logical,
        memory=lambda: memory,
        battery=lambda: battery,
        sysctl=sysctls.get,
        thermal_pressure=lambda: pressure,
        windows=WindowsReadings(lambda: None, lambda: (), lambda _number: False),
    )


def windows(
    machine: str = "AMD64",
    *,
    native: str | None = "x86_64",
    python: str = "win-amd64",
    classes: tuple[int, ...] = (),
    features: Iterable[str] = (),
    logical: int = 16,
    memory: tuple[int, int] = (16 * GIB, 7 * GIB),
    battery: Battery | None = None,
) -> Readings:
    numbers = {FEATURES[name] for name in features}
    return Readings(
        system="win32",
        machine=lambda: machine,
        python=lambda: python,
        environ={},
        file=lambda _path: None,
        names=lambda _path: (),
        exists=lambda _path: False,
        usable=lambda: None,
        cpu_count=lambda wants_logical: logical if wants_logical else logical // 2,
        memory=lambda: memory,
        battery=lambda: battery,
        sysctl=lambda _name: None,
        thermal_pressure=lambda: None,
        windows=WindowsReadings(lambda: native, lambda: classes, numbers.__contains__),
    )


def bare(
    system: str, machine: str = "", environ: Mapping[str, str] | None = None, logical: int | None = 1
) -> Readings:
    """A platform where psutil, files and libraries of the system are missing."""
    return Readings(
        system=system,
        machine=lambda: machine,
        python=lambda: f"{system}-{machine}",
        environ=environ or {},
        file=fail,  # type: ignore[arg-type]
        names=fail,  # type: ignore[arg-type]
        exists=fail,  # type: ignore[arg-type]
        usable=fail,  # type: ignore[arg-type]
        cpu_count=lambda wants_logical: logical if wants_logical else fail(),
        memory=fail,  # type: ignore[arg-type]
        battery=fail,  # type: ignore[arg-type]
        sysctl=fail,  # type: ignore[arg-type]
        thermal_pressure=fail,  # type: ignore[arg-type]
        windows=WindowsReadings(fail, fail, fail),  # type: ignore[arg-type]
    )


APPLE = {
    "hw.optional.arm.FEAT_DotProd": "1",
    "hw.optional.arm.FEAT_FP16": "1",
    "hw.optional.arm.FEAT_I8MM": "0",
}


def apple(performance: int, efficiency: int, **more: str) -> dict[str, str]:
    """What an Apple chip with two kinds of cores says."""
    return APPLE | {
        "hw.physicalcpu": str(performance + efficiency),
        "hw.nperflevels": "2",
        "hw.perflevel0.physicalcpu": str(performance),
        "hw.perflevel0.name": "Performance",
        "hw.perflevel1.physicalcpu": str(efficiency),
        "hw.perflevel1.name": "Efficiency",
        "sysctl.proc_translated": "0",
        **{name.replace("__", "."): value for name, value in more.items()},
    }


def per_cpu(file: str, values: Iterable[int]) -> dict[str, str]:
    return {f"/sys/devices/system/cpu/cpu{cpu}/{file}": f"{value}\n" for cpu, value in enumerate(values)}


def supply(name: str, **values: object) -> dict[str, str]:
    return {f"/sys/class/power_supply/{name}/{key}": f"{value}\n" for key, value in values.items()}


def cgroup(limit: int, used: int, cpus: str = "max 100000") -> dict[str, str]:
    root = "/sys/fs/cgroup"
    return {
        "/proc/self/cgroup": "0::/\n",
        f"{root}/memory.max": str(limit),
        f"{root}/memory.current": str(used),
        f"{root}/memory.stat": "inactive_file 0\n",
        f"{root}/cpu.max": cpus,
    }

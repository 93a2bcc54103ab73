"""How many cores there are for this process, how many of them are quick ones, and what they can do.

Sources: the kernel's `Documentation/ABI/testing/sysfs-devices-system-cpu` (topology, `cpu_capacity`), the
`cpu_core` and `cpu_atom` devices of its perf driver for Intel's hybrids, `cgroup-v2.rst` (`cpu.max`); Apple's
page "Determining system capabilities" (`hw.perflevelN`, `hw.optional.arm`); Microsoft's on
`PROCESSOR_RELATIONSHIP` and `IsProcessorFeaturePresent`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from nexo_lsp.engines.llama.control_groups import cpu_quota
from nexo_lsp.runtime.readings.readings import Readings, known
from nexo_lsp.runtime.readings.windows import FEATURES

_CPU = "/sys/devices/system/cpu"
# In a machine with several kinds of cores those below this share of the best count as efficiency cores. By
# capacity (Cortex-A55 and A510 have a quarter to a third of the largest, A7x half or more) and by highest
# frequency (0.6 to 0.65 against 0.8 and more), in the device trees of phones of 2019 to 2024.
_LOW_CAPACITY, _LOW_FREQUENCY = 0.5, 0.75

# What is kept of /proc/cpuinfo, by the kernel's words; some have another name here, since the same thing is
# called otherwise elsewhere.
_LINUX_NAMES = {
    "pni": "sse3", "asimd": "neon", "neon": "neon", "asimddp": "dotprod", "asimdhp": "fp16", "fphp": "fp16",
    "i8mm": "i8mm", "bf16": "bf16", "sve": "sve", "sve2": "sve2", "sme": "sme", "avx512_vnni": "avx512_vnni",
} | {
    name: name
    for name in (
        "sse2", "ssse3", "sse4_1", "sse4_2", "avx", "f16c", "fma", "avx2", "bmi2", "avx512f", "avx512bw",
        "avx512vl", "avx512_bf16", "avx_vnni", "amx_tile", "amx_int8", "amx_bf16",
    )
}  # fmt: skip
_DARWIN_NAMES = {
    "SSE2": "sse2", "SSE3": "sse3", "SSSE3": "ssse3", "SSE4.1": "sse4_1", "SSE4.2": "sse4_2", "AVX1.0": "avx",
    "F16C": "f16c", "FMA": "fma", "AVX2": "avx2", "BMI2": "bmi2", "AVX512F": "avx512f",
    "AVX512BW": "avx512bw", "AVX512VL": "avx512vl",
}  # fmt: skip
_APPLE_OPTIONS = {
    "FEAT_DotProd": "dotprod",
    "FEAT_FP16": "fp16",
    "FEAT_I8MM": "i8mm",
    "FEAT_BF16": "bf16",
    "FEAT_SME": "sme",
}


@dataclass(frozen=True, slots=True)
class Cores:
    """Physical cores that this process may use."""

    physical: int
    performance: int


def cores_of(readings: Readings) -> Cores:
    """The cores, with affinity and the container's share of time taken into account; at least one of each."""
    usable = known("affinity", readings.usable)
    logical = known("logical processors", lambda: readings.cpu_count(True)) or 1
    most = len(usable) if usable else logical
    physical, performance = _by_platform(readings)(readings, usable or frozenset(range(logical)))
    if not physical:
        physical = known("physical cores", lambda: readings.cpu_count(False)) or most
    quota = known("quota", lambda: cpu_quota(readings.file)) if readings.system == "linux" else None
    if quota is not None:
        # Rounded down: a thread that is held back makes all others wait at the end of every operation.
        most = min(most, int(quota))
    physical = max(1, min(physical, most))
    return Cores(physical, max(1, min(performance or physical, physical)))


def simd_of(readings: Readings, architecture: str, *, emulated: bool) -> frozenset[str]:
    """The instruction sets that this process can use, by the names that Linux has for them, or `neon`."""
    if readings.system in ("linux", "android"):
        return frozenset(_linux_simd(readings))
    if readings.system == "win32":
        has = readings.windows.has_feature
        return frozenset(name for name, number in FEATURES.items() if known(name, lambda n=number: has(n)))
    if readings.system in ("darwin", "ios", "tvos", "watchos"):
        # Under Rosetta a process sees the instructions of an Intel processor.
        return frozenset(
            _arm_simd(readings) if architecture == "arm64" and not emulated else _intel_simd(readings)
        )
    return frozenset()


_Count = Callable[[Readings, frozenset[int]], tuple[int, int]]
"""Physical and performance cores among these logical processors; 0 where unknown."""


def _by_platform(readings: Readings) -> _Count:
    if readings.system in ("linux", "android"):
        return _linux
    if readings.system == "win32":
        return _windows
    if readings.system in ("darwin", "ios", "tvos", "watchos"):
        return _apple
    return lambda _readings, _usable: (0, 0)


def _linux(readings: Readings, usable: frozenset[int]) -> tuple[int, int]:
    by_core: dict[str, int] = {}
    for cpu in sorted(usable):
        siblings = _text(readings, f"{_CPU}/cpu{cpu}/topology/thread_siblings_list")
        by_core.setdefault(siblings or f"?{cpu}", cpu)
    if all(core.startswith("?") for core in by_core):
        # No topology: what psutil counts is all that there is.
        return 0, len(_quick(readings, usable)) if len(usable) > 1 else 0
    return len(by_core), len(_quick(readings, frozenset(by_core.values())))


def _quick(readings: Readings, cores: frozenset[int]) -> frozenset[int]:
    """Those of `cores` that are no efficiency cores; all of them where nothing tells them apart."""
    performance = _numbers(_text(readings, "/sys/devices/cpu_core/cpus"))
    if performance and _text(readings, "/sys/devices/cpu_atom/cpus"):
        return performance & cores or cores
    for file, low in (("cpu_capacity", _LOW_CAPACITY), ("cpufreq/cpuinfo_max_freq", _LOW_FREQUENCY)):
        if file.startswith("cpufreq") and not _is_arm(readings):
            # Frequencies of a processor's best cores differ a little, which makes the others no worse kind.
            continue
        values = {core: _number(_text(readings, f"{_CPU}/cpu{core}/{file}")) for core in cores}
        if all(values.values()):
            return frozenset(core for core in cores if values[core] >= low * max(values.values()))
    return cores


def _is_arm(readings: Readings) -> bool:
    return (known("machine", readings.machine) or "").lower().startswith(("arm", "aarch"))


def _apple(readings: Readings, _usable: frozenset[int]) -> tuple[int, int]:
    physical = _number(_sysctl(readings, "hw.physicalcpu"))
    levels = _number(_sysctl(readings, "hw.nperflevels"))
    performance = 0
    for level in range(levels):
        # The first level is the quickest; there may be several above the efficiency cores.
        name = _sysctl(readings, f"hw.perflevel{level}.name") or ("" if level == 0 else "Efficiency")
        if name != "Efficiency":
            performance += _number(_sysctl(readings, f"hw.perflevel{level}.physicalcpu"))
    return physical, performance


def _windows(readings: Readings, _usable: frozenset[int]) -> tuple[int, int]:
    classes = known("efficiency classes", readings.windows.efficiency_classes) or ()
    return len(classes), classes.count(max(classes, default=0))


def _linux_simd(readings: Readings) -> Iterator[str]:
    for line in (_text(readings, "/proc/cpuinfo") or "").splitlines():
        key, _, words = line.partition(":")
        if key.strip().lower() in ("flags", "features"):
            yield from (_LINUX_NAMES[word] for word in words.split() if word in _LINUX_NAMES)
            return


def _intel_simd(readings: Readings) -> Iterator[str]:
    for name in ("machdep.cpu.features", "machdep.cpu.leaf7_features"):
        words = (_sysctl(readings, name) or "").split()
        yield from (_DARWIN_NAMES[word] for word in words if word in _DARWIN_NAMES)


def _arm_simd(readings: Readings) -> Iterator[str]:
    # Every 64-bit ARM has it.
    yield "neon"
    for option, name in _APPLE_OPTIONS.items():
        if _sysctl(readings, f"hw.optional.arm.{option}") == "1":
            yield name


def _numbers(text: str | None) -> frozenset[int]:
    """The numbers in a list of the kernel's: `0-3,8`."""
    found: set[int] = set()
    for part in (text or "").split(","):
        first, _, last = part.strip().partition("-")
        if first.isdecimal() and (last or first).isdecimal():
            found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)


def _number(text: str | None) -> int:
    return int(text) if text is not None and text.isdecimal() else 0


def _text(readings: Readings, path: str) -> str | None:
    text = known(path, lambda: readings.file(path))
    return text.strip() if text is not None else None


def _sysctl(readings: Readings, name: str) -> str | None:
    return known(name, lambda: readings.sysctl(name))

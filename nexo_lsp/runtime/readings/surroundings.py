"""What kind of machine it is: platform, architecture, container, and whether processes can be started."""

from __future__ import annotations

from collections.abc import Iterator

from nexo_lsp.runtime.environment import Platform
from nexo_lsp.runtime.readings.readings import Readings, known

PLATFORM_VARIABLE = "NEXO_PLATFORM"
"""Set to the word of a `Platform` by a program that embeds this one: nothing else tells a game console or a
set-top box from the system that it is built on. SteamOS is Linux."""

# By `sys.platform`. Other systems (FreeBSD, Solaris) count as Linux, the nearest that there is.
_SYSTEMS = {
    "win32": Platform.WINDOWS,
    "cygwin": Platform.WINDOWS,
    "darwin": Platform.MACOS,
    "emscripten": Platform.WEB,
    "wasi": Platform.WEB,
    "android": Platform.ANDROID,
    "ios": Platform.IOS,
    "watchos": Platform.IOS,
    "tvos": Platform.CONSOLE,
}
# Python's page "Using Python on iOS": no fork and no subprocess there; the same holds for WebAssembly.
_NO_PROCESSES = frozenset({"ios", "tvos", "watchos", "emscripten", "wasi"})
# Programs for iOS that carry a Python of their own may call themselves `darwin`, on a machine of this name.
_DEVICES = {
    "iphone": Platform.IOS, "ipad": Platform.IOS, "ipod": Platform.IOS, "appletv": Platform.CONSOLE,
}  # fmt: skip
_ARCHITECTURES = {
    "amd64": "x86_64", "x64": "x86_64", "x86_64": "x86_64", "i386": "x86", "i486": "x86", "i586": "x86",
    "i686": "x86", "x86": "x86", "aarch64": "arm64", "arm64": "arm64", "arm64e": "arm64", "armv8b": "arm64",
    "armv8l": "arm", "armv7l": "arm", "armv6l": "arm", "arm": "arm",
}  # fmt: skip
_MARKS = ("/.flatpak-info", "/run/.containerenv", "/.dockerenv")
_CGROUP_WORDS = {"kubepods": "kubernetes", "docker": "docker", "libpod": "podman", "lxc": "lxc"}


def platform_of(readings: Readings) -> Platform:
    """Where this runs: as the embedder says, else as `sys.platform` and the marks of Termux do."""
    word = readings.environ.get(PLATFORM_VARIABLE, "").strip().lower()
    if word in set(Platform):
        return Platform(word)
    if readings.system == "darwin" and (device := _device(readings)) is not None:
        return device
    platform = _SYSTEMS.get(readings.system, Platform.LINUX)
    if platform is Platform.LINUX and _is_android(readings):
        return Platform.ANDROID
    return platform


def architecture_of(readings: Readings) -> tuple[str, bool]:
    """The machine's own architecture, and whether this Python was built for another one.

    Rosetta: `sysctl.proc_translated` (Apple's page "About the Rosetta translation environment"), for
    universal binaries too, which may be run either way. Rosetta for Linux names itself in
    `/proc/cpuinfo`, and where QEMU translates, the machine's own may show. Windows: `IsWow64Process2`.
    """
    said = (known("machine", readings.machine) or "").strip().lower()
    if said.startswith(tuple(_DEVICES)):
        return "arm64", False
    own = _ARCHITECTURES.get(said, said or "unknown")
    if readings.system == "darwin":
        if _sysctl(readings, "sysctl.proc_translated") == "1":
            return "arm64", True
    elif readings.system == "win32":
        native = known("native machine", readings.windows.native_machine) or own
        python = _ARCHITECTURES.get((known("python", readings.python) or "").removeprefix("win-"), native)
        return native, native == "arm64" and python != "arm64"
    elif readings.system == "linux" and own == "x86_64":
        text = known("cpuinfo", lambda: readings.file("/proc/cpuinfo")) or ""
        if "VirtualApple" in text or "CPU implementer" in text:
            return "arm64", True
    elif readings.system in ("emscripten", "wasi"):
        return "wasm64" if own == "wasm64" else "wasm32", False
    return own, False


def container_of(readings: Readings) -> str:
    """The innermost container that this runs in: `docker`, `podman`, `wsl`, …; empty outside."""
    if readings.system not in ("linux", "android"):
        return ""
    return next(_containers(readings), "")


def processes_allowed(readings: Readings, platform: Platform) -> bool:
    """Whether child processes can be started; on a console only if it is plain Linux (a set-top box)."""
    if readings.system in _NO_PROCESSES or platform in (Platform.IOS, Platform.WEB):
        return False
    return platform is not Platform.CONSOLE or readings.system == "linux"


def _is_android(readings: Readings) -> bool:
    environ = readings.environ
    # Termux sets the first; Android's init the others for every program.
    return "TERMUX_VERSION" in environ or {"ANDROID_ROOT", "ANDROID_DATA"} <= environ.keys()


def _device(readings: Readings) -> Platform | None:
    said = (known("machine", readings.machine) or "").lower()
    return next((platform for start, platform in _DEVICES.items() if said.startswith(start)), None)


def _containers(readings: Readings) -> Iterator[str]:
    environ = readings.environ
    there = {path: bool(known(path, lambda path=path: readings.exists(path))) for path in _MARKS}
    if environ.get("FLATPAK_ID") or there["/.flatpak-info"]:
        yield "flatpak"
    if environ.get("SNAP") and environ.get("SNAP_NAME"):
        yield "snap"
    if environ.get("KUBERNETES_SERVICE_HOST"):
        yield "kubernetes"
    if there["/run/.containerenv"]:
        yield "podman"
    if there["/.dockerenv"]:
        yield "docker"
    # systemd's page "Container Interface": whoever makes a container names itself so.
    if environ.get("container"):
        yield environ["container"]
    groups = known("/proc/1/cgroup", lambda: readings.file("/proc/1/cgroup")) or ""
    yield from (name for word, name in _CGROUP_WORDS.items() if word in groups)
    release = known("osrelease", lambda: readings.file("/proc/sys/kernel/osrelease")) or ""
    if "microsoft" in release.lower():
        yield "wsl"


def _sysctl(readings: Readings, name: str) -> str | None:
    return known(name, lambda: readings.sysctl(name))

"""Values of the kernels of macOS and iOS, asked by C functions: a process per question would take too long.

Sources: `sysctlbyname(3)`, `notify(3)`; the names are those of Apple's page "Determining system
capabilities" and of `OSThermalNotification.h` in Apple's Libc. `ctypes` is imported where it is used, since
not every Python has it (WASI).
"""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

_TEXTS = ("machdep.cpu.features", "machdep.cpu.leaf7_features", "machdep.cpu.brand_string", "hw.machine")
_THERMAL = b"com.apple.system.thermalpressurelevel"


def sysctl(name: str) -> str | None:
    """A value by its name, numbers as decimal digits; None where there is no such value."""
    if (library := _library()) is None:
        return None
    import ctypes

    size = ctypes.c_size_t(0)
    key = name.encode("ascii")
    if library.sysctlbyname(key, None, ctypes.byref(size), None, 0) != 0:
        return None
    buffer = ctypes.create_string_buffer(size.value)
    if library.sysctlbyname(key, buffer, ctypes.byref(size), None, 0) != 0:
        return None
    return decoded(name, buffer.raw[: size.value])


def decoded(name: str, raw: bytes) -> str:
    """The bytes of a value as text: most are integers in the machine's order, some are strings."""
    if name in _TEXTS or name.endswith(".name"):
        return raw.rstrip(b"\0").decode("utf-8", "replace")
    return str(int.from_bytes(raw, sys.byteorder, signed=True))


def thermal_pressure() -> int | None:
    """How hot it is; None where that is unknown.

    macOS: 0 nominal, 1 moderate, 2 heavy, 3 trapping, 4 sleeping. iOS: 0, 10 (light), 20, 30, 40, 50.
    """
    if (token := _thermal_token()) is None or (library := _library()) is None:
        return None
    import ctypes

    state = ctypes.c_uint64(0)
    return int(state.value) if library.notify_get_state(token, ctypes.byref(state)) == 0 else None


@cache
def _thermal_token() -> int | None:
    """What the state is asked by; registered once, since each registration costs the system one."""
    if (library := _library()) is None:
        return None
    import ctypes

    token = ctypes.c_int(0)
    return token.value if library.notify_register_check(_THERMAL, ctypes.byref(token)) == 0 else None


@cache
def _library() -> Any:
    """The C library, if it is Apple's."""
    if sys.platform not in ("darwin", "ios"):
        return None
    import ctypes

    try:
        library = ctypes.CDLL(None)
        library.sysctlbyname.argtypes = [
            ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t,
        ]  # fmt: skip
        library.notify_register_check.argtypes = [ctypes.c_char_p, ctypes.c_void_p]
        library.notify_get_state.argtypes = [ctypes.c_int, ctypes.c_void_p]
    except (OSError, AttributeError):
        return None
    return library

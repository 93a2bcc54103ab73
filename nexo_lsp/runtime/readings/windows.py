"""What Windows says about its processors, asked by C functions.

Sources: Microsoft's pages on `IsWow64Process2`, `GetLogicalProcessorInformationEx`
(`PROCESSOR_RELATIONSHIP.EfficiencyClass`) and `IsProcessorFeaturePresent`; numbers from `winnt.h`. `ctypes`
is imported where it is used, since not every Python has it (WASI).
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_MACHINES = {0x014C: "x86", 0x8664: "x86_64", 0xAA64: "arm64", 0x01C4: "arm"}
_PROCESSOR_CORE = 0
# The record of a core: relationship and size (32 bits each), flags and efficiency class (a byte each).
_HEAD = struct.Struct("<IIBB")

FEATURES = {
    "sse2": 10, "sse3": 13, "neon": 19, "ssse3": 36, "sse4_1": 37, "sse4_2": 38, "avx": 39, "avx2": 40,
    "avx512f": 41, "dotprod": 43, "sve": 46, "sve2": 47,
}  # fmt: skip
"""What `IsProcessorFeaturePresent` is asked for each instruction set."""


def native_machine() -> str | None:
    """The machine's own processor, whatever this process was built for; None before Windows 10 1709."""
    if (kernel := _kernel()) is None:
        return None
    import ctypes

    process, native = ctypes.c_ushort(0), ctypes.c_ushort(0)
    kernel.GetCurrentProcess.restype = ctypes.c_void_p
    kernel.IsWow64Process2.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
    if not kernel.IsWow64Process2(kernel.GetCurrentProcess(), ctypes.byref(process), ctypes.byref(native)):
        return None
    return _MACHINES.get(native.value)


def efficiency_classes() -> tuple[int, ...]:
    """The class of each physical core, more is quicker; empty where it is unknown."""
    if (kernel := _kernel()) is None:
        return ()
    import ctypes

    size = ctypes.c_uint32(0)
    kernel.GetLogicalProcessorInformationEx(_PROCESSOR_CORE, None, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    if not kernel.GetLogicalProcessorInformationEx(_PROCESSOR_CORE, buffer, ctypes.byref(size)):
        return ()
    return classes_in(buffer.raw[: size.value])


def classes_in(records: bytes) -> tuple[int, ...]:
    """The efficiency classes in what `GetLogicalProcessorInformationEx` wrote for `RelationProcessorCore`."""
    found: list[int] = []
    at = 0
    while at + _HEAD.size <= len(records):
        relationship, size, _flags, efficiency = _HEAD.unpack_from(records, at)
        if size < _HEAD.size:
            break
        if relationship == _PROCESSOR_CORE:
            found.append(efficiency)
        at += size
    return tuple(found)


def has_feature(number: int) -> bool:
    """Whether the processor has what `FEATURES` numbers."""
    return (kernel := _kernel()) is not None and bool(kernel.IsProcessorFeaturePresent(number))


def _kernel() -> Any:
    if sys.platform != "win32":
        return None
    import ctypes

    return ctypes.windll.kernel32


@dataclass(frozen=True, slots=True)
class WindowsReadings:
    """What Windows can be asked."""

    native_machine: Callable[[], str | None] = native_machine
    efficiency_classes: Callable[[], tuple[int, ...]] = efficiency_classes
    has_feature: Callable[[int], bool] = has_feature

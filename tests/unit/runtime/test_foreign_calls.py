"""The C functions of macOS and Windows, played by fakes that fill buffers as the real ones do."""

from __future__ import annotations

import ctypes
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from nexo_lsp.runtime.readings import darwin, windows


class AppleLibrary:
    """`sysctlbyname` and `notify_*` over values given as bytes."""

    def __init__(self, values: Mapping[str, bytes], pressure: int | None = None) -> None:
        self.values = values
        self.pressure = pressure
        self.registered = 0

    def sysctlbyname(self, name: bytes, buffer: Any, size: Any, _new: None, _length: int) -> int:
        value = self.values.get(name.decode())
        if value is None:
            return -1
        if buffer is not None:
            assert size._obj.value >= len(value)
            ctypes.memmove(buffer, value, len(value))
        size._obj.value = len(value)
        return 0

    def notify_register_check(self, name: bytes, token: Any) -> int:
        assert name == b"com.apple.system.thermalpressurelevel"
        self.registered += 1
        token._obj.value = 7
        return 0 if self.pressure is not None else 1

    def notify_get_state(self, token: int, state: Any) -> int:
        assert token == 7
        state._obj.value = self.pressure
        return 0


class Kernel32:
    """The functions of Windows that are asked."""

    def __init__(self, native: int, records: bytes, features: frozenset[int]) -> None:
        self._native, self._records, self._features = native, records, features
        self.GetCurrentProcess: Callable[[], int] = Function(lambda: -1)
        self.IsWow64Process2 = Function(self._wow)

    def _wow(self, process: int, own: Any, native: Any) -> int:
        assert process == -1
        own._obj.value, native._obj.value = 0, self._native
        return int(self._native != 0)

    def GetLogicalProcessorInformationEx(self, kind: int, buffer: Any, size: Any) -> int:
        assert kind == 0
        if size._obj.value < len(self._records):
            size._obj.value = len(self._records)
            return 0
        ctypes.memmove(buffer, self._records, len(self._records))
        return 1

    def IsProcessorFeaturePresent(self, number: int) -> int:
        return int(number in self._features)


class Function:
    """Something that takes a `restype` as functions of `ctypes` do."""

    def __init__(self, call: Callable[..., int]) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> int:
        return self._call(*arguments)


@pytest.fixture(autouse=True)
def no_token_is_kept() -> Iterator[None]:
    darwin._thermal_token.cache_clear()
    yield
    darwin._thermal_token.cache_clear()


def test_values_of_the_kernel_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    library = AppleLibrary({"hw.physicalcpu": struct.pack("=i", 8), "hw.perflevel0.name": b"Performance\0"})
    monkeypatch.setattr(darwin, "_library", lambda: library)
    assert darwin.sysctl("hw.physicalcpu") == "8"
    assert darwin.sysctl("hw.perflevel0.name") == "Performance"
    assert darwin.sysctl("sysctl.proc_translated") is None


def test_the_thermal_pressure_is_registered_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    library = AppleLibrary({}, pressure=2)
    monkeypatch.setattr(darwin, "_library", lambda: library)
    assert (darwin.thermal_pressure(), darwin.thermal_pressure()) == (2, 2)
    assert library.registered == 1


def test_a_refused_registration_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(darwin, "_library", lambda: AppleLibrary({}))
    assert darwin.thermal_pressure() is None


def test_windows_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    records = b"".join(struct.pack("<IIBB", 0, 48, 1, kind).ljust(48, b"\0") for kind in (1, 1, 0))
    kernel = Kernel32(0xAA64, records, frozenset({19}))
    monkeypatch.setattr(windows, "_kernel", lambda: kernel)
    assert windows.native_machine() == "arm64"
    assert windows.efficiency_classes() == (1, 1, 0)
    assert windows.has_feature(19)
    assert not windows.has_feature(40)


def test_an_old_windows_knows_no_native_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "_kernel", lambda: Kernel32(0, b"", frozenset()))
    assert windows.native_machine() is None
    assert windows.efficiency_classes() == ()


def test_elsewhere_nothing_is_asked() -> None:
    if sys.platform == "linux":
        assert darwin.sysctl("hw.physicalcpu") is None
        assert darwin.thermal_pressure() is None
        assert windows.native_machine() is None
        assert windows.efficiency_classes() == ()
        assert not windows.has_feature(19)

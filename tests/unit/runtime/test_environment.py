"""The profile of a machine: of many, as data, and of this one."""

from __future__ import annotations

import os
import struct
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from nexo_lsp.runtime.environment import Battery
from nexo_lsp.runtime.machine import read_environment
from nexo_lsp.runtime.readings.darwin import decoded
from nexo_lsp.runtime.readings.energy import FAKE_BATTERY, battery_of, heat_of
from nexo_lsp.runtime.readings.readings import Readings
from nexo_lsp.runtime.readings.windows import classes_in
from tests.unit.runtime.machines import ENVIRONMENTS, GPUS, READINGS
from tests.unit.runtime.making import GIB, bare, fail, linux, mac, supply


@pytest.mark.parametrize("name", READINGS)
def test_a_machine_has_this_profile(name: str) -> None:
    assert read_environment(READINGS[name]) == ENVIRONMENTS[name]


def test_every_machine_has_a_profile() -> None:
    assert READINGS.keys() == ENVIRONMENTS.keys()
    assert GPUS.keys() <= READINGS.keys()
    assert len(READINGS) >= 25


def test_what_is_handed_in_is_kept() -> None:
    gpus = GPUS["gpu server"]
    found = read_environment(READINGS["gpu server"], network=False, gpus=gpus)
    assert (found.network, found.gpus) == (False, gpus)


def test_this_machine_is_as_others_say() -> None:
    found = read_environment()
    memory = psutil.virtual_memory()
    assert 0 < found.total_bytes <= memory.total
    assert 0 < found.free_bytes <= found.total_bytes
    assert 1 <= found.performance_cores <= found.physical_cores <= (os.cpu_count() or 1)
    assert found.processes
    if found.platform == "linux":
        assert found.physical_cores <= len(os.sched_getaffinity(0))
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        assert ("avx2" in found.simd) == (" avx2 " in flags)
    # What lasts is read once, what changes is read again; both are the same as a first reading.
    again = read_environment(Readings())
    assert replace(again, free_bytes=0) == replace(read_environment(), free_bytes=0)


@pytest.mark.parametrize("system", ["linux", "win32", "darwin", "ios", "emscripten", "plan9"])
def test_nothing_known_is_still_a_profile(system: str) -> None:
    nothing = replace(bare(system), machine=fail, python=fail, cpu_count=fail)  # type: ignore[arg-type]
    found = read_environment(nothing)
    assert (found.physical_cores, found.performance_cores, found.total_bytes, found.battery) == (
        1,
        1,
        0,
        None,
    )


def test_memory_comes_from_the_kernel_where_psutil_does_not_know_the_platform() -> None:
    files = {"/proc/meminfo": "MemTotal:  8388608 kB\nMemFree: 1 kB\nMemAvailable:  2097152 kB\n"}
    found = read_environment(replace(linux(files=files), memory=fail))  # type: ignore[arg-type]
    assert (found.total_bytes, found.free_bytes) == (8 * GIB, 2 * GIB)


@pytest.mark.parametrize(
    ("files", "battery"),
    [
        ({}, None),
        (supply("AC", type="Mains", online=1), None),
        # Without a charger to be seen, the battery says whether it drains.
        (supply("b", type="Battery", status="Discharging", capacity=30), Battery(30, False)),
        (supply("b", type="Battery", status="Not charging", capacity=80), Battery(80, True)),
        # A USB charger, and one that is not connected beside it.
        (
            supply("b", type="Battery", status="Charging", charge_now=1, charge_full=4)
            | supply("ac", type="Mains", online=0)
            | supply("usb", type="USB", online=1),
            Battery(25, True),
        ),
        (supply("b", type="Battery", present=0, capacity=30), None),
        (supply("b", type="Battery", capacity="?"), None),
        (supply("b", type="Battery", energy_now=5, energy_full=0, capacity=7, status="Discharging"), Battery(7, False)),
        (supply("b", type="Battery", energy_now=44, energy_full=40, status="Full"), Battery(100, True)),
    ],
)  # fmt: skip
def test_the_battery_of_a_linux_machine(files: dict[str, str], battery: Battery | None) -> None:
    assert battery_of(linux(files=files)) == battery


def test_a_battery_can_be_faked(tmp_path: Path) -> None:
    file = tmp_path / "battery.json"
    readings = linux(environ={FAKE_BATTERY: str(file)})
    assert battery_of(readings) is None
    for text, battery in [
        ('{"percent": 10, "plugged": false}', Battery(10, False)),
        ("null", None),
        ("half wri", None),
        ("{}", None),
    ]:
        file.write_text(text, encoding="utf-8")
        assert battery_of(readings) == battery
    assert heat_of(linux(environ=readings.environ, files=zone(99_000, ("hot", 95_000)))) is None


def zone(temperature: int, *trips: tuple[str, int]) -> dict[str, str]:
    folder = "/sys/class/thermal/thermal_zone0"
    found = {f"{folder}/temp": f"{temperature}\n", f"{folder}/type": "x86_pkg_temp\n"}
    for number, (kind, limit) in enumerate(trips):
        found |= {
            f"{folder}/trip_point_{number}_type": kind,
            f"{folder}/trip_point_{number}_temp": str(limit),
        }
    return found


@pytest.mark.parametrize(
    ("files", "hot"),
    [
        ({}, False),
        (zone(60_000, ("passive", 50_000), ("critical", 105_000)), False),
        (zone(103_000, ("passive", 50_000), ("critical", 105_000)), True),
        (zone(96_000, ("critical", 0), ("hot", 95_000)), True),
        (zone(96_000, ("critical", -274_000)), False),
        (zone(0, ("hot", 0)), False),
    ],
)
def test_a_linux_machine_is_too_hot_near_its_limits(files: dict[str, str], hot: bool) -> None:
    reason = heat_of(linux(files=files))
    assert (reason is not None) == hot
    if reason:
        assert "x86_pkg_temp" in reason


@pytest.mark.parametrize(("system", "pressure", "hot"), [("darwin", 1, False), ("darwin", 2, True), ("ios", 20, False), ("ios", 30, True)])  # fmt: skip
def test_apples_systems_say_how_hot_it_is(system: str, pressure: int, hot: bool) -> None:
    assert (heat_of(mac("arm64", {}, system=system, pressure=pressure)) is not None) == hot


def test_what_is_unknown_is_not_hot() -> None:
    assert heat_of(bare("darwin")) is None
    assert heat_of(bare("linux")) is None
    assert heat_of(READINGS["windows desktop"]) is None


def test_values_of_darwin_are_numbers_or_texts() -> None:
    assert decoded("hw.physicalcpu", (8).to_bytes(4, "little")) == "8"
    assert decoded("hw.memsize", (16 * GIB).to_bytes(8, "little")) == str(16 * GIB)
    assert decoded("hw.perflevel0.name", b"Performance\0") == "Performance"
    assert decoded("machdep.cpu.features", b"SSE2 AVX1.0\0") == "SSE2 AVX1.0"


def test_records_of_windows_cores_are_read() -> None:
    def core(efficiency: int, relationship: int = 0, size: int = 48) -> bytes:
        return struct.pack("<IIBB", relationship, size, 1, efficiency).ljust(size, b"\0")

    assert classes_in(core(1) + core(1, size=64) + core(0) + core(7, relationship=3)) == (1, 1, 0)
    assert classes_in(b"") == ()
    assert classes_in(struct.pack("<IIBB", 0, 0, 0, 0)) == ()
    assert classes_in(core(1)[:5]) == ()

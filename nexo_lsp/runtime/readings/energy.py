"""The battery, and whether the machine is too hot.

On Linux the files of `/sys/class/power_supply` are read rather than psutil: that takes the first battery that
there is, which may be one of a mouse, and only one of two. Sources: the kernel's
`Documentation/ABI/testing/sysfs-class-power` (`type`, `scope`, `online`, `status`, `capacity`, `energy_*`,
`charge_*`) and `sysfs-class-thermal` (`temp` and trip points, in thousandths of a degree Celsius).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from nexo_lsp.runtime.environment import Battery
from nexo_lsp.runtime.readings.readings import Readings, known

FAKE_BATTERY = "NEXO_FAKE_BATTERY"
"""A test aid, as the mock engine's variables are: names a JSON file that stands in for the battery, which the
test may rewrite: `{"percent": 10, "plugged": false}`, or `null` for none. Then it is never too hot either."""

_SUPPLIES = "/sys/class/power_supply"
_ZONES = "/sys/class/thermal"
_TRIPS = 16
"""So many trip points of a zone are looked at."""
_NEAR = 3_000
"""So close to the critical temperature, in thousandths of a degree, a machine counts as too hot."""
_HEAVY = {"darwin": 2, "ios": 30}
"""From this pressure on: macOS's "heavy", and the same of iOS."""


def battery_of(readings: Readings) -> Battery | None:
    """The charge now; None where there is no battery, or none that can be read (Android's own apps only)."""
    if path := readings.environ.get(FAKE_BATTERY):
        return known(FAKE_BATTERY, lambda: _faked(Path(path)))
    if readings.system in ("linux", "android"):
        return known("power supplies", lambda: _supplies(readings))
    return known("battery", readings.battery)


def heat_of(readings: Readings) -> str | None:
    """Why the machine is too hot for what can wait, for people; None if it is not, or if nothing says so."""
    if FAKE_BATTERY in readings.environ:
        return None
    if readings.system in _HEAVY:
        pressure = known("thermal pressure", readings.thermal_pressure)
        hot = pressure is not None and pressure >= _HEAVY[readings.system]
        return "the machine is hot and slows itself down" if hot else None
    if readings.system not in ("linux", "android"):
        return None
    zones = known("thermal zones", lambda: readings.names(_ZONES)) or ()
    reasons = (known(zone, lambda zone=zone: _zone(readings, f"{_ZONES}/{zone}")) for zone in zones)
    return next((reason for reason in reasons if reason), None)


def _faked(path: Path) -> Battery | None:
    said: Any = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(said, Mapping):
        return None
    content = cast("Mapping[str, Any]", said)
    return Battery(float(content["percent"]), bool(content["plugged"]))


def _supplies(readings: Readings) -> Battery | None:
    levels: list[tuple[float, float]] = []
    online: list[bool] = []
    drains = False
    for name in readings.names(_SUPPLIES):
        read = _reader(readings, f"{_SUPPLIES}/{name}")
        kind = read("type")
        # A battery of a mouse, a headset or a pen is not the machine's.
        if read("scope") == "Device":
            continue
        if kind == "Battery" and read("present") != "0":
            if (level := _level(read)) is not None:
                levels.append(level)
                drains = drains or read("status") == "Discharging"
        elif kind and (state := read("online")):
            online.append(state != "0")
    if not levels:
        return None
    full = sum(size for _, size in levels)
    percent = 100 * sum(charge for charge, _ in levels) / full
    return Battery(min(100.0, max(0.0, percent)), any(online) if online else not drains)


def _level(read: Callable[[str], str]) -> tuple[float, float] | None:
    """The charge and the size of one battery, in the same unit; percents where only the share is known."""
    for unit in ("energy", "charge"):
        now, full = _decimal(read(f"{unit}_now")), _decimal(read(f"{unit}_full"))
        if now is not None and full:
            return now, full
    share = _decimal(read("capacity"))
    return None if share is None else (share, 100.0)


def _zone(readings: Readings, folder: str) -> str | None:
    read = _reader(readings, folder)
    temperature = _decimal(read("temp"))
    if temperature is None or temperature <= 0:
        return None
    for trip in range(_TRIPS):
        kind, limit = read(f"trip_point_{trip}_type"), _decimal(read(f"trip_point_{trip}_temp"))
        if not kind:
            break
        # Drivers that know no limit write nonsense such as 0 or -274000.
        if limit is None or limit <= 0:
            continue
        if (kind == "hot" and temperature >= limit) or (kind == "critical" and temperature >= limit - _NEAR):
            name = read("type") or "a sensor"
            return f"the machine is too hot ({name}: {temperature / 1000:.0f} °C)"
    return None


def _reader(readings: Readings, folder: str) -> Callable[[str], str]:
    return lambda name: (readings.file(f"{folder}/{name}") or "").strip()


def _decimal(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None

"""All that is asked of a machine, as functions that can be replaced: so every platform is data on any other.

Nothing here starts a process or waits for one. A reading that fails counts as unknown: `known` says so in the
log and gives None.
"""

from __future__ import annotations

import logging
import os
import platform
import sys
import sysconfig
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from nexo_lsp.engines.llama.control_groups import read_file
from nexo_lsp.runtime.environment import Battery
from nexo_lsp.runtime.readings.darwin import sysctl, thermal_pressure
from nexo_lsp.runtime.readings.windows import WindowsReadings

T = TypeVar("T")
_log = logging.getLogger(__name__)

# What libraries and files answer with where something is not there. `NotImplementedError`, which psutil
# raises on platforms that it does not know, is a `RuntimeError`.
UNREADABLE = (
    ArithmeticError,
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


def known(what: str, read: Callable[[], T]) -> T | None:
    """What `read` says, or None where it fails."""
    try:
        return read()
    except UNREADABLE as error:
        _log.debug("%s is unknown: %s", what, error)
        return None


def listing(path: str) -> tuple[str, ...]:
    """The names in a folder, sorted; none if it cannot be read."""
    try:
        return tuple(sorted(os.listdir(path)))  # noqa: PTH208 - only the names are wanted
    except OSError:
        return ()


def _usable() -> frozenset[int] | None:
    if sys.platform == "win32":
        import psutil

        return frozenset(psutil.Process().cpu_affinity())
    affinity = getattr(os, "sched_getaffinity", None)
    return frozenset(affinity(0)) if affinity is not None else None


def _cpu_count(logical: bool) -> int | None:
    if logical:
        return os.cpu_count()
    import psutil  # Where it is not built for (the web, iOS) the import fails.

    return psutil.cpu_count(logical=False)


def _memory() -> tuple[int, int]:
    import psutil

    memory = psutil.virtual_memory()
    return memory.total, memory.available


def _battery() -> Battery | None:
    import psutil

    found = psutil.sensors_battery()
    # Whether it is plugged in may be unknown (None); only what is known to drain is spared.
    return None if found is None else Battery(float(found.percent), found.power_plugged is not False)


@dataclass(frozen=True, slots=True)
class Readings:
    """What can be asked. `Readings()` asks this machine; any function may raise one of `UNREADABLE`."""

    system: str = sys.platform
    """`sys.platform`."""
    machine: Callable[[], str] = platform.machine
    """The processor as the operating system has it: `x86_64`, `AMD64`, `aarch64`, …"""
    python: Callable[[], str] = sysconfig.get_platform
    """What this Python was built for: `win-amd64`, `macosx-11.0-universal2`, …"""
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    file: Callable[[str], str | None] = read_file
    """The text of a file, by its absolute path."""
    names: Callable[[str], tuple[str, ...]] = listing
    """The names in a folder."""
    exists: Callable[[str], bool] = lambda path: Path(path).exists()
    usable: Callable[[], frozenset[int] | None] = _usable
    """The numbers of the logical processors that this process may use; None where nothing says so."""
    cpu_count: Callable[[bool], int | None] = _cpu_count
    """Logical (True) or physical processors of the machine."""
    memory: Callable[[], tuple[int, int]] = _memory
    """Bytes in all, and bytes that can still be taken."""
    battery: Callable[[], Battery | None] = _battery
    """As psutil tells it: on macOS and Windows; on Linux files say more."""
    sysctl: Callable[[str], str | None] = sysctl
    """macOS: a value of the kernel's by its name."""
    thermal_pressure: Callable[[], int | None] = thermal_pressure
    """macOS and iOS: how hot it is, as `darwin.py` describes it."""
    windows: WindowsReadings = field(default_factory=WindowsReadings)

"""The profile of this machine, read in a few milliseconds; nothing is started, and nothing is waited for."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from nexo_lsp.engines.llama.control_groups import memory_bounds
from nexo_lsp.runtime.environment import Environment, Gpu
from nexo_lsp.runtime.readings.energy import battery_of
from nexo_lsp.runtime.readings.processors import cores_of, simd_of
from nexo_lsp.runtime.readings.readings import Readings, known
from nexo_lsp.runtime.readings.surroundings import (
    architecture_of,
    container_of,
    platform_of,
    processes_allowed,
)


def read_environment(
    readings: Readings | None = None, *, network: bool = True, gpus: Sequence[Gpu] = ()
) -> Environment:
    """The profile of the machine behind `readings` (None: this one, whose lasting facts are read once).

    `network` says whether using one is allowed, `gpus` what the installed llama.cpp can use (`gpus.py`).
    Never raises: what cannot be read is left at its default, and the log says so at the level of debugging.
    """
    lasting = _this_machine() if readings is None else _lasting(readings)
    now = readings or Readings()
    total, free = _memory(now)
    cores = cores_of(now)
    return Environment(
        platform=lasting.platform,
        architecture=lasting.architecture,
        emulated=lasting.emulated,
        physical_cores=cores.physical,
        performance_cores=cores.performance,
        simd=lasting.simd,
        total_bytes=total,
        free_bytes=free,
        battery=battery_of(now),
        gpus=tuple(gpus),
        container=lasting.container,
        network=network,
        processes=lasting.processes,
    )


@cache
def _this_machine() -> Environment:
    return _lasting(Readings())


def _lasting(readings: Readings) -> Environment:
    """What stays as it is while a process runs."""
    platform = platform_of(readings)
    architecture, emulated = architecture_of(readings)
    return Environment(
        platform=platform,
        architecture=architecture,
        emulated=emulated,
        simd=simd_of(readings, architecture, emulated=emulated),
        container=container_of(readings),
        processes=processes_allowed(readings, platform),
    )


def _memory(readings: Readings) -> tuple[int, int]:
    """Bytes in all and free: the machine's, or what its container allows and leaves."""
    total, free = known("memory", readings.memory) or _meminfo(readings)
    bounds = known("control groups", lambda: memory_bounds(readings.file)) if total else None
    for bound in bounds or ():
        total, free = min(total, bound.limit), min(free, bound.free)
    return total, free


def _meminfo(readings: Readings) -> tuple[int, int]:
    """The same from the kernel's file, where psutil is not built for the platform (Android)."""
    text = known("meminfo", lambda: readings.file("/proc/meminfo")) or ""
    found: dict[str, int] = {}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if words and words[0].isdecimal():
            found[name] = int(words[0]) * 1024
    total = found.get("MemTotal", 0)
    return total, found.get("MemAvailable", total // 2)

"""How much memory this process may still take: what the machine has free, and what its container allows.

`psutil` knows the machine only. In a container the kernel kills at the container's limit, so that is read
from the control groups: version 2 (`memory.max`, `memory.current`) and version 1 (`memory.limit_in_bytes`,
`memory.usage_in_bytes`). Source: the kernel's `Documentation/admin-guide/cgroup-v2.rst` and
`cgroup-v1/memory.rst`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import psutil

Read = Callable[[str], str | None]
"""The text of a file; None if it cannot be read."""

_ROOT = PurePosixPath("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class _Version:
    """Where a version of control groups says what."""

    limit: str
    used: str
    reclaimable: str
    """The key in `memory.stat` of what the kernel gives up before it kills: file pages not used lately."""


_V1 = _Version("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = _Version("memory.max", "memory.current", "inactive_file")


@dataclass(frozen=True, slots=True)
class Free:
    """Memory that may still be taken."""

    bytes: int
    why: str
    """What bounds it, for people: "23,288 MB are free"."""


def free_memory(
    machine: Callable[[], int] = lambda: psutil.virtual_memory().available, read: Read | None = None
) -> Free:
    """The smaller one of what the machine has free and what the container leaves."""
    free = machine()
    inside = container_free(read or _read)
    if inside is not None and inside < free:
        return Free(inside, f"{inside // 2**20:,} MB are free in this container")
    return Free(free, f"{free // 2**20:,} MB are free")


def container_free(read: Read) -> int | None:
    """What this process's control groups leave, in bytes; None where none of them has a limit."""
    left = [
        max(0, limit - used)
        for folder, version in _groups(read)
        for limit, used in _usage(read, folder, version)
    ]
    return min(left, default=None)


def _groups(read: Read) -> Iterator[tuple[PurePosixPath, _Version]]:
    """The groups of this process and those around them, since each may have a limit of its own."""
    for line in (read("/proc/self/cgroup") or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            root, version = _ROOT, _V2
        elif "memory" in controllers.split(","):
            root, version = _ROOT / "memory", _V1
        else:
            continue
        # In a container the path may be that of the host, which is not there; then the root is its own group.
        here = root / path.lstrip("/")
        yield here, version
        yield from ((folder, version) for folder in here.parents if folder == root or root in folder.parents)


def _usage(read: Read, folder: PurePosixPath, version: _Version) -> Iterator[tuple[int, int]]:
    limit, used = _number(read(f"{folder}/{version.limit}")), _number(read(f"{folder}/{version.used}"))
    if limit is None or used is None:
        return
    stat = dict(
        line.split(" ", 1) for line in (read(f"{folder}/memory.stat") or "").splitlines() if " " in line
    )
    yield limit, max(0, used - (_number(stat.get(version.reclaimable)) or 0))


def _number(text: str | None) -> int | None:
    """None for "max" too: that is no limit."""
    text = (text or "").strip()
    return int(text) if text.isdecimal() else None


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="ascii", errors="replace")
    except OSError:
        return None

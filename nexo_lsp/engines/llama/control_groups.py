"""What the control groups of this process allow: on Linux a container's bounds are theirs.

Version 2 says it in `memory.max`, `memory.current` and `cpu.max`, version 1 in `memory.limit_in_bytes`,
`memory.usage_in_bytes`, `cpu.cfs_quota_us` and `cpu.cfs_period_us`. Source: the kernel's
`Documentation/admin-guide/cgroup-v2.rst`, `cgroup-v1/memory.rst` and `scheduler/sched-bwc.rst`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

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
class Bound:
    """A limit on memory that counts for this process, in bytes."""

    limit: int
    free: int
    """What is left of it, once the kernel has given up what it can."""


def container_free(read: Read) -> int | None:
    """What this process's control groups leave, in bytes; None where none of them has a limit."""
    return min((bound.free for bound in memory_bounds(read)), default=None)


def memory_bounds(read: Read) -> tuple[Bound, ...]:
    """The limits on memory of the groups that this process is in."""
    return tuple(
        bound for folder, version in _groups(read, "memory") for bound in _usage(read, folder, version)
    )


def cpu_quota(read: Read) -> float | None:
    """How many processors' time this process may use (1.5: three halves); None where nothing limits it."""
    quotas: list[float] = []
    for folder, version in _groups(read, "cpu"):
        if version is _V2:
            words = (read(f"{folder}/cpu.max") or "").split()
            quota, period = (*map(_number, words), None, None)[:2]
        else:
            quota = _number(read(f"{folder}/cpu.cfs_quota_us"))
            period = _number(read(f"{folder}/cpu.cfs_period_us"))
        if quota and period:
            quotas.append(quota / period)
    return min(quotas, default=None)


def _groups(read: Read, controller: str) -> Iterator[tuple[PurePosixPath, _Version]]:
    """The groups of this process and those around them, since each may have a limit of its own."""
    for line in (read("/proc/self/cgroup") or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            root, version = _ROOT, _V2
        elif controller in controllers.split(","):
            root, version = _ROOT / controller, _V1
        else:
            continue
        # In a container the path may be that of the host, which is not there; then the root is its own group.
        here = root / path.lstrip("/")
        yield here, version
        yield from ((folder, version) for folder in here.parents if folder == root or root in folder.parents)


def _usage(read: Read, folder: PurePosixPath, version: _Version) -> Iterator[Bound]:
    limit, used = _number(read(f"{folder}/{version.limit}")), _number(read(f"{folder}/{version.used}"))
    if limit is None or used is None:
        return
    stat = dict(
        line.split(" ", 1) for line in (read(f"{folder}/memory.stat") or "").splitlines() if " " in line
    )
    used = max(0, used - (_number(stat.get(version.reclaimable)) or 0))
    yield Bound(limit, max(0, limit - used))


def _number(text: str | None) -> int | None:
    """None for "max" and for -1 too: that is no limit."""
    text = (text or "").strip()
    return int(text) if text.isdecimal() else None


def read_file(path: str) -> str | None:
    """The text of a file of the kernel's; None if it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except (OSError, ValueError):
        return None

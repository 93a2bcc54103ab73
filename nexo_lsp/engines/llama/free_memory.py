"""How much memory this process may still take: what the machine has free, and what its container allows.

`psutil` knows the machine only. In a container the kernel kills at the container's limit, so that is read
from the control groups (`control_groups.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import psutil

from nexo_lsp.engines.llama.control_groups import Read, container_free, read_file


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
    inside = container_free(read or read_file)
    if inside is not None and inside < free:
        return Free(inside, f"{inside // 2**20:,} MB are free in this container")
    return Free(free, f"{free // 2**20:,} MB are free")

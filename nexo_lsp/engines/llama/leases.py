"""What the prefix cache asks of a context, and what it hands out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class Memory(Protocol):
    """What of a context is needed here (`native.Context` is one)."""

    def truncate(self, sequence: int, length: int) -> bool:
        """Forget a sequence's end; False if this model cannot forget a part."""
        ...

    def copy(self, source: int, target: int, length: int) -> None:
        """Share a sequence's beginning with another, which is empty."""
        ...

    def save(self, sequence: int) -> bytes:
        """All that a sequence holds; empty if that failed."""
        ...

    def restore(self, sequence: int, state: bytes) -> bool:
        """Fill an empty sequence with what `save` gave; False if there is no room, or it is damaged."""
        ...

    def clear(self) -> None:
        """Forget all sequences, so that what comes next begins with the first cell."""
        ...


@dataclass(frozen=True, slots=True)
class Lease:
    """A sequence that a job may write to, and how many of the job's tokens it holds already."""

    sequence: int
    cached: int


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens both begin with."""
    length = min(len(a), len(b))
    equal = 0
    while equal < length:
        # Whole stretches at once; the last one is looked at token by token.
        stretch = min(512, length - equal)
        if list(a[equal : equal + stretch]) != list(b[equal : equal + stretch]):
            break
        equal += stretch
    while equal < length and a[equal] == b[equal]:
        equal += 1
    return equal

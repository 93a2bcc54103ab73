"""Which sequence a prompt continues, so that what was evaluated once is not evaluated again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

# A finished sequence is taken over (and its tail forgotten) when at least this share of it is reused;
# otherwise the new one gets a copy, which costs no cells, and the old tail stays for those who come back.
_TAKE_OVER_SHARE = 0.5


class Memory(Protocol):
    """What of a context is needed here (`native.Context` is one)."""

    def truncate(self, sequence: int, length: int) -> bool:
        """Forget a sequence's end; False if this model cannot."""
        ...

    def copy(self, source: int, target: int, length: int) -> None:
        """Share a sequence's beginning with another."""
        ...


@dataclass(frozen=True, slots=True)
class Lease:
    """A sequence that a job may write to, and how many of the job's tokens it holds already."""

    sequence: int
    cached: int


@dataclass(slots=True)
class _Kept:
    tokens: Sequence[int]
    session: str


class PrefixCache:
    """Hands out the sequences of one context and keeps finished ones for reuse."""

    def __init__(self, memory: Memory, sequences: int) -> None:
        self._memory = memory
        self._free = list(range(sequences))
        for sequence in self._free:
            # The context may have had another user.
            memory.truncate(sequence, 0)
        # Insertion order is the order of last use: the first entry is the least recently used.
        self._kept: dict[int, _Kept] = {}

    @property
    def kept(self) -> int:
        """How many finished sequences are kept."""
        return len(self._kept)

    def acquire(
        self, tokens: Sequence[int], session: str, running: Iterable[tuple[int, Sequence[int]]] = ()
    ) -> Lease | None:
        """A sequence for a job whose prompt is `tokens`; None if all are held by unfinished jobs.

        `running` are the sequences of unfinished jobs with the tokens evaluated in them: they can be copied
        from, never taken over. The last token is left to evaluate, because its logits are needed.
        """
        limit = len(tokens) - 1
        source, length = self._longest(tokens, limit, running)
        kept = self._kept.get(source)
        if kept is not None and (self._takes_over(kept, length, session) or not self._can_copy(source)):
            del self._kept[source]
            return self._cut(source, length)
        target = self._spare(but=source)
        if target is None:
            return None
        if length:
            self._memory.copy(source, target, length)
        return Lease(target, length)

    def release(self, sequence: int, tokens: Sequence[int], session: str) -> None:
        """A job is done with `sequence`, which now holds `tokens`: keep it as the most recently used."""
        if tokens:
            self._kept[sequence] = _Kept(tuple(tokens), session)
        else:
            self.drop(sequence)

    def drop(self, sequence: int) -> None:
        """Forget what `sequence` holds; it may be handed out again."""
        self._kept.pop(sequence, None)
        self._memory.truncate(sequence, 0)
        self._free.append(sequence)

    def evict(self) -> bool:
        """Forget the least recently used finished sequence; False if there is none."""
        oldest = next(iter(self._kept), None)
        if oldest is None:
            return False
        self.drop(oldest)
        return True

    def _longest(
        self, tokens: Sequence[int], limit: int, running: Iterable[tuple[int, Sequence[int]]]
    ) -> tuple[int, int]:
        source, length = -1, 0
        candidates = [*((key, kept.tokens) for key, kept in self._kept.items()), *running]
        for sequence, known in candidates:
            shared = min(common_prefix(tokens, known), limit)
            if shared > length:
                source, length = sequence, shared
        return source, length

    def _takes_over(self, kept: _Kept, length: int, session: str) -> bool:
        same = bool(session) and kept.session == session
        return same or length >= _TAKE_OVER_SHARE * len(kept.tokens)

    def _can_copy(self, source: int) -> bool:
        return bool(self._free) or any(sequence != source for sequence in self._kept)

    def _spare(self, but: int) -> int | None:
        if not self._free:
            oldest = next((sequence for sequence in self._kept if sequence != but), None)
            if oldest is None:
                return None
            self.drop(oldest)
        return self._free.pop(0)

    def _cut(self, sequence: int, length: int) -> Lease:
        if self._memory.truncate(sequence, length):
            return Lease(sequence, length)
        # This kind of model keeps no state from which a part could be forgotten: start over.
        self._memory.truncate(sequence, 0)
        return Lease(sequence, 0)


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens both begin with."""
    count = 0
    for left, right in zip(a, b, strict=False):
        if left != right:
            break
        count += 1
    return count

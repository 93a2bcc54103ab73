"""A context's memory that holds tokens instead of what a model makes of them, and checks how it is used."""

from __future__ import annotations

import zlib
from array import array
from dataclasses import dataclass, field

from nexo_lsp.engines.llama.leases import Lease
from nexo_lsp.engines.llama.prefix_cache import PrefixCache

CELL_BYTES = 12


class FakeMemory:
    """A unified context: a cell holds a token at a position and is used by one sequence or by several."""

    def __init__(self, sequences: int, capacity: int = 1_000_000) -> None:
        self.capacity = capacity
        self.cells: list[list[tuple[int, int]]] = [[] for _ in range(sequences)]
        self.made = 0
        self.clears = 0
        self.saves = 0
        self.restores = 0
        self.partial = True

    def tokens(self, sequence: int) -> list[int]:
        return [token for _cell, token in self.cells[sequence]]

    @property
    def used(self) -> int:
        return len({cell for cells in self.cells for cell, _token in cells})

    def evaluate(self, sequence: int, tokens: list[int], position: int) -> bool:
        assert position == len(self.cells[sequence]), "positions have no gaps"
        if self.used + len(tokens) > self.capacity:
            return False
        for token in tokens:
            self.made += 1
            self.cells[sequence].append((self.made, token))
        return True

    def truncate(self, sequence: int, length: int) -> bool:
        if not self.partial and 0 < length < len(self.cells[sequence]):
            return False
        del self.cells[sequence][length:]
        return True

    def copy(self, source: int, target: int, length: int) -> None:
        assert source != target
        assert not self.cells[target], "copies go into empty sequences"
        assert 0 < length <= len(self.cells[source]), "only what exists is copied"
        self.cells[target] = self.cells[source][:length]

    def clear(self) -> None:
        self.clears += 1
        for cells in self.cells:
            cells.clear()

    def save(self, sequence: int) -> bytes:
        self.saves += 1
        data = array("i", self.tokens(sequence)).tobytes().ljust(CELL_BYTES * len(self.cells[sequence]), b"-")
        return data + zlib.crc32(data).to_bytes(4, "little")

    def restore(self, sequence: int, state: bytes) -> bool:
        assert not self.cells[sequence], "states go into empty sequences"
        data = state[:-4]
        if zlib.crc32(data).to_bytes(4, "little") != state[-4:]:
            self.evaluate(sequence, [0], 0)  # Nobody promises that a failure leaves nothing behind.
            return False
        self.restores += 1
        count = len(data) // CELL_BYTES
        return self.evaluate(sequence, list(array("i", data[: 4 * count])), 0)


@dataclass
class Bench:
    """A cache, its memory, and jobs that come, evaluate and go."""

    sequences: int = 8
    capacity: int = 1_000_000
    options: dict[str, object] = field(default_factory=dict)
    now: float = 0.0
    running: dict[int, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.memory = FakeMemory(self.sequences, self.capacity)
        self.cache = PrefixCache(self.memory, self.sequences, clock=lambda: self.now, **self.options)

    def acquire(self, tokens: list[int], session: str = "") -> Lease | None:
        lease = self.cache.acquire(tokens, session, list(self.running.items()))
        if lease is not None:
            assert lease.sequence not in self.running
            assert lease.cached <= len(tokens) - 1
            assert self.memory.tokens(lease.sequence) == tokens[: lease.cached]
            self.running[lease.sequence] = tokens[: lease.cached]
        return lease

    def evaluate(self, sequence: int, tokens: list[int]) -> bool:
        """Evaluate more tokens, with what has to be evicted for it."""
        known = self.running[sequence]
        while not self.memory.evaluate(sequence, tokens, len(known)):
            if not self.cache.evict():
                return False
        self.running[sequence] = known + tokens
        return True

    def release(self, sequence: int, session: str = "", static: int = 0) -> None:
        tokens = self.running.pop(sequence)
        assert self.memory.tokens(sequence) == tokens
        self.cache.observe(self.running.items())
        self.cache.release(sequence, tokens, session, static=static)

    def job(self, tokens: list[int], session: str = "", static: int = 0) -> int:
        """A whole job; how many of its tokens were cached."""
        lease = self.acquire(tokens, session)
        assert lease is not None
        assert self.evaluate(lease.sequence, tokens[lease.cached :])
        self.release(lease.sequence, session, static)
        return lease.cached


def text(seed: int, length: int) -> list[int]:
    return [seed * 100_000 + at for at in range(length)]

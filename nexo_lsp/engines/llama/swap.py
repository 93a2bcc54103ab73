"""Evaluated prompts that are not in the engine's context: as bytes in memory, or static ones on disk."""

from __future__ import annotations

from dataclasses import dataclass

from nexo_lsp.engines.llama import radix
from nexo_lsp.engines.llama.prefix_store import PrefixStore
from nexo_lsp.engines.llama.radix import Node, RadixTree


@dataclass(slots=True, eq=False)
class Swapped:
    """One of them; `state` is None for what lies on disk."""

    state: bytes | None
    session: str

    @property
    def on_disk(self) -> bool:
        """Whether the state has to be read."""
        return self.state is None


class SwapSpace:
    """Finds the state to bring back for a prompt. States in memory have a limit, the last used stay."""

    def __init__(self, limit_bytes: int, store: PrefixStore | None) -> None:
        self._limit = limit_bytes
        self._store = store
        self._tree: RadixTree[Swapped] = RadixTree()
        # Insertion order is the order of last use.
        self._nodes: dict[Swapped, Node[Swapped]] = {}
        self.bytes = 0
        """How much memory the states take."""
        self._bytes_per_token = 0
        for tokens in store.load() if store is not None else ():
            self._add(radix.pack(tokens), Swapped(None, ""))

    @property
    def limit_bytes(self) -> int:
        """The most that the states may take in memory; 0 takes none."""
        return self._limit

    @limit_bytes.setter
    def limit_bytes(self, limit: int) -> None:
        self._limit = limit
        self._shrink()

    def may_take(self, tokens: int) -> bool:
        """Whether a state of so many tokens would fit, by what the last one took."""
        return self._limit > 0 and tokens * self._bytes_per_token <= self._limit

    def find(self, key: bytes) -> tuple[int, int, Swapped | None]:
        """The longest beginning of `key` that can be brought back.

        In tokens, with the tokens of the whole state (all of it has to be brought back) and its entry.
        """
        length, node = self._tree.find(key)
        if not length:
            return 0, 0, None
        found = min(self._tree.below(node), key=lambda entry: (self._nodes[entry].stop, entry.on_disk))
        return length, self._nodes[found].stop, found

    def state(self, entry: Swapped) -> bytes | None:
        """The state of an entry, which counts as used; None if it is lost (then the entry is gone too)."""
        self.touch(entry)
        if entry.state is not None or entry not in self._nodes or self._store is None:
            return entry.state
        state = self._store.read(radix.unpack(self._tree.key(self._nodes[entry])))
        if state is None:
            self.forget(entry)
        return state

    def touch(self, entry: Swapped) -> None:
        """An entry counts as used; fine if it was forgotten meanwhile."""
        node = self._nodes.pop(entry, None)
        if node is not None:
            self._nodes[entry] = node

    def holds(self, key: bytes, *, on_disk: bool = False) -> bool:
        """Whether all of `key` is the beginning of an entry; with `on_disk`, of one there."""
        length, node = self._tree.find(key)
        if length < radix.length_of(key):
            return False
        return not on_disk or any(entry.on_disk for entry in self._tree.below(node))

    def keep(self, key: bytes, state: bytes, session: str) -> bool:
        """Keep a state in memory; the least recently used make room. False if it is too large."""
        self._bytes_per_token = len(state) // radix.length_of(key)
        if len(state) > self._limit:
            return False
        entry = Swapped(state, session)
        node = self._add(key, entry)
        # What this one begins with can be brought back with it.
        for shorter in [*node.values, *self._tree.above(node)]:
            if shorter is not entry and not shorter.on_disk:
                self.forget(shorter)
        self._shrink()
        return True

    def keep_on_disk(self, key: bytes, state: bytes) -> bool:
        """Write the state of a static prefix; False if it could not be written."""
        if self._store is None or not self._store.write(radix.unpack(key), state):
            return False
        self._add(key, Swapped(None, ""))
        return True

    def forget(self, entry: Swapped) -> None:
        """Let go of an entry (a file stays where it is); fine if that has happened already."""
        node = self._nodes.pop(entry, None)
        if node is not None:
            self._tree.remove(node, entry)
            self.bytes -= len(entry.state or b"")

    def _add(self, key: bytes, entry: Swapped) -> Node[Swapped]:
        node = self._nodes[entry] = self._tree.add(key, entry)
        self.bytes += len(entry.state or b"")
        return node

    def _shrink(self) -> None:
        oldest = iter([entry for entry in self._nodes if not entry.on_disk])
        while self.bytes > self._limit:
            self.forget(next(oldest))

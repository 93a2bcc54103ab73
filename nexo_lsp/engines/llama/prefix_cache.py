"""Which sequence a prompt continues, so that what was evaluated once is not evaluated again.

A finished sequence stays in the context as long as there is room for it: what continues it takes it over or
shares its cells. Attention looks at every cell in use, so what was not used for a while is swapped out: saved
as bytes and brought back when a prompt begins like it. Static prompt prefixes are kept on disk too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count

from nexo_lsp.engines.llama import radix
from nexo_lsp.engines.llama.cells import Cells
from nexo_lsp.engines.llama.leases import Lease, Memory, common_prefix
from nexo_lsp.engines.llama.prefix_store import PrefixStore
from nexo_lsp.engines.llama.radix import Node, RadixTree
from nexo_lsp.engines.llama.swap import SwapSpace

# A finished sequence is taken over, and its tail forgotten, when the tail is short, or a small part of it:
# then nothing is lost that is worth a copy, and a session that changes its last tokens with every keystroke
# stays one entry. A session may lose more of its own than of another's: it has moved on. If it has moved far
# (another file) the tail stays, since to come back is dear. A copy costs no cells.
_TAIL_TOKENS = 32
_TAIL_SHARE_OWN, _TAIL_SHARE_OTHER = 0.5, 0.25

_WORTH_SAVING = 16
"""A sequence that adds fewer tokens than this to what others hold is evaluated again rather than swapped."""
_WORTH_STORING = 64
"""Static prefixes shorter than this are not written to disk."""
# To bring back a token takes less than a thousandth of the time to evaluate one (4 µs and 13 ms, 0.5B on two
# busy cores of an AMD EPYC), but a state comes back as a whole: so many tokens and so much of it must be new.
_WORTH_RESTORING, _WORTH_RESTORING_SHARE = 16, 1 / 64

_INTERACTIVE = "infill"
"""Sessions that begin like this belong to somebody who is typing."""
_TYPING_S = 60.0
"""Whoever got a suggestion this short ago may press the next key any moment."""


@dataclass(slots=True, eq=False)
class _Kept:
    sequence: int
    session: str
    used_at: float
    """When a job was last done with it, by the clock."""
    used: int
    """The order of last use."""


class PrefixCache:
    """Hands out the sequences of one context and keeps finished ones for reuse."""

    def __init__(
        self,
        memory: Memory,
        sequences: int,
        *,
        live_cells: int | None = None,
        swap_bytes: int = 0,
        store: PrefixStore | None = None,
        clock: Callable[[], float] = time.monotonic,
        alone: bool = False,
    ) -> None:
        """`live_cells`: tokens that finished sequences may hold in the context, None for no bound.

        `swap_bytes`: memory for what is swapped out; 0 forgets instead. `store`: for static prefixes.
        `alone`: a job's every step looks at what finished ones hold too, so they are swapped out when it
        begins (to bring a token back takes 4 µs, to look past it 1.6 µs for each token that is evaluated).
        """
        self._memory = memory
        self._alone = alone and swap_bytes > 0
        self._spread = False
        """Whether a sequence may lie behind cells that are free again."""
        self._typed_in: tuple[bytes, float] = (b"", 0.0)
        """What somebody typed in last, of what was put away, and when it was last used."""
        self._live_cells = live_cells
        self._clock = clock
        self._uses = count()
        self._free = list(range(sequences))
        for sequence in self._free:
            # The context may have had another user.
            memory.truncate(sequence, 0)
        # A job that finds no free sequence waits until one is swapped out: better done when one ends.
        self._spares = min(2, sequences // 4) if swap_bytes else 0
        self._kept: dict[int, _Kept] = {}
        self._tree: RadixTree[_Kept] = RadixTree()
        self._nodes: dict[_Kept, Node[_Kept]] = {}
        self._cells = Cells()
        self._swap = SwapSpace(swap_bytes, store)
        self._has_store = store is not None
        self._stored: set[bytes] = set()

    @property
    def kept(self) -> int:
        """How many finished sequences are in the context."""
        return len(self._kept)

    @property
    def cells(self) -> int:
        """Tokens in the context, shared ones counted once, unfinished jobs' as last told."""
        return self._cells.total()

    @property
    def swapped_bytes(self) -> int:
        """Memory that swapped-out sequences take."""
        return self._swap.bytes

    def observe(self, running: Iterable[tuple[int, Sequence[int]]]) -> None:
        """Learn how far unfinished jobs have come: their sequences, and the tokens evaluated in them."""
        for sequence, tokens in running:
            self._cells.set(sequence, len(tokens))

    def acquire(
        self, tokens: Sequence[int], session: str, running: Iterable[tuple[int, Sequence[int]]] = ()
    ) -> Lease | None:
        """A sequence for a job whose prompt is `tokens`; None if all are held by unfinished jobs.

        `running` are the sequences of unfinished jobs with the tokens evaluated in them: they can be copied
        from, never taken over. The last token is left to evaluate, because its logits are needed.
        """
        running = list(running)
        self.observe(running)
        key = radix.first(radix.pack(tokens), len(tokens) - 1)
        source, length = self._longest(key, tokens, session, running)
        if not self._alone:
            return self._lease(key, tokens, session, running, source, length)
        self._put_away(but=source)
        in_front = source in self._kept
        lease = self._lease(key, tokens, session, running, source, length)
        if lease is None:
            return None
        self._put_away()
        # What was brought back lies behind what was in front then; what was copied is where it was.
        if running or self._kept or (in_front and lease.cached > length):
            self._spread = True
        return lease if running or self._kept else self._close_up(lease)

    def _lease(
        self,
        key: bytes,
        tokens: Sequence[int],
        session: str,
        running: list[tuple[int, Sequence[int]]],
        source: int,
        length: int,
    ) -> Lease | None:
        """The lease, if `source` has the first `length` tokens."""
        lease = self._bring_back(key, session, source, length)
        if lease is not None:
            return lease
        if source >= 0 and not self._cells.length(source):
            # It made room for something that could not be brought back.
            source, length = self._longest(key, tokens, session, running)
        kept = self._kept.get(source)
        if kept is not None:
            takes_over = self._takes_over(kept.session, session, length, self._nodes[kept].stop)
            if takes_over or not self._can_copy(source):
                if not takes_over:
                    self._save(kept)
                self._unlist(kept)
                return self._cut(source, length)
            kept.used = next(self._uses)
        target = self._spare(but=source)
        if target is None:
            return None
        if not length:
            return Lease(target, 0)
        self._share(source, target, length)
        return self._cut(target, length)

    def release(self, sequence: int, tokens: Sequence[int], session: str, *, static: int = 0) -> None:
        """A job is done with `sequence`, which now holds `tokens`: keep it as the most recently used.

        The first `static` tokens hold nothing of the user's; only they may be written to disk.
        """
        if not tokens:
            self.drop(sequence)
            return
        self._cells.set(sequence, len(tokens))
        key = radix.pack(tokens)
        if self._has_store and _WORTH_STORING <= static <= len(tokens):
            self._store_static(sequence, radix.first(key, static))
        self._keep(sequence, key, session)
        self._settle()

    def drop(self, sequence: int) -> None:
        """Forget what `sequence` holds; it may be handed out again."""
        kept = self._kept.get(sequence)
        if kept is not None:
            self._unlist(kept)
        self._empty(sequence)
        if sequence not in self._free:
            self._free.append(sequence)

    def evict(self) -> bool:
        """Free cells at once: swap finished sequences out, or forget them. False if none could be freed."""
        victim = self._victim_with_cells()
        if victim is None:
            return False
        self._swap_out(victim)
        return True

    def shrink(self, to_cells: int, swap_bytes: int | None = None) -> None:
        """Let go of finished sequences until at most `to_cells` cells are in use, or no more can be freed.

        With `swap_bytes` that is what swapped-out ones may take from now on.
        """
        if swap_bytes is not None:
            self._swap.limit_bytes = swap_bytes
        while self.cells > to_cells and self.evict():
            pass

    # What to continue

    def _longest(
        self, key: bytes, tokens: Sequence[int], session: str, running: list[tuple[int, Sequence[int]]]
    ) -> tuple[int, int]:
        """The sequence in the context that shares most with a prompt, and how many tokens (0: none)."""
        source, length = -1, 0
        known, node = self._tree.find(key)
        if known:
            source, length = self._preferred(node, session).sequence, known
        limit = radix.length_of(key)
        for sequence, evaluated in running:
            # Most differ early; one look at the place that matters spares the comparison.
            if length < min(limit, len(evaluated)) and evaluated[length] == tokens[length]:
                both = min(common_prefix(tokens, evaluated), limit)
                if both > length:
                    source, length = sequence, both
        return source, length

    def _preferred(self, node: Node[_Kept], session: str) -> _Kept:
        """Of those that share the same with a prompt, the session's own; among them the shortest tail."""
        return min(self._tree.below(node), key=lambda kept: (kept.session != session, self._nodes[kept].stop))

    @staticmethod
    def _takes_over(old: str, new: str, length: int, whole: int) -> bool:
        share = _TAIL_SHARE_OWN if new and new == old else _TAIL_SHARE_OTHER
        return whole - length <= max(_TAIL_TOKENS, share * whole)

    def _can_copy(self, source: int) -> bool:
        return bool(self._free) or any(sequence != source for sequence in self._kept)

    def _cut(self, sequence: int, length: int) -> Lease:
        """A lease on the first `length` tokens of what `sequence` holds."""
        if self._memory.truncate(sequence, length):
            self._cells.set(sequence, length)
            return Lease(sequence, length)
        # This kind of model keeps no state from which a part could be forgotten: start over.
        self._empty(sequence)
        return Lease(sequence, 0)

    # Bringing back

    def _bring_back(self, key: bytes, session: str, source: int, length: int) -> Lease | None:
        """A lease on a swapped-out sequence, if it has clearly more of the prompt than `source` has."""
        known, whole, found = self._swap.find(key)
        worth = max(_WORTH_RESTORING, _WORTH_RESTORING_SHARE * whole)
        if found is None or known - length < worth:
            return None
        target = self._spare(but=source)
        if target is None:
            target = self._spare()
        if target is None:
            return None
        state = self._swap.state(found)
        if state is None or not self._restore(target, state, whole, last=source):
            if state is not None and not self.cells:
                # Nothing was in its way. A damaged state would be tried again and again.
                self._swap.forget(found)
            self._free.append(target)
            return None
        if not found.on_disk and self._takes_over(found.session, session, known, whole):
            self._swap.forget(found)
        return self._cut(target, known)

    def _restore(self, target: int, state: bytes, whole: int, last: int) -> bool:
        """Fill `target`; finished sequences, `last` last, make room until there should be enough."""
        freed = 0
        while not self._memory.restore(target, state):
            self._memory.truncate(target, 0)
            victim = self._victim_with_cells(but=last) or self._victim_with_cells()
            if victim is None or freed >= whole:
                return False
            before = self.cells
            self._swap_out(victim)
            freed += before - self.cells
        return True

    # Being alone

    def _put_away(self, but: int = -1) -> None:
        """Swap out every finished sequence but one; what would be lost stays."""
        for kept in self._victims():
            if kept.sequence == but:
                continue
            if self._is_typed_in(kept):
                self._typed_in = self._tree.key(self._nodes[kept]), kept.used_at
            if self._save(kept):
                self.drop(kept.sequence)
        key, used_at = self._typed_in
        entry = self._swap.find(key)[2]
        if entry is not None and self._clock() - used_at < _TYPING_S:
            # The next key may be pressed any moment: others go first when the swap is full.
            self._swap.touch(entry)

    def _close_up(self, lease: Lease) -> Lease:
        """Move the only sequence to the first cells: attention looks at all up to the last one in use."""
        if not self._spread:
            return lease
        self._spread = False
        state = self._saved(lease.sequence) if lease.cached else b""
        if lease.cached and not state:
            return lease
        self._memory.clear()
        if not lease.cached or self._memory.restore(lease.sequence, state):
            return lease
        self._empty(lease.sequence)
        return Lease(lease.sequence, 0)

    # Keeping

    def _keep(self, sequence: int, key: bytes, session: str) -> None:
        now, used = self._clock(), next(self._uses)
        length, node = self._tree.find(key)
        if length == radix.length_of(key):
            # Another sequence holds all of it.
            longer = self._preferred(node, session)
            longer.used_at, longer.used = now, used
            self._empty(sequence)
            self._free.append(sequence)
            return
        kept = self._kept[sequence] = _Kept(sequence, session, now, used)
        self._nodes[kept] = node = self._tree.add(key, kept)
        for shorter in self._tree.above(node):
            self.drop(shorter.sequence)
        if session:
            self._supersede(kept, key)

    def _supersede(self, kept: _Kept, key: bytes) -> None:
        """Drop what this job would have taken over of its session's, had the other job ended before it began.

        Jobs overlap when the next key is pressed before an answer is done; one of them is enough to keep.
        """
        for other in list(self._kept.values()):
            if other is not kept and other.session == kept.session:
                node = self._nodes[other]
                both = radix.shared(key, self._tree.key(node))
                if self._takes_over(other.session, kept.session, both, node.stop):
                    self.drop(other.sequence)

    def _settle(self) -> None:
        """Swap out what is more than may stay, while nobody waits for it."""
        stays = self._staying()
        for kept in self._victims():
            full = self._live_cells is not None and self._cells.total(self._kept) > self._live_cells
            if not full and len(self._free) >= self._spares:
                break
            if kept not in stays:
                self._swap_out(kept)

    def _staying(self) -> list[_Kept]:
        """What one would have to bring back at once: the last used one, and the one somebody types in.

        Only one of the latter, because a user types in one place at a time, and not for long, because it
        would be in the way of everything else. So a burst of reviews pushes out its own older sequences.
        """
        last = max(self._kept.values(), key=lambda kept: kept.used, default=None)
        typing = max(filter(self._is_typed_in, self._kept.values()), key=lambda kept: kept.used, default=None)
        return [kept for kept in (last, typing) if kept is not None]

    def _is_typed_in(self, kept: _Kept) -> bool:
        return kept.session.startswith(_INTERACTIVE) and self._clock() - kept.used_at < _TYPING_S

    def _victims(self) -> list[_Kept]:
        """Finished sequences, the first to go first: the least recently used, where nobody types last."""
        return sorted(self._kept.values(), key=lambda kept: (self._is_typed_in(kept), kept.used))

    def _victim_with_cells(self, but: int = -1) -> _Kept | None:
        """The first to go that frees cells: not all of its own are used by unfinished jobs too."""
        victims = (kept for kept in self._victims() if kept.sequence != but)
        return next((kept for kept in victims if self._cells.only(kept.sequence)), None)

    def _swap_out(self, kept: _Kept) -> None:
        """Take a finished sequence out of the context; its tokens come back quickly if they are worth it."""
        self._save(kept)
        self.drop(kept.sequence)

    def _save(self, kept: _Kept) -> bool:
        """Put a copy of a finished sequence into the swap, unless nearly all of it stays known anyway.

        False if it would be lost with its sequence.
        """
        node = self._nodes[kept]
        known, _whole, swapped = self._swap.find(key := self._tree.key(node))
        if swapped is not None and node.stop - known < _WORTH_SAVING:
            self._swap.touch(swapped)
            return True
        if node.stop - self._tree.stop_above(node) < _WORTH_SAVING:
            return True
        if not self._swap.may_take(node.stop):
            return False
        state = self._saved(kept.sequence)
        return bool(state) and self._swap.keep(key, state, kept.session)

    def _store_static(self, sequence: int, key: bytes) -> None:
        """Write a static prefix, the beginning of `sequence`, to disk, once; needs a free sequence."""
        if key in self._stored or not self._free or self._swap.holds(key, on_disk=True):
            return
        self._stored.add(key)
        spare = self._free[-1]
        length = radix.length_of(key)
        self._share(sequence, spare, length)
        if self._memory.truncate(spare, length):
            state = self._saved(spare)
            if state:
                self._swap.keep_on_disk(key, state)
        self._empty(spare)

    def _saved(self, sequence: int) -> bytes:
        try:
            return self._memory.save(sequence)
        except MemoryError:
            return b""

    # Sequences

    def _spare(self, but: int = -1) -> int | None:
        """A free sequence, taken from the finished ones other than `but` if need be."""
        if not self._free:
            victim = next((kept for kept in self._victims() if kept.sequence != but), None)
            if victim is None:
                return None
            self._swap_out(victim)
        return self._free.pop(0)

    def _share(self, source: int, target: int, length: int) -> None:
        self._memory.copy(source, target, length)
        self._cells.share(source, target, length)

    def _unlist(self, kept: _Kept) -> None:
        del self._kept[kept.sequence]
        self._tree.remove(self._nodes.pop(kept), kept)

    def _empty(self, sequence: int) -> None:
        self._memory.truncate(sequence, 0)
        self._cells.set(sequence, 0)

"""The prefix cache on a memory that holds tokens instead of what a model makes of them, and checks its use."""

from __future__ import annotations

import random
import zlib
from array import array
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexo_lsp.engines.llama import radix
from nexo_lsp.engines.llama.cells import Cells
from nexo_lsp.engines.llama.prefix_cache import Lease, PrefixCache, common_prefix
from nexo_lsp.engines.llama.prefix_store import PrefixStore
from nexo_lsp.engines.llama.radix import RadixTree

CELL_BYTES = 12


class FakeMemory:
    """A unified context: a cell holds a token at a position and is used by one sequence or by several."""

    def __init__(self, sequences: int, capacity: int = 1_000_000) -> None:
        self.capacity = capacity
        self.cells: list[list[tuple[int, int]]] = [[] for _ in range(sequences)]
        self.made = 0
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

    def save(self, sequence: int) -> bytes:
        self.saves += 1
        data = array("i", self.tokens(sequence)).tobytes().ljust(CELL_BYTES * len(self.cells[sequence]), b"-")
        return data + zlib.crc32(data).to_bytes(4, "little")

    def restore(self, sequence: int, state: bytes) -> bool:
        assert not self.cells[sequence], "states go into empty sequences"
        data = state[:-4]
        if zlib.crc32(data).to_bytes(4, "little") != state[-4:]:
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


# The tree


def test_a_tree_finds_the_longest_beginning_and_all_that_share_it() -> None:
    tree: RadixTree[str] = RadixTree()
    for word in ("review", "revise", "rev", "hover"):
        tree.add(radix.pack(list(map(ord, word))), word)
    length, node = tree.find(radix.pack(list(map(ord, "revolt"))))
    assert length == 3
    assert sorted(tree.below(node)) == ["rev", "review", "revise"]
    length, node = tree.find(radix.pack(list(map(ord, "reviews"))))
    assert (length, list(tree.below(node))) == (6, ["review"])
    assert tree.above(node) == ["rev"]
    assert tree.find(radix.pack([1]))[0] == 0


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), max_size=20), st.data())
def test_a_tree_equals_a_list_of_sequences(words: list[list[int]], data: st.DataObject) -> None:
    tree: RadixTree[int] = RadixTree()
    nodes = {index: tree.add(radix.pack(word), index) for index, word in enumerate(words)}
    for index in data.draw(st.permutations(sorted(nodes))):
        if data.draw(st.booleans()):
            tree.remove(nodes.pop(index), index)
        wanted = data.draw(st.lists(st.integers(0, 2), max_size=14))
        length, node = tree.find(radix.pack(wanted))
        best = max((common_prefix(words[other], wanted) for other in nodes), default=0)
        assert length == best
        assert set(tree.below(node)) == {i for i in nodes if words[i][:best] == wanted[:best]}
        for other, place in nodes.items():
            assert list(radix.unpack(tree.key(place))) == words[other]
            assert set(tree.above(place)) == {
                i
                for i in nodes
                if len(words[i]) < len(words[other]) and words[other][: len(words[i])] == words[i]
            }


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 1), max_size=600), st.lists(st.integers(0, 1), max_size=600), st.integers(0, 600)
)
def test_two_ways_to_compare_agree(left: list[int], right: list[int], same: int) -> None:
    right = left[:same] + right
    equal = next(
        (i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right))
    )
    assert radix.shared(radix.pack(left), radix.pack(right)) == equal
    assert common_prefix(left, tuple(right)) == equal


# Cells


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 9)), max_size=60))
def test_cells_are_counted_as_a_context_counts_them(steps: list[tuple[int, int, int]]) -> None:
    cells, memory = Cells(), FakeMemory(4)
    for one, other, length in steps:
        present = len(memory.cells[one])
        if one != other and not memory.cells[other] and 0 < length <= present:
            memory.copy(one, other, length)
            cells.share(one, other, length)
        else:
            memory.truncate(one, length)
            memory.evaluate(one, [0] * max(0, length - present), min(present, length))
            cells.set(one, length)
        assert cells.total() == memory.used
        assert [cells.length(sequence) for sequence in range(4)] == [len(of) for of in memory.cells]
        rest = {cell for sequence in range(4) if sequence != one for cell, _token in memory.cells[sequence]}
        assert cells.only(one) == memory.used - len(rest)


# What is continued


def test_a_session_that_changes_its_end_stays_one_entry() -> None:
    bench = Bench()
    prompt = text(1, 1000)
    for typed in range(40):
        answer = text(50 + typed, 16)
        cached = bench.job(prompt + text(2, typed) + answer, "infill")
        assert cached == (1000 + typed - 1 if typed else 0)
        assert bench.cache.kept == 1
    assert bench.memory.used == bench.cache.cells == 1000 + 39 + 16


def test_a_session_that_goes_to_another_file_and_back_loses_neither() -> None:
    bench = Bench()
    here, there = text(0, 100) + text(1, 900), text(0, 100) + text(2, 900)
    bench.job(here, "infill")
    assert bench.job(there, "infill") == 100
    assert bench.job([*here, 7], "infill") == 1000
    assert bench.job([*there, 7], "infill") == 1000
    assert bench.cache.cells == 100 + 2 * 901, "the beginning is there once"


def test_half_of_an_own_sequence_may_go_but_less_of_anothers() -> None:
    for session, kept in (("one", 1), ("other", 2)):
        bench = Bench()
        bench.job(text(1, 600) + text(2, 400), "one")
        assert bench.job(text(1, 600) + text(3, 400), session) == 600
        assert bench.cache.kept == kept


def test_what_another_sequence_begins_with_needs_no_sequence() -> None:
    bench = Bench()
    first = bench.acquire(text(1, 100))
    second = bench.acquire(text(1, 200))
    assert first is not None
    assert second is not None
    bench.evaluate(first.sequence, text(1, 100))
    bench.evaluate(second.sequence, text(1, 200))
    assert bench.memory.used == 300, "evaluated side by side, before anything was known"
    bench.release(first.sequence)
    bench.release(second.sequence)
    assert bench.cache.kept == 1
    assert bench.cache.cells == bench.memory.used == 200
    third = bench.acquire(text(1, 50) + text(2, 50))
    assert third is not None
    bench.release(third.sequence)
    assert bench.cache.kept == 1, "the other way round too"


def test_a_model_that_cannot_forget_a_part_is_never_given_a_part() -> None:
    bench = Bench()
    bench.memory.partial = False
    bench.job(text(1, 100), "s")
    assert bench.job(text(1, 90) + text(2, 50), "s") == 0
    assert bench.job(text(1, 90) + text(2, 51), "s") == 140


def test_without_a_free_sequence_a_tail_is_saved_before_it_is_cut() -> None:
    bench = Bench(sequences=1, options={"swap_bytes": 1_000_000})
    bench.job(text(0, 50) + text(1, 500))
    bench.job(text(0, 50) + text(2, 500))
    assert bench.job(text(0, 50) + text(1, 501)) == 550


# What is swapped out


def test_what_is_over_the_bound_is_swapped_out_and_comes_back() -> None:
    bench = Bench(options={"live_cells": 1000, "swap_bytes": 1_000_000})
    for seed in range(5):
        bench.job(text(seed, 400))
        assert bench.cache.cells == bench.memory.used <= 1000
    assert bench.cache.kept == 2
    assert bench.cache.swapped_bytes == 3 * (400 * CELL_BYTES + 4)
    for seed in range(5):
        assert bench.job(text(seed, 400) + text(9, 5)) == 400
    assert bench.cache.swapped_bytes == 3 * (405 * CELL_BYTES + 4)


def test_swapped_sequences_keep_to_their_memory_least_recently_used_first() -> None:
    bench = Bench(options={"live_cells": 0, "swap_bytes": 3 * (400 * CELL_BYTES + 4)})
    for seed in range(5):
        bench.job(text(seed, 400))
        assert bench.cache.kept == 1
    assert bench.cache.swapped_bytes == 3 * (400 * CELL_BYTES + 4)
    assert bench.job([*text(0, 400), 7]) == 0
    assert bench.job([*text(2, 400), 7]) == 400


def test_without_memory_for_it_what_is_over_the_bound_is_forgotten() -> None:
    bench = Bench(options={"live_cells": 500})
    for seed in range(3):
        bench.job(text(seed, 400))
    assert bench.cache.kept == 1
    assert bench.memory.saves == bench.cache.swapped_bytes == 0


def test_a_state_that_is_too_large_is_not_even_saved_a_second_time() -> None:
    bench = Bench(options={"live_cells": 0, "swap_bytes": 1000})
    for seed in range(4):
        bench.job(text(seed, 400))
    assert bench.memory.saves == 1


def test_a_short_tail_is_not_worth_a_state() -> None:
    bench = Bench(options={"swap_bytes": 1_000_000})
    bench.job(text(1, 500) + text(2, 60), "a")
    bench.job(text(1, 250) + text(3, 40), "b")
    while bench.cache.evict():
        pass
    assert bench.cache.cells == 0
    assert bench.memory.saves == 1


def test_swapped_beginnings_of_swapped_sequences_are_not_kept_twice() -> None:
    bench = Bench(options={"swap_bytes": 1_000_000})
    bench.job(text(1, 300))
    bench.cache.evict()
    bench.job(text(1, 300) + text(2, 300), "other")
    bench.cache.evict()
    assert bench.cache.swapped_bytes == 600 * CELL_BYTES + 4


def test_a_little_more_is_evaluated_rather_than_brought_back() -> None:
    bench = Bench(options={"swap_bytes": 1_000_000})
    bench.job(text(1, 5000))
    bench.cache.evict()
    assert bench.job(text(1, 40) + text(2, 100)) == 0, "5,000 for 40"
    assert bench.job(text(1, 200) + text(2, 100)) == 200
    assert bench.job([*text(1, 5000), 7]) == 5000, "another's part of it was copied, not taken"


def test_room_is_made_for_what_comes_back_but_not_without_end() -> None:
    bench = Bench(capacity=1000, options={"swap_bytes": 1_000_000})
    bench.job(text(1, 700))
    bench.job(text(2, 700))
    bench.job(text(3, 200))
    assert bench.cache.cells == 900
    assert bench.job([*text(1, 700), 7]) == 700
    holder = bench.acquire(text(4, 900))
    assert holder is not None
    bench.evaluate(holder.sequence, text(4, 900))
    other = bench.acquire([*text(2, 700), 7])
    assert other == Lease(other.sequence, 0) if other else False, "a job holds the room"
    bench.release(holder.sequence)
    bench.release(other.sequence)
    assert bench.job([*text(2, 700), 7]) == 700, "it is there still"


def test_a_damaged_state_is_given_up() -> None:
    bench = Bench(options={"swap_bytes": 1_000_000})
    save = bench.memory.save
    bench.memory.save = lambda sequence: save(sequence)[:-1] + b"!"
    bench.job(text(1, 700))
    bench.cache.evict()
    assert bench.cache.swapped_bytes
    assert bench.job(text(1, 100)) == 0
    assert bench.cache.swapped_bytes == 0


def test_a_damaged_state_costs_the_others_at_most_a_way_out_and_back() -> None:
    bench = Bench(options={"swap_bytes": 1_000_000})
    save = bench.memory.save
    bench.memory.save = lambda sequence: save(sequence)[:-1] + b"!"
    bench.job(text(1, 700))
    bench.cache.evict()
    bench.memory.save = save
    bench.job(text(1, 5) + text(2, 700))
    bench.job(text(3, 100))
    assert bench.job(text(1, 600)) == 0
    assert bench.job([*text(3, 100), 7]) == 100
    assert bench.job([*text(1, 5), *text(2, 700), 7]) == 705


def test_memory_that_cannot_be_had_for_a_state_is_no_failure() -> None:
    def save(_sequence: int) -> bytes:
        raise MemoryError

    bench = Bench(options={"swap_bytes": 1_000_000})
    bench.memory.save = save
    bench.job(text(1, 700))
    assert bench.cache.evict()
    assert bench.job(text(1, 700)) == 0


def test_a_sequence_stays_free_for_the_next_keystroke() -> None:
    bench = Bench(sequences=8, options={"swap_bytes": 10_000_000})
    for seed in range(12):
        bench.job(text(seed, 100))
        saves = bench.memory.saves
        assert bench.acquire(text(99, 10)) is not None
        assert bench.memory.saves == saves
        (sequence,) = bench.running
        bench.release(sequence)
    assert bench.cache.kept == 6


def test_nobody_who_types_is_pushed_out_by_a_burst_of_reviews() -> None:
    bench = Bench(options={"live_cells": 2000, "swap_bytes": 10_000_000})
    bench.job(text(1, 800), "infill")
    for seed in range(10, 20):
        bench.job(text(seed, 900), f"review {seed}")
    saves, restores = bench.memory.saves, bench.memory.restores
    assert bench.job([*text(1, 800), 7], "infill") == 800
    assert (bench.memory.saves, bench.memory.restores) == (saves, restores), "it never left"
    bench.now += 61
    bench.job(text(20, 900), "review 20")
    bench.job(text(21, 900), "review 21")
    bench.job([*text(1, 800), 7, 8], "infill")
    assert bench.memory.restores == restores + 1, "who stopped typing gives way like all others"


def test_typing_in_many_places_does_not_hold_the_context() -> None:
    bench = Bench(options={"live_cells": 1000, "swap_bytes": 10_000_000})
    for seed in range(6):
        bench.job(text(seed, 800), "infill")
    assert bench.cache.kept == 1


def test_evicting_frees_cells_or_says_that_it_cannot() -> None:
    bench = Bench()
    assert not bench.cache.evict()
    first = bench.acquire(text(1, 300))
    assert first is not None
    bench.evaluate(first.sequence, text(1, 300))
    second = bench.acquire(text(1, 200) + text(2, 100))
    assert second is not None
    bench.evaluate(second.sequence, text(2, 100))
    bench.memory.truncate(second.sequence, 200)
    bench.running[second.sequence] = text(1, 200)
    bench.release(second.sequence)
    assert not bench.cache.evict(), "an unfinished job uses all cells of the finished one"
    bench.release(first.sequence)
    assert bench.cache.evict()
    assert bench.cache.cells == bench.memory.used == 0


def test_shrinking() -> None:
    bench = Bench(options={"swap_bytes": 1_000_000})
    for seed in range(5):
        bench.job(text(seed, 100))
    bench.cache.shrink(250)
    assert bench.cache.cells == 200
    assert bench.cache.swapped_bytes == 3 * (100 * CELL_BYTES + 4)
    bench.cache.shrink(150, swap_bytes=2000)
    assert bench.cache.cells == 100
    assert bench.cache.swapped_bytes == 100 * CELL_BYTES + 4
    bench.cache.shrink(0, swap_bytes=0)
    assert bench.cache.cells == bench.cache.swapped_bytes == bench.cache.kept == 0


def test_dropping_twice_hands_a_sequence_out_once() -> None:
    bench = Bench(sequences=2)
    lease = bench.acquire(text(1, 10))
    assert lease is not None
    bench.cache.drop(lease.sequence)
    bench.cache.drop(lease.sequence)
    bench.running.clear()
    first, second = bench.acquire([1]), bench.acquire([2])
    assert first is not None
    assert second is not None
    assert first.sequence != second.sequence
    assert bench.acquire([3]) is None


# On disk


def stored(folder: Path, **options: object) -> Bench:
    return Bench(options={"store": PrefixStore(folder, "key", 10_000_000), **options})


def test_a_static_prefix_outlives_the_process_and_nothing_else_does(tmp_path: Path) -> None:
    static, code = text(1, 300), text(2, 200)
    bench = stored(tmp_path)
    assert bench.job(static + code, static=300) == 0
    assert bench.job(static + text(3, 200), static=300) == 300
    assert bench.memory.saves == 1
    again = stored(tmp_path)
    assert again.job(static + code, static=300) == 300
    assert again.memory.saves == 0
    assert again.cache.swapped_bytes == 0
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert array("i", [static[250]]).tobytes() in written
    assert array("i", [code[0]]).tobytes() not in written


def test_static_prefixes_on_disk_are_used_again_and_again(tmp_path: Path) -> None:
    stored(tmp_path).job(text(1, 300), static=300)
    bench = stored(tmp_path)
    for seed in range(3):
        assert bench.job(text(1, 300) + text(seed, 50), static=300) == 300
        bench.cache.shrink(0)
    assert bench.memory.restores == 3


def test_what_is_cut_short_or_hardly_anything_is_not_stored(tmp_path: Path) -> None:
    bench = stored(tmp_path)
    bench.job(text(1, 200), static=300)
    bench.job(text(2, 200), static=20)
    bench.job(text(3, 200))
    assert bench.memory.saves == 0


def test_a_prefix_that_cannot_be_written_is_tried_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("no folder")
    bench = stored(tmp_path / "file")
    for seed in range(3):
        bench.job(text(1, 300) + text(seed, 50), static=300)
    assert bench.memory.saves == 1
    assert capsys.readouterr().err.count("not kept") == 1


def test_a_stored_prefix_that_vanished_is_evaluated_and_stored_again(tmp_path: Path) -> None:
    stored(tmp_path).job(text(1, 300), static=300)
    bench = stored(tmp_path)
    (path,) = tmp_path.rglob("*.prefix")
    path.unlink()
    assert bench.job(text(1, 300), static=300) == 0
    assert path.exists()


# Everything at once


class Chaos:
    """Random jobs over prompts that share beginnings, checked against the plain list of what is known."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.random = random.Random(seed)
        self.live_cells = self.random.choice([None, 0, 300, 600])
        self.swap_bytes = self.random.choice([0, 5_000, 200_000])
        store = self.random.choice([None, PrefixStore(folder, "key", 20_000)])
        self.bench = Bench(
            sequences=self.random.choice([1, 2, 3, 8]),
            capacity=self.random.choice([300, 1000, 100_000]),
            options={"live_cells": self.live_cells, "swap_bytes": self.swap_bytes, "store": store},
        )
        self.jobs: dict[int, tuple[list[int], str]] = {}

    def prompt(self) -> list[int]:
        parts = [text(self.random.randrange(3), 70)]
        parts += [
            text(self.random.randrange(4), self.random.randrange(1, 80))
            for _ in range(self.random.randrange(3))
        ]
        return [token for part in parts for token in part]

    def begin(self) -> None:
        prompt, session = self.prompt(), self.random.choice(["", "infill", "review", "hover"])
        live = [tokens for tokens in map(self.bench.memory.tokens, range(self.bench.sequences)) if tokens]
        best = max((min(common_prefix(prompt, tokens), len(prompt) - 1) for tokens in live), default=0)
        full = len(self.jobs) == self.bench.sequences
        lease = self.bench.acquire(prompt, session)
        assert (lease is None) == full
        if lease is not None:
            # Where there is too little room, what was to come back may have cost what was there.
            assert lease.cached >= best or self.bench.capacity < 10_000, (
                "what is there is not evaluated again"
            )
            self.jobs[lease.sequence] = prompt, session

    def go_on(self) -> None:
        sequence = self.random.choice(list(self.jobs))
        prompt, _session = self.jobs[sequence]
        rest = prompt[len(self.bench.running[sequence]) :] or text(self.random.randrange(9), 5)
        if not self.bench.evaluate(sequence, rest[: self.random.randrange(1, 60)]):
            self.lose(sequence)

    def finish(self) -> None:
        sequence = self.random.choice(list(self.jobs))
        _prompt, session = self.jobs.pop(sequence)
        self.bench.release(sequence, session, static=self.random.choice([0, 70]))

    def lose(self, sequence: int) -> None:
        del self.jobs[sequence], self.bench.running[sequence]
        self.bench.cache.drop(sequence)

    def step(self) -> None:
        self.bench.now += self.random.choice([0, 1, 30])
        kind = self.random.random()
        if kind < 0.3 or not self.jobs:
            self.begin()
        elif kind < 0.7:
            self.go_on()
        elif kind < 0.95:
            self.finish()
        elif kind < 0.97:
            self.lose(self.random.choice(list(self.jobs)))
        elif kind < 0.99:
            self.bench.cache.evict()
        else:
            self.bench.cache.shrink(self.random.randrange(400))

    def check(self) -> None:
        bench = self.bench
        bench.cache.observe(bench.running.items())
        assert bench.cache.cells == bench.memory.used
        assert bench.cache.swapped_bytes <= self.swap_bytes
        used = {sequence for sequence, cells in enumerate(bench.memory.cells) if cells}
        assert bench.cache.kept == len(used - set(bench.running))
        for sequence, tokens in bench.running.items():
            assert bench.memory.tokens(sequence) == tokens, "nobody touches a running job's sequence"


@pytest.mark.parametrize("seed", range(40))
def test_whatever_happens_a_sequence_holds_what_was_promised(seed: int, tmp_path: Path) -> None:
    chaos = Chaos(seed, tmp_path)
    for _ in range(500):
        chaos.step()
        chaos.check()
    for sequence in list(chaos.jobs):
        chaos.lose(sequence)
    chaos.bench.cache.shrink(0, swap_bytes=0)
    assert chaos.bench.cache.cells == chaos.bench.cache.swapped_bytes == chaos.bench.cache.kept == 0
    leases = [chaos.bench.acquire([1]) for _ in range(chaos.bench.sequences)]
    assert len({lease.sequence for lease in leases if lease}) == chaos.bench.sequences, "no sequence is lost"

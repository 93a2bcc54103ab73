"""Which sequence a prompt continues; and random work, with everything that must hold checked at every step."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from nexo_lsp.engines.llama.leases import common_prefix
from nexo_lsp.engines.llama.prefix_store import PrefixStore

from .fake_memory import Bench, text


def test_a_session_that_changes_its_end_stays_one_entry() -> None:
    bench = Bench()
    prompt = text(1, 1000)
    for typed in range(40):
        answer = text(50 + typed, 16)
        cached = bench.job(prompt + text(2, typed) + answer, "infill")
        assert cached == (1000 + typed - 1 if typed else 0)
        assert bench.cache.kept == 1
    assert bench.memory.used == bench.cache.cells == 1000 + 39 + 16


def test_keys_pressed_before_the_last_answer_is_done_leave_one_entry() -> None:
    bench = Bench()
    prompt = text(1, 1000)
    bench.job(prompt, "infill")
    unfinished = None
    for typed in range(40):
        tokens = prompt + text(2, typed) + text(50 + typed, 16)
        lease = bench.acquire(tokens, "infill")
        assert lease is not None
        assert lease.cached == (1000 + typed - 1 if typed else 1000)
        bench.evaluate(lease.sequence, tokens[lease.cached :])
        if unfinished is not None:
            bench.release(unfinished, "infill")
        unfinished = lease.sequence
    assert unfinished is not None
    bench.release(unfinished, "infill")
    assert bench.cache.kept == 1
    assert bench.cache.cells == bench.memory.used == 1000 + 39 + 16


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
            options={
                "live_cells": self.live_cells,
                "swap_bytes": self.swap_bytes,
                "store": store,
                "alone": seed % 2 == 1,
            },
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

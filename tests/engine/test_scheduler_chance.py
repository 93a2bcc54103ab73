"""Requests of all kinds at random moments, cancelled and interrupted: nothing is lost, and nothing is left."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from nexo_lsp.engines.llama.loading import load
from nexo_lsp.engines.llama.messages import Done, Failed, Load
from nexo_lsp.engines.llama.native import Decoded, Library, Slice
from nexo_lsp.engines.llama.prefix_cache import PrefixCache
from nexo_lsp.engines.llama.scheduler import Scheduler
from nexo_lsp.generation import Priority, Request

from .conftest import Bench
from .requests import chat, infill

REQUESTS = 14
MOST_STEPS = 5000


def some_request(chance: random.Random) -> Request:
    text = "shared " * chance.randint(0, 20) + chance.choice("abc") * chance.randint(0, 150)
    limits = {
        "max_tokens": chance.randint(1, 60),
        "priority": chance.choice(list(Priority)),
        "session": chance.choice(["", "infill:1", "s"]),
        "prediction": chance.choice(["", "shared " * 5]),
    }
    if chance.random() < 0.5:
        return chat(text, **limits)
    return infill(text, "x" * chance.randint(0, 30), **limits)


@pytest.mark.parametrize("seed", range(10))
def test_every_request_ends_once_and_every_sequence_is_somebodys(
    library: Library, tiny_model: Path, seed: int
) -> None:
    chance = random.Random(seed)
    wish = Load(
        str(tiny_model), chance.choice([512, 1024]), threads=1, sequences=chance.choice([1, 2, 3, 4, 8])
    )
    loaded = load(library, wish, lambda _progress: True)
    context = loaded.context
    bench = Bench(loaded)
    swap = chance.choice([0, 2**22])
    cache = PrefixCache(
        context,
        context.sequences,
        live_cells=context.tokens // 2,
        swap_bytes=swap,
        clock=lambda: bench.now,
        alone=not context.flash_attention,
    )
    scheduler = Scheduler(loaded.model, context, bench.said.append, lambda: bench.now, cache=cache)
    evaluate = context.evaluate

    def checked(slices: Sequence[Slice]) -> Decoded:
        bench.now += 0.05
        for part in slices:
            last = library.c.llama_memory_seq_pos_max(context._memory, part.sequence)
            assert last + 1 == part.position, "the sequence holds what the scheduler believes"
        if chance.random() < 0.1:
            scheduler.interrupt()
        return evaluate(slices)

    context.evaluate = checked
    asked, cancelled = 0, set[int]()
    for _ in range(MOST_STEPS):
        if asked < REQUESTS and chance.random() < 0.3:
            asked += 1
            scheduler.add(asked, some_request(chance), client=chance.randint(1, 3))
        if asked and chance.random() < 0.05:
            one = chance.randint(1, asked)
            cancelled.add(one)
            scheduler.cancel(one)
        scheduler.step()
        held = [job.sequence for job in scheduler._jobs.values() if job.sequence is not None]
        owned = Counter([*held, *cache._free, *cache._kept])
        assert owned == Counter(range(context.sequences))
        if asked == REQUESTS and not scheduler.busy:
            break
    assert not scheduler.busy, "it goes in circles"
    ends = Counter(message.id for message in bench.said if isinstance(message, Done | Failed))
    assert set(ends.values()) == {1}
    assert set(range(1, REQUESTS + 1)) - set(ends) <= cancelled
    assert not any(isinstance(message, Failed) for message in bench.said)
    scheduler.close()
    loaded.close()

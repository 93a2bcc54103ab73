"""Who gets a place in the context when places are few, and what happens to those who lose theirs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nexo_lsp.engines.llama.healing import HealingState
from nexo_lsp.engines.llama.loading import LoadedModel
from nexo_lsp.engines.llama.messages import Done
from nexo_lsp.engines.llama.native import Context, NativeError
from nexo_lsp.engines.llama.prefix_cache import PrefixCache
from nexo_lsp.engines.llama.prefix_store import PrefixStore
from nexo_lsp.engines.llama.sampling import Sampler
from nexo_lsp.engines.llama.scheduler import STARVING_S, TOGETHER, Scheduler
from nexo_lsp.generation import ChatPrompt, Message, Priority, Request, Role

from .conftest import Bench
from .requests import background, chat

LONG = "def f(x):\n    return x + 1\n" * 30


@pytest.fixture
def narrow(loaded: LoadedModel) -> Bench:
    """Two sequences only."""
    loaded.context.sequences = 2
    return Bench(loaded)


@pytest.mark.parametrize("clients", [(1, 2, 3), (1, 1, 1)])
def test_equals_wait_for_each_other_where_places_are_few(narrow: Bench, clients: tuple[int, ...]) -> None:
    for job, client in enumerate(clients, start=1):
        narrow.scheduler.add(job, chat(f"{job}{LONG}", max_tokens=20), client=client)
    steps = 0
    while narrow.scheduler.busy:
        narrow.scheduler.step()
        steps += 1
        assert steps < 200, "they take each other's places, and read their prompts again and again"
    assert {job: narrow.done(job).tokens for job in (1, 2, 3)} == {1: 20, 2: 20, 3: 20}


def test_whoever_starves_takes_one_place(narrow: Bench) -> None:
    now = {job: chat(f"now {job}", max_tokens=400, priority=Priority.INTERACTIVE) for job in (1, 2)}
    alone = {job: narrow.alone(job, request) for job, request in now.items()}
    for job, request in now.items():
        narrow.scheduler.add(job, request, client=job)
    while narrow.scheduler.stats().running < 2:
        narrow.scheduler.step()
    for job in (3, 4):
        narrow.scheduler.add(job, background(f"{job}{LONG}", max_tokens=4), client=job)
    narrow.now += 2 * STARVING_S
    narrow.scheduler.step()
    assert narrow.scheduler.stats().running == 2
    narrow.run()
    assert {job: narrow.text(job) for job in now} == alone
    assert narrow.finished(3)
    assert narrow.finished(4)


def test_only_whole_static_prefixes_are_written_to_disk(loaded: LoadedModel, tmp_path: Path) -> None:
    """Jobs that are cancelled at different places would leave a file for each place."""
    bench = Bench(loaded)
    store = PrefixStore(tmp_path, "key", 2**24)
    cache = PrefixCache(loaded.context, loaded.context.sequences, store=store)
    bench.scheduler = Scheduler(loaded.model, loaded.context, bench.said.append, lambda: 0.0, cache=cache)
    messages = (Message(Role.SYSTEM, LONG), Message(Role.USER, "hi"))
    request = Request(ChatPrompt(messages, static_messages=1), max_tokens=2)
    bench.scheduler.add(1, request)
    while bench.scheduler.stats().metrics.cells < 100:
        bench.scheduler.step()
    bench.scheduler.cancel(1)
    assert store.load() == []
    bench.scheduler.add(2, request)
    bench.run()
    assert len(store.load()) == 1
    bench.scheduler.close()


def test_an_answer_that_cannot_go_on_takes_no_other_with_it(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(loaded)
    alone = {job: bench.alone(job, chat(f"number {job}")) for job in (1, 2, 3)}
    sample = Sampler.sample
    for job in alone:
        bench.scheduler.add(job, chat(f"number {job}", seed=job))

    def stuck(self: Sampler, context: Context, row: int) -> tuple[int, bytes]:
        if self is broken and bench.deltas(2) >= 5:
            raise NativeError("the grammar allows no token at all")
        return sample(self, context, row)

    broken = bench.scheduler._jobs[2].sampler
    monkeypatch.setattr(Sampler, "sample", stuck)
    bench.run()
    assert "the grammar allows no token" in bench.failed(2).message
    assert [bench.text(job) for job in (1, 3)] == [alone[1], alone[3]]
    assert bench.scheduler.stats().running == 0
    bench.scheduler.close()


def test_what_no_token_goes_on_with_fails_one_request(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(loaded)
    bench.scheduler.add(1, chat("never"))
    bench.scheduler.add(2, chat("fine", max_tokens=3))
    state = bench.scheduler._jobs[1].sampler._healing
    state.rest = b"zz"
    monkeypatch.setattr(HealingState, "allowed", lambda _self: np.zeros(0, np.int32))
    bench.run()
    assert "goes on with" in bench.failed(1).message
    assert bench.done(2).tokens == 3
    bench.scheduler.close()


def test_a_client_does_not_wait_for_all_of_anothers_answers(loaded: LoadedModel) -> None:
    bench = Bench(loaded)
    for job in range(TOGETHER + 2):
        bench.scheduler.add(job, chat(f"long {job}", max_tokens=200), client=1)
    while bench.scheduler.stats().running < TOGETHER:
        bench.scheduler.step()
    bench.scheduler.add(99, chat("short", max_tokens=10), client=2)
    bench.scheduler.step()
    assert bench.scheduler.stats().running == TOGETHER + 1
    bench.run()
    ends = [m.id for m in bench.said if isinstance(m, Done)]
    assert ends[0] == 99
    bench.scheduler.close()

"""A second model that guesses: it changes how many steps an answer takes, never the answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from nexo_lsp.engines.llama import draft_model
from nexo_lsp.engines.llama.draft_model import Draft, DraftModel, Times, load_draft
from nexo_lsp.engines.llama.drafting import DraftLength
from nexo_lsp.engines.llama.loading import LoadedModel, load
from nexo_lsp.engines.llama.messages import Load, Loaded, Shutdown, Start
from nexo_lsp.engines.llama.native import Context, Decoded, Library, NativeError, Slice
from nexo_lsp.engines.llama.scheduler import Scheduler
from nexo_lsp.engines.llama.worker import Worker
from nexo_lsp.generation import Priority, Request

from .conftest import Bench
from .requests import background, chat, infill, saying
from .tiny_gguf import write_tiny_model

CHEAP, DEAR = 0.001, 0.1
MakeDraft = Callable[..., DraftModel]
_STEP_S, _EXTRA_S = 0.02, 0.002
"""What steps of the first model are made to take, so that nothing depends on how quick this machine is."""
STEPS = tuple((size, _STEP_S + (size - 1) * _EXTRA_S) for size in (1, 2, 4, 8, 16))


@pytest.fixture(scope="session")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same vocabulary, and hardly ever the same opinion."""
    return write_tiny_model(tmp_path_factory.mktemp("other") / "other.gguf", seed=7)


class DraftBench(Bench):
    """A bench whose scheduler has a second model, and whose clock goes on with each evaluation."""

    def use(self, draft: DraftModel) -> None:
        self.scheduler.close()
        model, context = self.loaded.model, self.loaded.context
        self.scheduler = Scheduler(model, context, self.said.append, clock=lambda: self.now, draft=draft)

    def take_time(self, context: Context, step_s: float, extra_s: float = 0.0) -> None:
        evaluate = context.evaluate

        def evaluated(slices: Sequence[Slice]) -> Decoded:
            self.now += step_s + extra_s * (sum(len(part.tokens) for part in slices) - 1)
            return evaluate(slices)

        context.evaluate = evaluated  # type: ignore[method-assign]

    def ask(self, job: int, request: Request) -> str:
        self.scheduler.add(job, request)
        self.run()
        return self.text(job)

    @property
    def right(self) -> tuple[int, int]:
        """How many guesses were right, of how many."""
        metrics = self.scheduler.stats().metrics
        return metrics.accepted_tokens, metrics.drafted_tokens


@pytest.fixture
def bench(loaded: LoadedModel) -> Iterator[DraftBench]:
    made = DraftBench(loaded)
    made.take_time(loaded.context, _STEP_S, _EXTRA_S)
    yield made
    made.scheduler.close()


@pytest.fixture
def make_draft(library: Library, tiny_model: Path, bench: DraftBench) -> Iterator[MakeDraft]:
    """Second models; by default the first one itself, which is nearly always right."""
    opened: list[LoadedModel] = []

    def make(path: Path = tiny_model, tokens: int = 2048, guess_s: float = CHEAP) -> DraftModel:
        second = load(library, Load(str(path), tokens, threads=1, sequences=4), lambda _progress: True)
        opened.append(second)
        bench.take_time(second.context, guess_s)
        return DraftModel(second.model, second.context, Times(guess_s, STEPS), clock=lambda: bench.now)

    yield make
    for second in opened:
        second.close()


REQUESTS = {
    1: chat("one", max_tokens=60),
    2: infill("def f(x):\n", "\n", max_tokens=50),
    3: chat("drawn", max_tokens=60, temperature=0.8, seed=3),
    4: chat("json", json_schema=json.dumps({"type": "object", "properties": {"ok": {"type": "boolean"}}})),
}


@pytest.mark.parametrize("same", [True, False])
def test_answers_are_those_without_it(
    bench: DraftBench, make_draft: MakeDraft, tiny_model: Path, other_model: Path, same: bool
) -> None:
    alone = {job: bench.alone(job, request) for job, request in REQUESTS.items()}
    bench.use(make_draft(tiny_model if same else other_model))
    answers = {job: bench.ask(job, REQUESTS[job]) for job in (1, 2)}
    accepted, drafted = bench.right
    answers |= {job: bench.ask(job, REQUESTS[job]) for job in (3, 4)}
    assert answers == alone
    assert drafted > 0
    if same:
        assert accepted > drafted / 2
        assert bench.deltas(1) < 40, "several tokens came with one step"
    else:
        assert accepted < drafted / 4


def test_whoever_is_wrong_is_soon_no_longer_asked(
    bench: DraftBench, make_draft: MakeDraft, other_model: Path
) -> None:
    bench.use(make_draft(other_model))
    bench.ask(1, chat("long", max_tokens=40))
    first = bench.right[1]
    bench.ask(2, chat("longer", max_tokens=200))
    assert bench.right[1] - first < 3 * first


def test_a_guess_that_costs_more_than_it_saves_is_not_made(bench: DraftBench, make_draft: MakeDraft) -> None:
    bench.use(make_draft(guess_s=DEAR))
    bench.ask(1, chat("dear", max_tokens=40))
    assert bench.right == (0, 0)


def test_a_known_text_is_asked_first(bench: DraftBench, make_draft: MakeDraft, other_model: Path) -> None:
    text = "what an answer repeats is known, and so the second model is not asked"
    bench.use(make_draft(other_model))
    assert text in bench.ask(1, saying(text, prediction=f'"{text}"'))
    accepted, drafted = bench.right
    assert accepted > drafted / 2


def test_a_cancel_in_between_leaves_nothing_behind(bench: DraftBench, make_draft: MakeDraft) -> None:
    after = bench.alone(2, chat("after", max_tokens=60))
    bench.use(make_draft())
    bench.scheduler.add(1, chat("before", max_tokens=400))
    while bench.deltas(1) < 5:
        bench.scheduler.step()
    bench.scheduler.cancel(1)
    assert bench.ask(2, chat("after", max_tokens=60)) == after


def test_a_more_urgent_answer_comes_between(bench: DraftBench, make_draft: MakeDraft) -> None:
    low, high = background("low", max_tokens=120), chat("high", max_tokens=60, priority=Priority.INTERACTIVE)
    alone = bench.alone(1, low), bench.alone(2, high)
    bench.use(make_draft())
    bench.scheduler.add(1, low)
    while bench.deltas(1) < 3:
        bench.scheduler.step()
    bench.scheduler.add(2, high)
    bench.run()
    assert (bench.text(1), bench.text(2)) == alone


def test_an_answer_that_lost_its_sequence_goes_on(
    library: Library, tiny_model: Path, make_draft: MakeDraft
) -> None:
    """The first model's context is too small for both, so one gives way and is read again."""
    small = load(library, Load(str(tiny_model), 512, threads=1, sequences=1), lambda _progress: True)
    bench = DraftBench(small)
    bench.take_time(small.context, _STEP_S, _EXTRA_S)
    low, high = (
        background("l" * 150, max_tokens=100),
        chat("h" * 150, max_tokens=50, priority=Priority.INTERACTIVE),
    )
    alone = bench.alone(1, low), bench.alone(2, high)
    bench.use(make_draft())
    bench.scheduler.add(1, low)
    while not bench.deltas(1):
        bench.scheduler.step()
    bench.scheduler.add(2, high)
    bench.run()
    assert (bench.text(1), bench.text(2)) == alone
    bench.scheduler.close()
    small.close()


def test_several_answers_at_once_are_written_without_it(bench: DraftBench, make_draft: MakeDraft) -> None:
    requests = {job: chat(f"n {job}", max_tokens=30 + 20 * job) for job in range(4)}
    alone = {job: bench.alone(job, request) for job, request in requests.items()}
    bench.use(make_draft())
    for job, request in requests.items():
        bench.scheduler.add(job, request)
    bench.run()
    assert {job: bench.text(job) for job in requests} == alone
    assert bench.right[0] > 0, "the last one was alone for a while"


def test_a_long_prompt_is_read_in_chunks_and_only_if_the_answer_may_be_long(
    bench: DraftBench, make_draft: MakeDraft
) -> None:
    prompt = "x = 1\n" * 200
    alone = bench.alone(1, chat(prompt, max_tokens=250))
    bench.use(make_draft())
    assert bench.ask(1, chat(prompt, max_tokens=250)) == alone
    # The first tokens come one by one, until the second model has read the prompt too.
    assert bench.right[1] > 0
    bench.use(make_draft(guess_s=0.004))
    bench.ask(2, chat(prompt, max_tokens=3))
    assert bench.right == (0, 0)


def test_its_context_is_smaller_than_the_first_ones(bench: DraftBench, make_draft: MakeDraft) -> None:
    """Jobs that it has no room for are answered without it; older ones make room for newer ones."""
    requests = {job: chat(f"{job}" * 90, max_tokens=40) for job in range(6)}
    requests[9] = chat("9" * 600, max_tokens=40)
    alone = {job: bench.alone(job, request) for job, request in requests.items()}
    bench.use(make_draft(tokens=256))
    assert {job: bench.ask(job, request) for job, request in requests.items() if job != 9} == {
        job: text for job, text in alone.items() if job != 9
    }
    before = bench.right[1]
    assert before > 0
    assert bench.ask(9, requests[9]) == alone[9]
    assert bench.right[1] == before


def test_a_second_model_that_fails_is_not_asked_again(
    bench: DraftBench,
    make_draft: MakeDraft,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    alone = bench.alone(1, chat("fails", max_tokens=40))
    draft = make_draft()
    bench.use(draft)
    calls: list[int] = []

    def failing(_slices: Sequence[Slice]) -> Decoded:
        calls.append(1)
        raise NativeError("broken")

    monkeypatch.setattr(draft._context, "evaluate", failing)
    assert bench.ask(1, chat("fails", max_tokens=40)) == alone
    assert len(calls) == 1
    assert "broken" in capfd.readouterr().err


def test_something_more_urgent_ends_the_guessing(library: Library, tiny_model: Path) -> None:
    second = load(library, Load(str(tiny_model), 512, threads=1), lambda _progress: True)
    urgent = False
    times = Times(CHEAP, STEPS)
    draft = DraftModel(second.model, second.context, times, stop=lambda: urgent, clock=lambda: 0.0)
    draft.guess_for(DraftLength())
    tokens = second.model.tokenize("some text", special=False)
    assert len(draft.guess(1, tokens, 4, 100, 1)) > 1
    urgent = True
    assert len(draft.guess(1, tokens, 4, 100, 1)) == 1
    second.close()


def test_what_it_reads_is_given_up_for_something_more_urgent(
    bench: DraftBench, make_draft: MakeDraft, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads more at a time than somebody who types should wait for."""
    request = background("x = 1\n" * 40, max_tokens=100)
    alone = bench.alone(1, request)
    draft = make_draft()
    bench.use(draft)
    evaluate = draft._context.evaluate
    seen: list[Decoded] = []

    def interrupted(slices: Sequence[Slice]) -> Decoded:
        assert bench.scheduler.urgent(Start(2, chat("now", priority=Priority.INTERACTIVE)))
        if len(seen) < 3:
            bench.scheduler.interrupt()
        seen.append(evaluate(slices))
        return seen[-1]

    monkeypatch.setattr(draft._context, "evaluate", interrupted)
    assert bench.ask(1, request) == alone
    assert seen[:3] == [Decoded.INTERRUPTED] * 3
    assert set(seen[3:]) == {Decoded.DONE}
    assert bench.right[0] > 0


def loading(library: Library, first: LoadedModel, path: Path) -> Draft:
    return load_draft(library, Load(str(first.path), 1024, draft_path=str(path)), first, lambda: False)


def test_what_cannot_guess_is_refused_with_its_reason(
    library: Library, loaded: LoadedModel, tmp_path: Path, other_model: Path, half_a_model: Path
) -> None:
    missing = loading(library, loaded, tmp_path / "none.gguf")
    assert missing.model is None
    assert "cannot be read" in missing.note
    assert "damaged" in loading(library, loaded, half_a_model).note
    for number, more in enumerate([("<|more|>",), ()]):
        path = write_tiny_model(tmp_path / f"{number}.gguf", more=more)
        note = loading(library, loaded, path).note
        assert ("vocabulary is another one" in note) is bool(more)
    good = loading(library, loaded, other_model)
    assert good.model is not None
    assert good.note == "other guesses what comes next"
    good.close()


def test_the_worker_loads_it_and_says_so(tiny_model: Path, other_model: Path, tmp_path: Path) -> None:
    odd = write_tiny_model(tmp_path / "odd.gguf", more=("<|odd|>",))
    for path, words in ((other_model, "guesses what"), (odd, "does not guess")):
        request = chat("hello", max_tokens=20)
        inbox = iter(
            [
                Load(str(tiny_model), 1024, threads=1, draft_path=str(path)),
                Start(1, request),
                None,
                *[None] * 60,
            ]
        )
        said: list[object] = []
        Worker(lambda _wait, inbox=inbox: next(inbox, Shutdown()), said.append).run()
        (info,) = [message for message in said if isinstance(message, Loaded)]
        assert words in info.notes[-1]
        assert type(said[-1]).__name__ in {"Stats", "Done"}
        assert any(type(message).__name__ == "Done" for message in said)


def test_common_beginnings() -> None:
    common = draft_model._common
    assert [
        common(a, b) for a, b in [([], [1]), ([1, 2], [1, 2, 3]), ([1, 2, 3], [1, 9, 3]), ([5], [6])]
    ] == [0, 2, 1, 0]

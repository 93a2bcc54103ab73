"""Several functions of a file are reviewed at the same time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from itertools import pairwise

import pytest

from nexo_lsp.documents import Snapshot
from nexo_lsp.engines.llama.grammar import grammar
from nexo_lsp.errors import PromptTooLong
from nexo_lsp.generation import ChatPrompt, FinishReason, Operation, Piece, Request, Usage
from nexo_lsp.pipeline.findings import Finding
from nexo_lsp.pipeline.review import ReviewProgress
from tests.unit.pipeline.conftest import Desk, MakeDesk

Make = Callable[..., dict[str, str]]


def places(snapshot: Snapshot, findings: tuple[Finding, ...]) -> list[tuple[str, int]]:
    return [(item.quote, snapshot.position(item.span.start).line) for item in findings]


def functions(count: int) -> str:
    return "".join(f"def f{n}(a):\n    return a / {n}\n\n\n" for n in range(count))


async def test_four_functions_are_asked_about_at_once(make_desk: MakeDesk) -> None:
    desk = await make_desk({"hang": True})
    snapshot = desk.open(functions(6))
    seen: list[ReviewProgress] = []
    task = asyncio.create_task(desk.app.reviews.review(snapshot.uri, progress=seen.append))
    await desk.asked(4)
    for _ in range(100):
        await asyncio.sleep(0)
    assert len(desk.events()) == 4
    assert [(update.done, update.total, update.symbol) for update in seen] == [
        (0, 6, "f0"), (0, 6, "f1"), (0, 6, "f2"), (0, 6, "f3"),
    ]  # fmt: skip
    desk.app.stop()
    assert not (await task).complete
    await desk.idle()
    assert len(desk.events("cancel")) == 4


async def test_an_edit_ends_only_the_work_on_its_function(make_desk: MakeDesk) -> None:
    desk = await make_desk({"hang": True})
    snapshot = desk.open(functions(4))
    first = asyncio.create_task(desk.app.reviews.review(snapshot.uri))
    await desk.asked(4)
    desk.edit(snapshot.uri, "a / 2", "a / 22")
    second = asyncio.create_task(desk.app.reviews.review(snapshot.uri))
    await desk.asked(5)
    assert "a / 22" in desk.events()[4]["prompt"]
    assert len(desk.events("cancel")) == 1
    desk.app.stop()
    for task in (first, second):
        assert not (await task).complete
    await desk.idle()
    assert len(desk.events()) == 5, "the other three were joined"


class OneByOne:
    """Answers in the order in which a test lets it; the mock engine keeps the order of the requests."""

    def __init__(self, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answers: dict[str, asyncio.Future[str]] = {}
        self.requests: list[Request] = []
        monkeypatch.setattr(desk.app.engine(Operation.REVIEW), "stream", self.stream)

    async def stream(self, request: Request) -> AsyncGenerator[Piece, None]:
        self.requests.append(request)
        assert isinstance(request.prompt, ChatPrompt)
        name = request.prompt.messages[-1].content.rpartition("def ")[2].partition("(")[0]
        answer = self.answers[name] = asyncio.get_running_loop().create_future()
        yield Piece(await answer, 1, FinishReason.STOP, Usage())

    async def asked(self, count: int) -> None:
        while len(self.requests) < count:  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0)

    def answer(self, name: str, *findings: dict[str, str]) -> None:
        self.answers[name].set_result(json.dumps({"findings": findings}))


async def test_answers_are_shown_as_they_come(
    make_desk: MakeDesk, finding: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = await make_desk()
    engine = OneByOne(desk, monkeypatch)
    snapshot = desk.open(functions(5))
    shown: list[list[str]] = []
    desk.app.reviews.on_findings = lambda _of, found: shown.append([item.symbol for item in found])
    seen: list[ReviewProgress] = []
    task = asyncio.create_task(desk.app.reviews.review(snapshot.uri, progress=seen.append))
    await engine.asked(4)
    engine.answer("f3", finding("return a / 3"))
    await engine.asked(5)
    assert shown == [["f3"]]
    assert (seen[-1].done, seen[-1].symbol) == (1, "f4")
    desk.insert(snapshot.uri, 0, "import os\n")
    for name in ("f0", "f4", "f1", "f2"):
        engine.answer(name, finding(f"return a / {name[1]}"))
    report = await task
    assert [item.symbol for item in report.findings] == ["f0", "f1", "f2", "f3", "f4"]
    now = desk.app.documents.get(snapshot.uri)
    assert [line for _, line in places(now, report.findings)] == [2, 6, 10, 14, 18]
    assert all(len(some) <= len(more) for some, more in pairwise(shown))
    assert (seen[-1].done, seen[-1].total) == (5, 5)


async def test_an_answer_that_fails_does_not_hide_the_others(
    make_desk: MakeDesk, finding: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = await make_desk()
    engine = OneByOne(desk, monkeypatch)
    snapshot = desk.open(functions(6))
    task = asyncio.create_task(desk.app.reviews.review(snapshot.uri))
    await engine.asked(4)
    engine.answers["f1"].set_exception(PromptTooLong("It is too long."))
    engine.answer("f0", finding("return a / 0"))
    engine.answer("f2")
    engine.answer("f3", finding("return a / 3"))
    with pytest.raises(PromptTooLong):
        await task
    assert [item.symbol for item in desk.app.reviews.findings(snapshot.uri)] == ["f0", "f3"]
    assert len(engine.requests) == 4, "nothing more is begun after a failure"


async def test_the_same_code_in_two_places_is_asked_about_once(
    make_desk: MakeDesk, finding: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = await make_desk()
    engine = OneByOne(desk, monkeypatch)
    snapshot = desk.open(functions(1) * 2 + functions(2)[len(functions(1)) :])
    task = asyncio.create_task(desk.app.reviews.review(snapshot.uri))
    await engine.asked(2)
    engine.answer("f0", finding("return a / 0"))
    engine.answer("f1")
    report = await task
    assert report.complete
    assert places(snapshot, report.findings) == [("return a / 0", 1), ("return a / 0", 5)]
    assert len(engine.requests) == 2


async def test_the_usual_answer_is_foretold_letter_by_letter(
    make_desk: MakeDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = await make_desk()
    engine = OneByOne(desk, monkeypatch)
    snapshot = desk.open(functions(1))
    task = asyncio.create_task(desk.app.reviews.review(snapshot.uri))
    await engine.asked(1)
    (request,) = engine.requests
    engine.answer("f0")
    await task
    assert request.prediction == json.dumps({"findings": []})
    assert request.json_schema is not None
    root = grammar(request.json_schema).splitlines()[0]
    assert root.startswith('root ::= "{" "\\"findings\\": " ("[]" | ')
    assert root.endswith(' "}"')

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import AsyncGenerator

import pytest

from nexo_lsp.engines.mock import MockEngine
from nexo_lsp.generation import Piece, Request
from nexo_lsp.pipeline.code import ends_of_block, without_repetition
from nexo_lsp.pipeline.complete import Completion, Rhythm, Selected
from nexo_lsp.text import Span
from tests.unit.pipeline.conftest import Desk, MakeDesk

SOURCE = "def mean(values):\n    total = \n    return total\n"


async def complete(desk: Desk, uri: str, needle: str, *, explicit: bool = True) -> Completion | None:
    text = desk.app.documents.get(uri).text
    return await desk.app.completions.complete(uri, text.index(needle) + len(needle), explicit=explicit)


async def test_a_suggestion_stands_at_the_cursor(make_desk: MakeDesk) -> None:
    desk = await make_desk({"answer": "sum(values)\n    return 3"})
    snapshot = desk.open(SOURCE)
    found = await complete(desk, snapshot.uri, "total = ")
    assert found is not None
    at = SOURCE.index("total = ") + len("total = ")
    assert (found.text, found.span) == ("sum(values)", Span(at, at)), "one line, since more code follows"
    assert desk.events()[0]["kind"] == "infill"


async def test_what_is_typed_along_is_answered_from_memory(make_desk: MakeDesk) -> None:
    desk = await make_desk({"answer": "sum(values)"})
    snapshot = desk.open(SOURCE)
    await complete(desk, snapshot.uri, "total = ")
    desk.edit(snapshot.uri, "total = ", "total = su")
    found = await complete(desk, snapshot.uri, "total = su", explicit=False)
    assert found is not None
    assert found.text == "m(values)"
    desk.edit(snapshot.uri, "total = su", "total = sum(values)")
    assert await complete(desk, snapshot.uri, "total = sum(values)", explicit=False) is None
    assert len(desk.events()) == 1


async def test_a_newer_request_answers_the_older_one_at_once(make_desk: MakeDesk) -> None:
    desk = await make_desk({"hang": True, "times": 1}, {"answer": "sum(values)"})
    snapshot = desk.open(SOURCE)
    older = asyncio.create_task(complete(desk, snapshot.uri, "total = "))
    await desk.asked()
    newer = asyncio.create_task(complete(desk, snapshot.uri, "total = "))
    assert await older is None
    found = await newer
    assert found is not None
    assert len(desk.events("cancel")) == 1


async def test_typing_on_waits_for_a_pause_and_an_explicit_request_does_not(make_desk: MakeDesk) -> None:
    desk = await make_desk({"answer": "sum(values)"}, NEXO_COMPLETION_DEBOUNCE_MS="10000")
    snapshot = desk.open(SOURCE)
    waiting = asyncio.create_task(complete(desk, snapshot.uri, "total = ", explicit=False))
    await asyncio.sleep(0)
    found = await complete(desk, snapshot.uri, "total = ")
    assert found is not None
    assert await waiting is None
    assert len(desk.events()) == 1


async def test_cancelling_stops_the_engine(make_desk: MakeDesk) -> None:
    desk = await make_desk({"hang": True})
    snapshot = desk.open(SOURCE)
    task = asyncio.create_task(complete(desk, snapshot.uri, "total = "))
    await desk.asked()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    while not desk.events("cancel"):  # noqa: ASYNC110 - the log is a file, it has no event
        await asyncio.sleep(0)


async def test_the_selected_entry_of_the_editors_list_is_taken_for_typed(make_desk: MakeDesk) -> None:
    desk = await make_desk({"match": "total = values.cou<FILL>", "answer": "nt(1)"})
    snapshot = desk.open(SOURCE.replace("total = ", "total = values.c"))
    start = snapshot.text.index("values.c") + len("values.")
    found = await desk.app.completions.complete(
        snapshot.uri, start + 1, explicit=False, selected=Selected(Span(start, start + 1), "cou")
    )
    assert found is not None
    assert (found.text, found.span) == ("count(1)", Span(start, start + 1))


async def test_nothing_is_suggested_inside_a_word_or_where_it_is_off(make_desk: MakeDesk) -> None:
    desk = await make_desk({"answer": "x"})
    snapshot = desk.open(SOURCE)
    assert await complete(desk, snapshot.uri, "def me", explicit=False) is None
    off = await make_desk({"answer": "x"}, NEXO_COMPLETION_ENABLED="false")
    assert await complete(off, off.open(SOURCE).uri, "total = ") is None
    secret = desk.open("TOKEN=\n", ".env", "dotenv")
    assert await complete(desk, secret.uri, "TOKEN=") is None
    assert desk.events() == []


async def test_a_block_ends_where_the_indentation_ends(make_desk: MakeDesk) -> None:
    desk = await make_desk({"answer": "for v in values:\n        yield v\n\n\ndef next():\n    pass"})
    snapshot = desk.open("def each(values):\n    \n")
    found = await complete(desk, snapshot.uri, "values):\n    ")
    assert found is not None
    assert found.text == "for v in values:\n        yield v"


@pytest.mark.parametrize(
    ("text", "after", "kept"),
    [
        ("values)", ")\n", "values"),
        ("values) / 2", ") / 2\n", "values"),
        ("f(values)", ")\n", "f(values)"),
        ("a\n    return total", "\n    return total\n", "a"),
        ("a\n    b", "\n    c\n", "a\n    b"),
        ('x"', '"\n', "x"),
        ('"x"', '")\n', '"x"'),
        ("x", "", "x"),
    ],
)
def test_what_follows_the_cursor_is_not_repeated(text: str, after: str, kept: str) -> None:
    assert without_repetition(text, after) == kept


@pytest.mark.parametrize(
    ("text", "indent", "kept"),
    [
        ("a\n  b\nc", "  ", "a\n  b"),
        ("a\n\n  b\n\n\n  c", "  ", "a\n\n  b"),
        ("a", "    ", "a"),
        ("a\nb", "", "a\nb"),
    ],
)
def test_ends_of_block(text: str, indent: str, kept: str) -> None:
    assert text[: ends_of_block(text, indent)] == kept


def test_the_pause_follows_the_typing_and_the_latency() -> None:
    now = [0.0]
    rhythm = Rhythm(lambda: now[0])

    def type_keys(gap: float) -> None:
        for _ in range(12):
            now[0] += gap
            rhythm.keystroke()

    type_keys(0.1)
    quick = rhythm.pause_s()
    type_keys(0.3)
    slow = rhythm.pause_s()
    assert slow > quick
    rhythm.answered(5.0)
    assert rhythm.pause_s() > slow, "a slow engine is asked more rarely"
    rhythm.answered(0.0)
    assert 0.05 <= rhythm.pause_s() <= 0.8


async def test_windows_line_ends_are_not_shown_to_the_model_and_typing_along_works(
    make_desk: MakeDesk,
) -> None:
    desk = await make_desk({"answer": "a = 1\n    b = 2\n"})
    snapshot = desk.open("def f():\r\n    \r\n")
    found = await complete(desk, snapshot.uri, "f():\r\n    ")
    assert found is not None
    assert found.text == "a = 1\n    b = 2"
    assert "\r" not in desk.events()[0]["prompt"]
    desk.edit(snapshot.uri, "    \r\n", "    a = 1\r\n    b\r\n")
    along = await complete(desk, snapshot.uri, "    b", explicit=False)
    assert along is not None
    assert along.text == " = 2"
    assert len(desk.events()) == 1


async def test_an_explicit_request_asks_on_where_a_suggestion_ended(make_desk: MakeDesk) -> None:
    desk = await make_desk({"answer": "sum(values)", "times": 1}, {"answer": " / 2"})
    snapshot = desk.open(SOURCE)
    await complete(desk, snapshot.uri, "total = ")
    desk.edit(snapshot.uri, "total = ", "total = sum(values)")
    assert await complete(desk, snapshot.uri, "total = sum(values)", explicit=False) is None
    found = await complete(desk, snapshot.uri, "total = sum(values)")
    assert found is not None
    assert found.text == " / 2"


async def test_after_a_suggestion_was_taken_the_next_one_is_asked_for(make_desk: MakeDesk) -> None:
    desk = await make_desk(
        {"answer": "sum(values)", "times": 1}, {"answer": " / 2"}, NEXO_COMPLETION_DEBOUNCE_MS="0"
    )
    snapshot = desk.open(SOURCE)
    found = await complete(desk, snapshot.uri, "total = ")
    assert found is not None
    desk.edit(snapshot.uri, "total = ", "total = sum(values)")
    desk.app.completions.accepted(found.id)
    desk.app.completions.accepted("unheard of")
    more = await complete(desk, snapshot.uri, "total = sum(values)", explicit=False)
    assert more is not None
    assert more.text == " / 2"


async def test_an_edit_ends_the_work_on_what_would_be_thrown_away(make_desk: MakeDesk) -> None:
    desk = await make_desk({"hang": True})
    snapshot = desk.open(SOURCE)
    task = asyncio.create_task(complete(desk, snapshot.uri, "total = "))
    await desk.asked()
    desk.edit(snapshot.uri, "total = ", "total = x")
    assert await task is None
    while not desk.events("cancel"):  # noqa: ASYNC110 - the log is a file, it has no event
        await asyncio.sleep(0)


async def test_nothing_is_asked_inside_an_endless_line(make_desk: MakeDesk) -> None:
    desk = await make_desk({"answer": "x"})
    snapshot = desk.open("x=1;" * 5_000 + "y=\n", "a.min.js", "javascript")
    assert await complete(desk, snapshot.uri, "y=") is None
    assert desk.events() == []


async def test_what_is_remembered_of_a_huge_file_is_small(make_desk: MakeDesk) -> None:
    desk = await make_desk({"answer": "sum(values)"})
    snapshot = desk.open("# a comment\n" * 100_000 + SOURCE)
    tracemalloc.start()
    try:
        for _ in range(4):
            await complete(desk, snapshot.uri, "total = ")
            desk.edit(snapshot.uri, "total = ", "totals = total = ")
        kept = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, "*complete.py")])
    finally:
        tracemalloc.stop()
    assert sum(trace.size for trace in kept.traces) < 200_000


async def test_a_suggestion_that_was_cut_off_ends_with_a_whole_line(make_desk: MakeDesk) -> None:
    desk = await make_desk({"answer": "a = 1\n    b = 2\n    c = three"}, NEXO_COMPLETION_MAX_TOKENS="8")
    snapshot = desk.open("def f():\n    \n")
    found = await complete(desk, snapshot.uri, "f():\n    ")
    assert found is not None
    assert found.text == "a = 1\n    b = 2"


@pytest.mark.parametrize(
    ("source", "cursor", "answer", "kept"),
    [
        (
            "import os\n\n",
            "os\n\n",
            "def a():\n    return 1\n\ndef b():\n    return 2",
            "def a():\n    return 1",
        ),
        (
            "class A:\n    x = 1\n\n    \n",
            "1\n\n    ",
            "def a(self):\n        return 1\n\n    def b(self):\n        return 2\n",
            "def a(self):\n        return 1",
        ),
        ("import os\n\n", "os\n\n", "a = 1\nb = 2", "a = 1\nb = 2"),
    ],
)
async def test_a_suggested_definition_is_the_last_thing_suggested(
    make_desk: MakeDesk, source: str, cursor: str, answer: str, kept: str
) -> None:
    desk = await make_desk({"answer": answer})
    found = await complete(desk, desk.open(source).uri, cursor)
    assert found is not None
    assert found.text == kept


async def test_what_the_model_is_shown_begins_and_ends_at_the_same_places_while_lines_are_typed(
    make_desk: MakeDesk,
) -> None:
    desk = await make_desk({"answer": "x"})
    lines = [f"line_{n} = compute(value_{n}, value_{n + 1})\n" for n in range(300)]
    snapshot = desk.open("".join(lines))
    at = lines[150]
    await complete(desk, snapshot.uri, at)
    for n in range(12):
        typed = f"typed_{n} = compute(another_{n})\n"
        desk.edit(snapshot.uri, at, at + typed)
        at += typed
        await complete(desk, snapshot.uri, at)
    prompts = [event["prompt"].split("<FILL>") for event in desk.events()]
    assert len(prompts) == 13
    assert len({prefix[:100] for prefix, _ in prompts}) == 1
    assert len({suffix for _, suffix in prompts}) == 1
    desk.app.completions.closed(snapshot.uri)
    await complete(desk, snapshot.uri, at)
    assert not desk.events()[-1]["prompt"].startswith(prompts[0][0][:100]), "a new window is small again"


async def test_the_last_suggestion_at_a_place_is_what_the_next_one_may_repeat(
    make_desk: MakeDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Request] = []
    stream = MockEngine.stream

    def noted(self: MockEngine, request: Request) -> AsyncGenerator[Piece, None]:
        asked.append(request)
        return stream(self, request)

    monkeypatch.setattr(MockEngine, "stream", noted)
    desk = await make_desk({"answer": "sum(values)"})
    snapshot = desk.open(SOURCE)
    await complete(desk, snapshot.uri, "total = ")
    desk.edit(snapshot.uri, "total = ", "total = 2 * ")
    await complete(desk, snapshot.uri, "total = 2 * ")
    await complete(desk, snapshot.uri, "return total")
    assert [request.prediction for request in asked] == ["", "sum(values)", ""]


async def test_what_the_editor_closed_is_not_shown_and_not_repeated(make_desk: MakeDesk) -> None:
    desk = await make_desk({"answer": "values) / len(values)"})
    snapshot = desk.open(SOURCE)
    await complete(desk, snapshot.uri, "total = ")
    desk.edit(snapshot.uri, "total = ", 'total = f("a", sum())')
    found = await complete(desk, snapshot.uri, "sum(")
    assert found is not None
    assert found.text == "values"
    assert len({event["prompt"].partition("<FILL>")[2] for event in desk.events()}) == 1

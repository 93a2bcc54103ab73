from __future__ import annotations

import asyncio

import pytest

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

from __future__ import annotations

import asyncio

from nexo_lsp.pipeline.hover import HoverAnswer
from tests.unit.pipeline.conftest import Desk, MakeDesk

SOURCE = '''def greet(name: str) -> str:
    """Say hello.

    Loudly.
    """
    return f"HELLO {name}"


greet("you")  # greet them
'''


async def hover(desk: Desk, uri: str, needle: str) -> HoverAnswer | None:
    return await desk.app.hovers.hover(uri, desk.app.documents.get(uri).text.index(needle))


async def test_signature_and_docs_come_from_the_tree(make_desk: MakeDesk) -> None:
    desk = await make_desk(NEXO_HOVER_EXPLAIN="false")
    answer = await hover(desk, desk.open(SOURCE).uri, "greet(name")
    assert answer is not None
    assert answer.signature == "def greet(name: str) -> str:"
    assert answer.doc == "Say hello.\n\nLoudly."
    assert answer.explanation is None
    assert desk.events() == []


async def test_a_call_shows_what_it_calls_also_in_another_document(make_desk: MakeDesk) -> None:
    desk = await make_desk({"answer": "It greets."}, NEXO_HOVER_WAIT_MS="20000")
    desk.open(SOURCE, "lib.py")
    other = desk.open("from lib import greet\ngreet('me')\n", "main.py")
    answer = await hover(desk, other.uri, "greet('me')")
    assert answer is not None
    assert (answer.signature, answer.explanation) == ("def greet(name: str) -> str:", "It greets.")


async def test_nothing_is_said_of_comments_strings_and_unknown_names(make_desk: MakeDesk) -> None:
    desk = await make_desk()
    snapshot = desk.open(SOURCE)
    for needle in ("greet them", "HELLO", '"you"', "return"):
        assert await hover(desk, snapshot.uri, needle) is None


async def test_a_late_explanation_is_there_the_next_time(make_desk: MakeDesk) -> None:
    desk = await make_desk({"answer": "It greets loudly.", "delay_ms": 5}, NEXO_HOVER_WAIT_MS="0")
    snapshot = desk.open(SOURCE)
    first = await hover(desk, snapshot.uri, "greet(name")
    assert first is not None
    assert first.pending
    while not desk.events("finish"):  # noqa: ASYNC110 - the log is a file, it has no event
        await asyncio.sleep(0)
    second = await hover(desk, snapshot.uri, "greet(name")
    while second is not None and second.pending:
        second = await hover(desk, snapshot.uri, "greet(name")
    assert second is not None
    assert second.explanation == "It greets loudly."
    assert len(desk.events()) == 1


async def test_an_asker_who_leaves_does_not_stop_the_explanation(make_desk: MakeDesk) -> None:
    desk = await make_desk({"answer": "It greets loudly.", "delay_ms": 5}, NEXO_HOVER_WAIT_MS="20000")
    snapshot = desk.open(SOURCE)
    leaving = asyncio.create_task(hover(desk, snapshot.uri, "greet(name"))
    await desk.asked()
    leaving.cancel()
    answer = await hover(desk, snapshot.uri, "greet(name")
    assert answer is not None
    assert answer.explanation == "It greets loudly."
    assert len(desk.events()) == 1


async def test_editing_the_symbol_ends_the_work_and_editing_elsewhere_does_not(make_desk: MakeDesk) -> None:
    desk = await make_desk({"hang": True}, NEXO_HOVER_WAIT_MS="0")
    snapshot = desk.open(SOURCE)
    await hover(desk, snapshot.uri, "greet(name")
    await desk.asked()
    desk.insert(snapshot.uri, 0, "import os\n")
    await asyncio.sleep(0)
    assert desk.events("cancel") == []
    desk.edit(snapshot.uri, "HELLO", "HI")
    while not desk.events("cancel"):  # noqa: ASYNC110 - the log is a file, it has no event
        await asyncio.sleep(0)


async def test_a_failure_is_a_note_and_the_next_hover_tries_again(make_desk: MakeDesk) -> None:
    desk = await make_desk({"crash": True, "times": 1}, {"answer": "It greets."}, NEXO_HOVER_WAIT_MS="20000")
    snapshot = desk.open(SOURCE)
    first = await hover(desk, snapshot.uri, "greet(name")
    assert first is not None
    assert first.explanation is None
    assert first.note
    second = await hover(desk, snapshot.uri, "greet(name")
    assert second is not None
    assert second.explanation == "It greets."


async def test_a_secret_file_gets_no_explanation(make_desk: MakeDesk) -> None:
    desk = await make_desk()
    answer = await hover(desk, desk.open(SOURCE, "secrets.py").uri, "greet(name")
    assert answer is not None
    assert answer.explanation is None
    assert desk.events() == []

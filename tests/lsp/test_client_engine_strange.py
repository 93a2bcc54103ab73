"""A client whose engine comes and goes, says too much, too little, or nonsense."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest
from pygls.exceptions import JsonRpcException

from tests.lsp.conftest import StartEditor, StartEngineClient
from tests.lsp.engine_client import CODE, ENGINE, EVERYTHING, LAST, MANUAL, NOTHING, ask, status_when
from tests.lsp.raw import INITIALIZE, start_raw


async def test_pieces_are_put_into_order_and_each_counts_once(start_engine_client: StartEngineClient) -> None:
    client = await start_engine_client(None)
    uri = client.editor.open("a.py", CODE)
    asked = ask(client.editor, uri)
    params = await client.until_asked()
    client.end(params.id, 4)
    client.piece(params.id, 3, "b")
    client.piece(params.id, 1, " ")
    client.piece(params.id, 0, "a")
    client.piece(params.id, 0, "a")
    client.piece(params.id, 1, "x")
    client.piece(params.id, 2, "+ ")
    (item,) = await asked
    assert item.insert_text == "a + b"


async def test_junk_is_passed_over(start_engine_client: StartEngineClient) -> None:
    client = await start_engine_client(None)
    editor = client.editor
    uri = editor.open("a.py", CODE)
    asked = ask(editor, uri)
    params = await client.until_asked()
    good = {"id": params.id, "sequence": 0, "text": "junk"}
    for junk in (
        None, [], 7, {}, {"id": params.id}, {**good, "text": 5}, {**good, "text": None}, {**good, "id": str(params.id)},
        {**good, "sequence": -1}, {**good, "sequence": 1.5}, {**good, "id": 999}, {**good, "id": -1}, {**good, "id": True},
        {**good, "tokens": "many"},
    ):  # fmt: skip
        client.junk("nexo/engine/piece", junk)
    client.junk("nexo/engine/end", {"id": params.id, "finish": "sideways", "sequence": 0})
    client.junk("nexo/engine/announce", {"available": "no"})
    client.junk("nexo/engine/announce", {"available": True, "local": "false"})
    client.junk("nexo/engine/unheard", {"of": 1})
    client.answer(params.id, "a + b")
    client.answer(params.id, "after", "the end")
    (item,) = await asked
    assert item.insert_text == "a + b"
    assert editor.messages() == []
    assert (await editor.request("nexo/status")).model == "scripted"


async def test_a_flood_is_cut_off(start_engine_client: StartEngineClient) -> None:
    client = await start_engine_client(None)
    editor = client.editor
    uri = editor.open("a.py", LAST)
    review = asyncio.ensure_future(editor.review(uri))
    params = await client.until_asked()
    # The first piece is missing, so nothing of it can be read.
    for sequence in range(1, 5000):
        client.piece(params.id, sequence, "flood")
    await client.until_cancelled(params.id)
    with pytest.raises(JsonRpcException, match="cut off"):
        await review
    other = editor.open("b.py", CODE)
    asked = ask(editor, other)
    client.answer((await client.until_asked(2)).id, "a + b")
    assert (await asked)[0].insert_text == "a + b"


async def test_an_answer_without_end_is_ended_at_its_length(start_engine_client: StartEngineClient) -> None:
    client = await start_engine_client(None)
    uri = client.editor.open("a.py", CODE)
    asked = ask(client.editor, uri)
    params = await client.until_asked()
    for sequence in range(params.maxTokens + 20):
        client.piece(params.id, sequence, "a")
    await client.until_cancelled(params.id)
    await asked


async def test_a_failure_is_told_in_the_clients_words(start_engine_client: StartEngineClient) -> None:
    client = await start_engine_client(None)
    editor = client.editor
    uri = editor.open("a.py", LAST)
    review = asyncio.ensure_future(editor.review(uri))
    params = await client.until_asked()
    client.end(params.id, 0, "failed", message="out of\nmemory")
    with pytest.raises(JsonRpcException, match="The editor's engine failed: out of memory"):
        await review
    assert client.cancelled == []


async def test_taking_the_engine_away_ends_what_runs_and_it_may_come_back(
    start_engine_client: StartEngineClient,
) -> None:
    client = await start_engine_client(None, parallel=1)
    editor = client.editor
    uri, waiting = editor.open("a.py", LAST), editor.open("b.py", LAST.replace("last", "final"))
    reviews = [asyncio.ensure_future(editor.review(each)) for each in (uri, waiting)]
    params = await client.until_asked()
    client.piece(params.id, 0, "[")
    client.withdraw()
    for ended in await asyncio.gather(*reviews, return_exceptions=True):
        assert isinstance(ended, JsonRpcException)
        # What had not begun is planned anew, and finds none.
        assert re.search("took its engine away|offers no engine of its own", str(ended))
    assert client.cancelled == []
    with pytest.raises(JsonRpcException, match="no engine of its own"):
        await editor.review(uri)
    client.announce()
    review = asyncio.ensure_future(editor.review(uri))
    client.answer((await client.until_asked(2)).id, NOTHING)
    assert (await review).complete


async def test_a_client_that_leaves_in_the_middle_leaves_no_server_behind(tmp_path: Path) -> None:
    server = await start_raw(tmp_path, NEXO_ENGINE="client-hosted")
    declared = {"experimental": {"nexo": {"engine": EVERYTHING}}}
    server.send({**INITIALIZE, "params": {**INITIALIZE["params"], "capabilities": declared}})
    server.send({"method": "initialized", "params": {}})
    item = {"uri": "file:///a.py", "languageId": "python", "version": 1, "text": LAST}
    server.send({"method": "textDocument/didOpen", "params": {"textDocument": item}})
    server.send({"id": 2, "method": "nexo/review", "params": {"textDocument": {"uri": "file:///a.py"}}})
    while (message := await server.receive()).get("method") != "nexo/engine/generate":
        pass
    piece = {"id": message["params"]["id"], "sequence": 0, "text": "{"}
    server.send({"method": "nexo/engine/piece", "params": piece})
    assert server.process.stdin is not None
    server.process.stdin.close()
    assert await server.ended() == 1


async def test_shutdown_answers_what_still_waits(start_engine_client: StartEngineClient) -> None:
    client = await start_engine_client([{"hang": True}])
    editor = client.editor
    uri = editor.open("a.py", LAST)
    review = editor.start("nexo/review", {"textDocument": {"uri": uri}}, 12)
    await client.until_asked()
    await editor.client.shutdown_session()
    editor.result = None
    with pytest.raises(JsonRpcException):
        await review


async def test_an_engine_elsewhere_is_not_asked_without_consent(
    start_engine_client: StartEngineClient,
) -> None:
    client = await start_engine_client(local=False)
    editor = client.editor
    uri = editor.open("a.py", LAST)
    with pytest.raises(JsonRpcException, match=r"nexo\.remote\.enabled"):
        await editor.review(uri)
    assert client.asked == []


async def test_an_engine_that_moves_away_is_asked_no_more(start_engine_client: StartEngineClient) -> None:
    client = await start_engine_client(None, parallel=1)
    editor = client.editor
    uri, waiting = editor.open("a.py", LAST), editor.open("b.py", LAST.replace("last", "final"))
    reviews = [asyncio.ensure_future(editor.review(each)) for each in (uri, waiting)]
    params = await client.until_asked()
    await status_when(editor, lambda status: status.queued == 1)
    client.announce(local=False, parallel=8)
    # Which of the two runs is not known; it goes on.
    (queued,), (running,) = await asyncio.wait(reviews, return_when=asyncio.FIRST_COMPLETED)
    assert "another machine" in str(queued.exception())
    client.answer(params.id, NOTHING)
    assert (await running).complete
    assert len(client.asked) == 1


async def test_no_engine_is_a_clear_word(start_editor: StartEditor) -> None:
    editor = await start_editor(environ=ENGINE, configuration=MANUAL)
    uri = editor.open("a.py", LAST)
    with pytest.raises(JsonRpcException, match="the editor offers no engine of its own"):
        await editor.review(uri)


async def test_every_request_gets_exactly_one_answer(tmp_path: Path) -> None:
    """Completions that supersede each other, cancels at any moment, answers in disorder, and junk in between."""
    server = await start_raw(tmp_path, NEXO_ENGINE="client-hosted")
    declared = {"experimental": {"nexo": {"engine": EVERYTHING}}}
    server.send({**INITIALIZE, "params": {**INITIALIZE["params"], "capabilities": declared}})
    server.send({"method": "initialized", "params": {}})
    asked = range(100, 140)
    for number in asked:
        uri = f"file:///{number % 4}.py"
        if number < 104:
            item = {"uri": uri, "languageId": "python", "version": 1, "text": CODE}
            server.send({"method": "textDocument/didOpen", "params": {"textDocument": item}})
        place = {"textDocument": {"uri": uri}, "position": {"line": 1, "character": 11}}
        params = {**place, "context": {"triggerKind": 0}}
        server.send({"id": number, "method": "textDocument/inlineCompletion", "params": params})
        if number % 3 == 0:
            server.send({"method": "$/cancelRequest", "params": {"id": number}})
    answered: list[int] = []
    while not set(answered) >= set(asked):
        message = await server.receive()
        if message.get("method") == "nexo/engine/generate":
            request_id = message["params"]["id"]
            for sequence, text in ((1, "b"), (0, "a + "), (0, "a + "), (7, "stray")):
                piece = {"id": request_id, "sequence": sequence, "text": text}
                server.send({"method": "nexo/engine/piece", "params": piece})
            for end in ({"finish": "stop", "sequence": 2}, {"finish": "failed", "message": "twice"}):
                server.send({"method": "nexo/engine/end", "params": {"id": request_id, **end}})
        elif "method" not in message and message["id"] in asked:
            answered.append(message["id"])
    server.send({"id": 1000, "method": "shutdown"})
    while (message := await server.receive()).get("id") != 1000:
        if "method" not in message:
            answered.append(message["id"])
    assert sorted(answered) == list(asked)
    server.send({"method": "exit"})
    assert await server.ended() == 0

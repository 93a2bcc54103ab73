"""Features over an engine that the client runs: the real server process, and a client that plays the other half."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from lsprotocol import types
from pygls.exceptions import JsonRpcException

from nexo_lsp.engines.llama.engine import LlamaEngine, LlamaOptions
from nexo_lsp.engines.mock import MockEngine, Rule
from tests.lsp.conftest import StartEditor
from tests.lsp.editor import Editor
from tests.lsp.engine_client import EVERYTHING, EngineClient
from tests.lsp.raw import INITIALIZE, start_raw

CODE = "def add(a, b):\n    return \n"
LAST = "def last(items):\n    return items[len(items)]\n"
FINDING = {
    "quote": "return items[len(items)]",
    "category": "bug",
    "severity": "warning",
    "message": "This is one beyond the end.",
    "suggestion": "",
}
NOTHING = '{"findings": []}'
ENGINE = {"NEXO_ENGINE": "client-hosted"}
MANUAL = {"review": {"trigger": "manual"}}

Start = Callable[..., Coroutine[Any, Any, EngineClient]]


@pytest_asyncio.fixture
async def start(start_editor: StartEditor) -> AsyncIterator[Start]:
    """A function that starts a server whose engine is the client's; `rules` script it, None leaves it mute."""
    clients: list[EngineClient] = []

    async def begin(
        rules: Sequence[dict[str, Any]] | None = (), *, trigger: str = "manual", **announced: Any
    ) -> EngineClient:
        editor = await start_editor(environ=ENGINE, configuration={"review": {"trigger": trigger}})
        engine = None if rules is None else MockEngine([Rule.model_validate(rule) for rule in rules])
        client = EngineClient(editor, engine)
        client.announce(**announced)
        clients.append(client)
        return client

    yield begin
    for client in clients:
        await client.close()


def ask(editor: Editor, uri: str, identity: int | None = None) -> asyncio.Future[Any]:
    """An inline completion behind the first `return `."""
    params = editor.inline_params(uri, editor.find(uri, "return ", end=True))
    if identity is not None:
        return editor.start(types.TEXT_DOCUMENT_INLINE_COMPLETION, params, identity)
    return asyncio.ensure_future(editor.client.text_document_inline_completion_async(params))


async def status_when(editor: Editor, condition: Callable[[Any], bool]) -> Any:
    """Ask for `nexo/status` until it is as wanted: it is another process that does the work."""
    async with asyncio.timeout(editor.patience_s):
        while not condition(status := await editor.request("nexo/status")):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return status


async def test_completion_comes_from_the_client(start: Start) -> None:
    client = await start([{"match": "return <FILL>", "answer": "a + b"}])
    uri = client.editor.open("a.py", CODE)
    (item,) = await ask(client.editor, uri)
    assert item.insert_text == "a + b"
    (params,) = client.asked
    assert params.messages is None
    assert params.priority == "interactive"
    assert params.infill.prefix.endswith("return ")
    assert "{prefix}" in params.infill.parts
    assert client.cancelled == []


async def test_review_comes_from_the_client(start: Start) -> None:
    client = await start([{"json": {"findings": [FINDING]}}])
    uri = client.editor.open("a.py", LAST)
    result = await client.editor.review(uri)
    assert (result.findings, result.complete) == (1, True)
    assert client.editor.client.diagnostics[uri][0].message.startswith(FINDING["message"])
    (params,) = client.asked
    assert params.priority == "foreground"
    assert params.jsonSchema.type == "object"
    assert params.messages[-1].role == "user"


async def test_an_action_comes_from_the_client(start: Start) -> None:
    client = await start([{"match": "add", "answer": "    return a + b\n```\n"}])
    uri = client.editor.open("a.py", "def add(a, b):\n    pass\n")
    action = await client.editor.action(uri, "add", "refactor.rewrite.nexo.generate")
    assert action.command is not None
    await client.editor.execute(action.command)
    await client.editor.until(lambda: client.editor.applied, "the edit")
    assert client.editor.buffers[uri].text == "def add(a, b):\n    return a + b\n"
    assert client.asked[0].answerPrefix.startswith("```python\ndef add(a, b):")


async def test_what_the_engine_cannot_be_told_is_said_in_words(start: Start) -> None:
    client = await start(
        [
            {"match": "JSON schema", "json": {"findings": [FINDING]}},
            {"match": "has to begin", "answer": "```python\ndef add(a, b):\n    return a + b\n```\n"},
        ],
        jsonSchema=False,
        answerPrefix=False,
    )
    editor = client.editor
    reviewed = editor.open("a.py", LAST)
    assert (await editor.review(reviewed)).findings == 1
    assert client.asked[0].jsonSchema is None
    assert '"quote"' in client.asked[0].messages[-1].content
    uri = editor.open("b.py", "def add(a, b):\n    pass\n")
    action = await editor.action(uri, "add", "refactor.rewrite.nexo.generate")
    assert action.command is not None
    await editor.execute(action.command)
    await editor.until(lambda: editor.applied, "the edit")
    assert editor.buffers[uri].text == "def add(a, b):\n    return a + b\n"


async def test_an_engine_in_the_capabilities_is_there_from_the_first_moment(
    start_editor: StartEditor,
) -> None:
    def declare(capabilities: dict[str, Any]) -> None:
        capabilities["experimental"] = {"nexo": {"engine": {**EVERYTHING, "device": "WebGPU"}}}

    editor = await start_editor(environ=ENGINE, change=declare)
    status = await editor.request("nexo/status")
    assert (status.engine, status.state, status.model) == ("client-hosted", "idle", "scripted")
    assert any("on this machine" in reason for reason in status.reasons)


async def test_the_status_follows_the_announcements(start: Start) -> None:
    client = await start(model="small", state="loading", detail="40 %")
    editor = client.editor
    status = await editor.request("nexo/status")
    assert (status.engine, status.model) == ("client-hosted", "small")
    client.announce(model="big")
    assert (await editor.request("nexo/status")).model == "big"
    client.withdraw()
    status = await editor.request("nexo/status")
    assert (status.engine, status.state) == ("none", "failed")
    assert "offers no engine" in status.detail


async def test_cancel_reaches_the_client(start: Start) -> None:
    client = await start([{"hang": True}])
    uri = client.editor.open("a.py", CODE)
    asked = ask(client.editor, uri, 12)
    params = await client.until_asked()
    client.editor.cancel(12)
    with pytest.raises(JsonRpcException) as cancelled:
        await asked
    assert cancelled.value.code == -32800
    await client.until_cancelled(params.id)


async def test_typing_on_stops_the_client(start: Start) -> None:
    client = await start([{"answer": "a + " * 500, "delay_ms": 20}])
    editor = client.editor
    uri = editor.open("a.py", CODE)
    asked = ask(editor, uri)
    params = await client.until_asked()
    editor.insert(uri, CODE.index("return ") + len("return "), "x")
    assert not await asked
    await client.until_cancelled(params.id)


async def test_nothing_else_waits_for_the_client(start: Start) -> None:
    client = await start([{"hang": True}], parallel=1)
    editor = client.editor
    uri = editor.open("a.py", CODE)
    asked = ask(editor, uri, 12)
    await client.until_asked()
    assert (await editor.request("nexo/status")).running == 1
    assert await editor.actions(uri, "add")
    editor.cancel(12)
    with pytest.raises(JsonRpcException):
        await asked


async def test_two_requests_run_at_once_and_no_more(start: Start) -> None:
    client = await start(None, parallel=2)
    editor = client.editor
    uris = [editor.open(f"{name}.py", f"def {name}():\n    return \n") for name in "abc"]
    asked = [ask(editor, uri) for uri in uris]
    await client.until_asked(2)
    await status_when(editor, lambda status: (status.running, status.queued) == (2, 1))
    first, second = client.asked
    client.piece(first.id, 0, "on")
    client.piece(second.id, 0, "tw")
    client.answer(second.id, "tw", "o")
    third = await client.until_asked(3)
    client.piece(first.id, 1, "e")
    client.end(first.id, 2)
    client.answer(third.id, "three")
    answers = sorted(item.insert_text for items in await asyncio.gather(*asked) for item in items)
    assert answers == ["one", "three", "two"]
    assert client.most_at_once == 2


async def test_the_urgent_overtake_those_that_wait(start: Start) -> None:
    client = await start(None, parallel=1, trigger="onSave")
    editor = client.editor
    reviewed = editor.open("a.py", LAST + "\n\n" + LAST.replace("last", "final"))
    uri = editor.open("b.py", CODE)
    editor.save(reviewed)
    first = await client.until_asked()
    client.piece(first.id, 0, NOTHING)
    asked = ask(editor, uri)
    await status_when(editor, lambda status: status.queued == 2)
    client.end(first.id, 1)
    second = await client.until_asked(2)
    assert (first.priority, second.priority) == ("background", "interactive")
    client.answer(second.id, "a + b")
    assert (await asked)[0].insert_text == "a + b"
    client.answer((await client.until_asked(3)).id, NOTHING)


async def test_review_in_the_background_gives_way_to_typing(start: Start) -> None:
    client = await start(None, parallel=1, trigger="onSave")
    editor = client.editor
    reviewed, uri = editor.open("a.py", LAST), editor.open("b.py", CODE)
    editor.save(reviewed)
    first = await client.until_asked()
    asked = ask(editor, uri)
    second = await client.until_asked(2)
    assert (second.priority, client.cancelled) == ("interactive", [first.id])
    client.answer(second.id, "a + b")
    assert (await asked)[0].insert_text == "a + b"
    third = await client.until_asked(3)
    assert third.messages == first.messages
    client.answer(third.id, json.dumps({"findings": [FINDING]}))
    await editor.until(lambda: editor.client.diagnostics.get(reviewed), "the finding")


async def test_pieces_are_put_into_order_and_each_counts_once(start: Start) -> None:
    client = await start(None)
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


async def test_junk_is_passed_over(start: Start) -> None:
    client = await start(None)
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


async def test_a_flood_is_cut_off(start: Start) -> None:
    client = await start(None)
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


async def test_an_answer_without_end_is_ended_at_its_length(start: Start) -> None:
    client = await start(None)
    uri = client.editor.open("a.py", CODE)
    asked = ask(client.editor, uri)
    params = await client.until_asked()
    for sequence in range(params.maxTokens + 20):
        client.piece(params.id, sequence, "a")
    await client.until_cancelled(params.id)
    await asked


async def test_a_failure_is_told_in_the_clients_words(start: Start) -> None:
    client = await start(None)
    editor = client.editor
    uri = editor.open("a.py", LAST)
    review = asyncio.ensure_future(editor.review(uri))
    params = await client.until_asked()
    client.end(params.id, 0, "failed", message="out of\nmemory")
    with pytest.raises(JsonRpcException, match="The editor's engine failed: out of memory"):
        await review
    assert client.cancelled == []


async def test_taking_the_engine_away_ends_what_runs_and_it_may_come_back(start: Start) -> None:
    client = await start(None, parallel=1)
    editor = client.editor
    uri, waiting = editor.open("a.py", LAST), editor.open("b.py", LAST.replace("last", "final"))
    reviews = [asyncio.ensure_future(editor.review(each)) for each in (uri, waiting)]
    params = await client.until_asked()
    client.piece(params.id, 0, "[")
    client.withdraw()
    for ended in await asyncio.gather(*reviews, return_exceptions=True):
        assert isinstance(ended, JsonRpcException)
        assert "took its engine away" in str(ended)
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


async def test_shutdown_answers_what_still_waits(start: Start) -> None:
    client = await start([{"hang": True}])
    editor = client.editor
    uri = editor.open("a.py", LAST)
    review = editor.start("nexo/review", {"textDocument": {"uri": uri}}, 12)
    await client.until_asked()
    await editor.client.shutdown_session()
    editor.result = None
    with pytest.raises(JsonRpcException):
        await review


async def test_an_engine_elsewhere_is_not_asked_without_consent(start: Start) -> None:
    client = await start(local=False)
    editor = client.editor
    uri = editor.open("a.py", LAST)
    with pytest.raises(JsonRpcException, match="on another machine"):
        await editor.review(uri)
    assert client.asked == []


async def test_an_engine_that_moves_away_is_asked_no_more(start: Start) -> None:
    client = await start(None, parallel=1)
    editor = client.editor
    uri, waiting = editor.open("a.py", LAST), editor.open("b.py", LAST.replace("last", "final"))
    reviews = [asyncio.ensure_future(editor.review(each)) for each in (uri, waiting)]
    await client.until_asked()
    client.announce(local=False, parallel=8)
    ended = await asyncio.gather(*reviews, return_exceptions=True)
    assert all(isinstance(each, JsonRpcException) for each in ended)
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


@pytest.mark.model
async def test_the_real_model_answers_from_the_clients_side(
    start_editor: StartEditor, model_path: Path
) -> None:
    """llama.cpp in a worker of the test's, asked by the server through the messages."""

    async def model() -> Path:
        return model_path

    editor = await start_editor(environ=ENGINE, configuration=MANUAL)
    editor.patience_s = 120
    client = EngineClient(editor, LlamaEngine(model, LlamaOptions(context_tokens=4096)))
    client.announce(model="qwen2.5-coder-0.5b", contextTokens=4096)
    try:
        uri = editor.open("a.py", 'def add(a, b):\n    """The sum of a and b."""\n    return \n')
        (item,) = await ask(editor, uri)
        assert item.insert_text.strip().startswith("a + b")
        reviewed = editor.open("b.py", LAST)
        assert (await editor.review(reviewed)).complete
        status = await editor.request("nexo/status")
        assert (status.engine, status.model) == ("client-hosted", "qwen2.5-coder-0.5b")
        assert status.decodeTokensPerSecond > 0
    finally:
        await client.close()

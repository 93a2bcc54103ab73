"""Features over an engine that the client runs: the real server process, and a client that plays the other half."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from pygls.exceptions import JsonRpcException

from nexo_lsp.engines.llama.engine import LlamaEngine, LlamaOptions
from tests.lsp.conftest import StartEditor, StartEngineClient
from tests.lsp.engine_client import (
    CODE,
    ENGINE,
    EVERYTHING,
    FINDING,
    LAST,
    MANUAL,
    NOTHING,
    EngineClient,
    ask,
    status_when,
)


async def test_completion_comes_from_the_client(start_engine_client: StartEngineClient) -> None:
    client = await start_engine_client([{"match": "return <FILL>", "answer": "a + b"}])
    uri = client.editor.open("a.py", CODE)
    (item,) = await ask(client.editor, uri)
    assert item.insert_text == "a + b"
    (params,) = client.asked
    assert params.messages is None
    assert params.priority == "interactive"
    assert params.infill.prefix.endswith("return ")
    assert "{prefix}" in params.infill.parts
    assert client.cancelled == []


async def test_review_comes_from_the_client(start_engine_client: StartEngineClient) -> None:
    client = await start_engine_client([{"json": {"findings": [FINDING]}}])
    uri = client.editor.open("a.py", LAST)
    result = await client.editor.review(uri)
    assert (result.findings, result.complete) == (1, True)
    assert client.editor.client.diagnostics[uri][0].message.startswith(FINDING["message"])
    (params,) = client.asked
    assert params.priority == "foreground"
    assert params.jsonSchema.type == "object"
    assert params.messages[-1].role == "user"


async def test_an_action_comes_from_the_client(start_engine_client: StartEngineClient) -> None:
    client = await start_engine_client([{"match": "add", "answer": "    return a + b\n```\n"}])
    uri = client.editor.open("a.py", "def add(a, b):\n    pass\n")
    action = await client.editor.action(uri, "add", "refactor.rewrite.nexo.generate")
    assert action.command is not None
    await client.editor.execute(action.command)
    await client.editor.until(lambda: client.editor.applied, "the edit")
    assert client.editor.buffers[uri].text == "def add(a, b):\n    return a + b\n"
    assert client.asked[0].answerPrefix.startswith("```python\ndef add(a, b):")


async def test_what_the_engine_cannot_be_told_is_said_in_words(
    start_engine_client: StartEngineClient,
) -> None:
    client = await start_engine_client(
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


async def test_the_status_follows_the_announcements(start_engine_client: StartEngineClient) -> None:
    client = await start_engine_client(model="small", state="loading", detail="40 %")
    editor = client.editor
    status = await editor.request("nexo/status")
    assert (status.engine, status.model) == ("client-hosted", "small")
    client.announce(model="big")
    assert (await editor.request("nexo/status")).model == "big"
    client.withdraw()
    status = await editor.request("nexo/status")
    assert (status.engine, status.state) == ("none", "failed")
    assert "offers no engine" in status.detail


async def test_cancel_reaches_the_client(start_engine_client: StartEngineClient) -> None:
    client = await start_engine_client([{"hang": True}])
    uri = client.editor.open("a.py", CODE)
    asked = ask(client.editor, uri, 12)
    params = await client.until_asked()
    client.editor.cancel(12)
    with pytest.raises(JsonRpcException) as cancelled:
        await asked
    assert cancelled.value.code == -32800
    await client.until_cancelled(params.id)


async def test_typing_on_stops_the_client(start_engine_client: StartEngineClient) -> None:
    client = await start_engine_client([{"answer": "a + " * 500, "delay_ms": 20}])
    editor = client.editor
    uri = editor.open("a.py", CODE)
    asked = ask(editor, uri)
    params = await client.until_asked()
    editor.insert(uri, CODE.index("return ") + len("return "), "x")
    assert not await asked
    await client.until_cancelled(params.id)


async def test_nothing_else_waits_for_the_client(start_engine_client: StartEngineClient) -> None:
    client = await start_engine_client([{"hang": True}], parallel=1)
    editor = client.editor
    uri = editor.open("a.py", CODE)
    asked = ask(editor, uri, 12)
    await client.until_asked()
    assert (await editor.request("nexo/status")).running == 1
    assert await editor.actions(uri, "add")
    editor.cancel(12)
    with pytest.raises(JsonRpcException):
        await asked


async def test_two_requests_run_at_once_and_no_more(start_engine_client: StartEngineClient) -> None:
    client = await start_engine_client(None, parallel=2)
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


async def test_the_urgent_overtake_those_that_wait(start_engine_client: StartEngineClient) -> None:
    client = await start_engine_client(None, parallel=1, trigger="onSave")
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


async def test_review_in_the_background_gives_way_to_typing(start_engine_client: StartEngineClient) -> None:
    client = await start_engine_client(None, parallel=1, trigger="onSave")
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

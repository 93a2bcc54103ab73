"""Inline completion, and the same as completion items."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from lsprotocol import types
from pygls.exceptions import JsonRpcException

from tests.lsp.conftest import StartEditor
from tests.lsp.editor import Editor

CODE = "def add(a, b):\n    return \n"
RULE = {"match": "<FILL>", "answer": "a + b"}
AS_ITEMS = {"completion": {"asCompletionItems": True}}


async def ask(editor: Editor, uri: str, *, explicit: bool = True, info: Any = None) -> Any:
    params = editor.inline_params(uri, editor.find(uri, "return ", end=True), explicit=explicit)
    params.context.selected_completion_info = info
    return await editor.client.text_document_inline_completion_async(params)


@pytest.mark.parametrize("explicit", [True, False])
async def test_ghost_text_has_a_range_and_a_command(start_editor: StartEditor, explicit: bool) -> None:
    editor = await start_editor(rules=[RULE])
    uri = editor.open("a.py", CODE)
    (item,) = await ask(editor, uri, explicit=explicit)
    assert item.insert_text == "a + b"
    at = editor.find(uri, "return ", end=True)
    assert item.range == types.Range(at, at)
    assert item.command.command == "nexo.completion.accepted"
    assert await editor.execute(item.command) is None


async def test_the_selected_entry_is_honoured(start_editor: StartEditor) -> None:
    editor = await start_editor(rules=[{"match": r"return value<FILL>", "answer": "s[0]"}])
    uri = editor.open("a.py", "def f(values):\n    return va\n")
    info = types.SelectedCompletionInfo(range=editor.range(uri, "va\n"), text="value")
    info.range.end = types.Position(1, 13)
    info.range.start = types.Position(1, 11)
    params = editor.inline_params(uri, types.Position(1, 13))
    params.context.selected_completion_info = info
    answer: Any = await editor.client.text_document_inline_completion_async(params)
    (item,) = answer
    assert item.insert_text == "values[0]"
    assert item.range == info.range


async def test_a_newer_request_answers_the_older_with_null(start_editor: StartEditor) -> None:
    slow = {**RULE, "match": r"return <FILL>", "hang": True}
    editor = await start_editor(rules=[slow, RULE])
    uri = editor.open("a.py", CODE)
    older = asyncio.ensure_future(ask(editor, uri))
    await editor.until_engine("start")
    editor.insert(uri, CODE.index("return ") + len("return "), "(")
    params = editor.inline_params(uri, editor.find(uri, "return (", end=True))
    newer: Any = await editor.client.text_document_inline_completion_async(params)
    assert not await older
    assert newer[0].insert_text == "a + b"
    assert [event["event"] for event in editor.engine_events() if event["id"] == 1] == ["start", "cancel"]


async def test_cancel_reaches_the_engine(start_editor: StartEditor) -> None:
    editor = await start_editor(rules=[{"hang": True}])
    uri = editor.open("a.py", CODE)
    params = editor.inline_params(uri, editor.find(uri, "return ", end=True))
    asked = editor.start(types.TEXT_DOCUMENT_INLINE_COMPLETION, params, 12)
    await editor.until_engine("start")
    editor.cancel(12)
    with pytest.raises(JsonRpcException) as cancelled:
        await asked
    assert cancelled.value.code == -32800
    await editor.until_engine("cancel")


async def test_cancel_in_the_middle_of_the_answer_reaches_the_engine(start_editor: StartEditor) -> None:
    editor = await start_editor(rules=[{**RULE, "answer": "a + " * 500, "delay_ms": 20}])
    uri = editor.open("a.py", CODE)
    params = editor.inline_params(uri, editor.find(uri, "return ", end=True))
    asked = editor.start(types.TEXT_DOCUMENT_INLINE_COMPLETION, params, 12)
    await editor.until_engine("start")
    editor.cancel(12)
    with pytest.raises(JsonRpcException):
        await asked
    await editor.until_engine("cancel")
    assert editor.engine_events("finish") == []


async def test_typing_meanwhile_drops_the_answer(start_editor: StartEditor) -> None:
    editor = await start_editor(rules=[{**RULE, "delay_ms": 100}])
    uri = editor.open("a.py", CODE)
    asked = asyncio.ensure_future(ask(editor, uri))
    await editor.until_engine("start")
    editor.insert(uri, CODE.index("return ") + len("return "), "x")
    assert not await asked


async def test_a_failing_engine_is_told_once(start_editor: StartEditor) -> None:
    editor = await start_editor(rules=[{"crash": True}])
    uri = editor.open("a.py", CODE)
    for _ in range(3):
        assert not await ask(editor, uri)
    assert len(editor.messages()) == 1


async def test_completion_items_are_registered_when_asked_for(start_editor: StartEditor) -> None:
    editor = await start_editor(rules=[RULE], configuration=AS_ITEMS)
    uri = editor.open("a.py", CODE)
    await editor.until(lambda: types.TEXT_DOCUMENT_COMPLETION in editor.registered)
    answer: Any = await editor.client.text_document_completion_async(
        types.CompletionParams(types.TextDocumentIdentifier(uri), editor.find(uri, "return ", end=True))
    )
    assert answer.is_incomplete is True
    (item,) = answer.items
    assert (item.label, item.text_edit.new_text) == ("a + b", "a + b")
    editor.client.set_configuration({"nexo": {}})
    editor.client.workspace_did_change_configuration(types.DidChangeConfigurationParams(settings=None))
    await editor.until(lambda: types.TEXT_DOCUMENT_COMPLETION not in editor.registered)


async def test_completion_items_are_announced_to_a_client_that_cannot_register(
    start_editor: StartEditor,
) -> None:
    editor = await start_editor("neovim", rules=[RULE], settings=AS_ITEMS)
    assert editor.result is not None
    assert editor.result.capabilities.completion_provider is not None
    uri = editor.open("a.py", CODE)
    answer: Any = await editor.client.text_document_completion_async(
        types.CompletionParams(types.TextDocumentIdentifier(uri), editor.find(uri, "return ", end=True))
    )
    assert [item.label for item in answer.items] == ["a + b"]

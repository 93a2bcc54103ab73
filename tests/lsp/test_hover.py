"""Docs as hover."""

from __future__ import annotations

from typing import Any

import pytest
from lsprotocol import types
from pygls.exceptions import JsonRpcException

from nexo_lsp.server.features.hover import PENDING
from tests.lsp.conftest import StartEditor
from tests.lsp.editor import Editor

CODE = 'def add(a: int, b: int) -> int:\n    """The sum."""\n    return a + b\n\n\nprint(add(1, 2))\n'
EXPLAINED = {"answer": "It adds two numbers."}
PATIENT = {"hover": {"waitMs": 20000}}


async def text_of(editor: Editor, uri: str, at: str) -> str:
    hover = await editor.hover(uri, at)
    assert hover is not None
    assert isinstance(hover.contents, types.MarkupContent)
    return hover.contents.value


async def test_markdown_for_those_who_like_it(start_editor: StartEditor) -> None:
    editor = await start_editor(rules=[EXPLAINED], configuration=PATIENT)
    uri = editor.open("a.py", CODE)
    hover = await editor.hover(uri, "add(1")
    assert hover is not None
    assert isinstance(hover.contents, types.MarkupContent)
    assert hover.contents.kind is types.MarkupKind.Markdown
    assert hover.contents.value == (
        "```python\ndef add(a: int, b: int) -> int:\n```\n\nThe sum.\n\n---\n\nIt adds two numbers."
    )
    assert hover.range is not None
    assert editor.text_at(uri, hover.range) == "add"


async def test_plain_text_for_the_others(start_editor: StartEditor) -> None:
    def plain(capabilities: dict[str, Any]) -> None:
        capabilities["textDocument"]["hover"]["contentFormat"] = ["plaintext"]

    editor = await start_editor(rules=[EXPLAINED], configuration=PATIENT, change=plain)
    uri = editor.open("a.py", CODE)
    assert await text_of(editor, uri, "add(1") == (
        "def add(a: int, b: int) -> int:\n\nThe sum.\n\nIt adds two numbers."
    )


async def test_what_takes_long_is_there_the_next_time(start_editor: StartEditor) -> None:
    editor = await start_editor(
        rules=[{**EXPLAINED, "delay_ms": 300}], configuration={"hover": {"waitMs": 0}}
    )
    uri = editor.open("a.py", CODE)
    assert PENDING in await text_of(editor, uri, "add")
    await editor.until_engine("finish")
    editor.client.set_configuration({"nexo": PATIENT})
    editor.client.workspace_did_change_configuration(types.DidChangeConfigurationParams(settings=None))
    assert "It adds two numbers." in await text_of(editor, uri, "add")
    assert len(editor.engine_events("start")) == 1


async def test_nothing_to_say_is_null(start_editor: StartEditor) -> None:
    editor = await start_editor()
    uri = editor.open("a.py", "x = 1  # add\n\n")
    assert await editor.hover(uri, "# add") is None
    assert await editor.hover(uri, "1") is None


async def test_a_cancelled_hover_leaves_the_explanation_running(start_editor: StartEditor) -> None:
    editor = await start_editor(rules=[{**EXPLAINED, "delay_ms": 100}], configuration=PATIENT)
    uri = editor.open("a.py", CODE)
    params = types.HoverParams(types.TextDocumentIdentifier(uri), editor.find(uri, "add"))
    hover = editor.start(types.TEXT_DOCUMENT_HOVER, params, 7)
    await editor.until_engine("start")
    editor.cancel(7)
    with pytest.raises(JsonRpcException) as cancelled:
        await hover
    assert cancelled.value.code == -32800
    await editor.until_engine("finish")
    assert "It adds" in await text_of(editor, uri, "add")
    assert editor.engine_events("cancel") == []


async def test_a_failing_engine_leaves_the_signature(start_editor: StartEditor) -> None:
    editor = await start_editor(rules=[{"crash": True}], configuration=PATIENT)
    uri = editor.open("a.py", CODE)
    for _ in range(3):
        assert "def add(a: int, b: int) -> int:" in await text_of(editor, uri, "add")
    assert len(editor.messages()) <= 1


async def test_code_with_backticks_does_not_break_out(start_editor: StartEditor) -> None:
    editor = await start_editor(configuration={"hover": {"explain": False}})
    uri = editor.open("a.py", 'def f(x="```"):\n    return x\n')
    assert await text_of(editor, uri, "f(x") == '````python\ndef f(x="```"):\n````'

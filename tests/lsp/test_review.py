"""Review as diagnostics."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from lsprotocol import types
from pygls.exceptions import JsonRpcException

from tests.lsp.conftest import StartEditor
from tests.lsp.editor import Editor

FIRST = "def first(items):\n    return items[len(items)]\n"
SECOND = "def second(a, b):\n    return a / b\n"
CODE = f"{FIRST}\n\n{SECOND}"


def finding(quote: str, message: str = "It is wrong.", **more: str) -> dict[str, Any]:
    default = {"category": "bug", "severity": "error", "suggestion": "Mend it."}
    return {"quote": quote, "message": message, **default, **more}


# The examples of the prompt hold code too, so a rule matches what stands last in the prompt.
def rule(name: str, *findings: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"match": rf"def {name}\([^`]*```\s*$", "json": {"findings": list(findings)}, **more}


RULES = [
    rule("first", finding("return items[len(items)]", "The index is one too large.")),
    rule("second", finding("return a / b", "b may be 0.", severity="information", category="crash")),
]


async def findings_of(editor: Editor, uri: str, count: int) -> list[types.Diagnostic]:
    await editor.until(lambda: len(editor.client.diagnostics.get(uri, ())) == count, f"{count} findings")
    return list(editor.client.diagnostics[uri])


@pytest.mark.parametrize("client", ["vscode", "neovim"])
async def test_findings_are_pushed_with_what_editors_need(start_editor: StartEditor, client: str) -> None:
    editor = await start_editor(client, rules=RULES)
    uri = editor.open("a.py", CODE, version=7)
    answer = await editor.review(uri)
    assert (answer.findings, answer.version, answer.complete) == (2, 7, True)
    index, division = await findings_of(editor, uri, 2)
    assert editor.text_at(uri, index.range) == "return items[len(items)]"
    assert index.message == "The index is one too large.\nSuggestion: Mend it."
    assert (index.source, index.code) == ("nexo", "bug")
    # The model says error; the most that is shown is a warning, unless the user raises it.
    assert index.severity is types.DiagnosticSeverity.Warning
    assert division.severity is types.DiagnosticSeverity.Information
    assert editor.published[-1].version == 7
    data: Any = index.data
    assert {"id", "suggestion"} == set(data if isinstance(data, dict) else data._asdict())


@pytest.mark.parametrize(
    ("trigger", "on_open", "on_save"),
    [("onOpen", True, True), ("onSave", False, True), ("onType", False, False), ("manual", False, False)],
)
async def test_the_trigger_decides_when(
    start_editor: StartEditor, trigger: str, on_open: bool, on_save: bool
) -> None:
    settings = {"review": {"trigger": trigger, "debounceMs": 60000}}
    editor = await start_editor(rules=RULES, settings=settings, configuration=settings)
    uri = editor.open("a.py", FIRST)
    if on_open:
        await editor.until_engine("finish", 1)
    await editor.request("nexo/status")
    assert len(editor.engine_events("start")) == int(on_open)
    editor.insert(uri, len(FIRST), "\n" + SECOND)
    editor.save(uri)
    if on_save:
        await findings_of(editor, uri, 2)
    await editor.request("nexo/status")
    assert len(editor.engine_events("start")) == 2 * int(on_save)


async def test_a_pause_in_typing_starts_a_review(start_editor: StartEditor) -> None:
    settings = {"review": {"trigger": "onType", "debounceMs": 20}}
    editor = await start_editor(rules=RULES, settings=settings, configuration=settings)
    uri = editor.open("a.py", "")
    editor.insert(uri, 0, FIRST)
    await findings_of(editor, uri, 1)


async def test_findings_move_vanish_and_go_with_the_document(start_editor: StartEditor) -> None:
    editor = await start_editor(rules=RULES)
    uri = editor.open("a.py", CODE)
    await editor.review(uri)
    await findings_of(editor, uri, 2)
    editor.insert(uri, 0, "# 🎉 new\r\n")
    await editor.until(lambda: editor.published[-1].version == 2, "moved findings")
    assert [editor.text_at(uri, d.range) for d in editor.client.diagnostics[uri]] == [
        "return items[len(items)]",
        "return a / b",
    ]
    editor.insert(uri, editor.buffers[uri].text.index("a / b"), "(")
    await findings_of(editor, uri, 1)
    editor.close(uri)
    await findings_of(editor, uri, 0)


async def test_only_what_changed_is_asked_again(start_editor: StartEditor) -> None:
    editor = await start_editor(rules=RULES)
    uri = editor.open("a.py", CODE)
    await editor.review(uri)
    editor.insert(uri, len(CODE) - 1, " + 1")
    answer = await editor.review(uri)
    assert (answer.version, answer.complete) == (2, True)
    asked = [event["prompt"] for event in editor.engine_events("start")]
    assert len(asked) == 3
    assert "a / b + 1" in asked[2]


async def test_a_dismissed_finding_stays_away(start_editor: StartEditor) -> None:
    editor = await start_editor(rules=RULES)
    uri = editor.open("a.py", CODE)
    await editor.review(uri)
    dismiss = await editor.action(uri, "a / b", "quickfix.nexo.dismiss")
    assert dismiss.title == "Dismiss: b may be 0."
    assert dismiss.command is not None
    await editor.execute(dismiss.command)
    await findings_of(editor, uri, 1)
    editor.close(uri)
    uri = editor.open("a.py", CODE)
    assert (await editor.review(uri)).findings == 1


async def test_an_asker_who_leaves_does_not_end_the_review(start_editor: StartEditor) -> None:
    editor = await start_editor(rules=[{**RULES[0], "delay_ms": 200, "pieces": 2}])
    uri = editor.open("a.py", FIRST)
    asked = editor.start("nexo/review", {"textDocument": {"uri": uri}}, 99)
    await editor.until_engine("start")
    editor.cancel(99)
    with pytest.raises(JsonRpcException) as cancelled:
        await asked
    assert cancelled.value.code == -32800
    await findings_of(editor, uri, 1)
    assert editor.engine_events("cancel") == []


async def test_the_command_is_a_job_with_progress(start_editor: StartEditor) -> None:
    editor = await start_editor(rules=RULES)
    uri = editor.open("a.py", CODE)
    answer = await editor.execute(types.Command("", "nexo.review", arguments=[{"uri": uri}]))
    assert answer["jobId"] == "job-1"
    await findings_of(editor, uri, 2)

    def ended() -> Any:
        return [r for reports in editor.client.progress_reports.values() for r in reports if r.kind == "end"]

    await editor.until(ended, "the end of the progress")
    (reports,) = editor.client.progress_reports.values()
    assert reports[0].title == "Review"  # type: ignore[union-attr]
    assert reports[0].cancellable is True  # type: ignore[union-attr]


async def test_stop_ends_the_review_in_the_engine(start_editor: StartEditor) -> None:
    editor = await start_editor(rules=[{"hang": True}])
    uri = editor.open("a.py", CODE)
    review = asyncio.ensure_future(editor.review(uri))
    await editor.until_engine("start")
    await editor.execute(types.Command("", "nexo.stop"))
    await editor.until_engine("cancel")
    assert (await review).complete is False


async def test_a_crash_is_told_once_and_the_server_lives(start_editor: StartEditor) -> None:
    editor = await start_editor(rules=[{"match": "broken", "crash": True}, *RULES])
    uri = editor.open("a.py", "def broken(x):\n    return x\n")
    for version in range(2, 5):
        editor.save(uri)
        await editor.until_engine("fail", version - 1)
        await editor.until(editor.messages)
    assert len(editor.messages()) == 1
    assert "ended unexpectedly" in editor.messages()[0]
    other = editor.open("b.py", FIRST)
    assert (await editor.review(other)).findings == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"enable": False},
        {"disabledLanguages": ["python"]},
        {"disabledGlobs": ["*.py"]},
        {"review": {"enabled": False, "trigger": "onOpen"}},
    ],
)
async def test_off_means_no_request_at_all(start_editor: StartEditor, settings: dict[str, Any]) -> None:
    editor = await start_editor(settings=settings, configuration=settings)
    uri = editor.open("a.py", CODE)
    editor.save(uri)
    with pytest.raises(JsonRpcException) as refused:
        await editor.review(uri)
    assert refused.value.code == -32803
    if "review" not in settings:
        assert await editor.actions(uri, "a / b") == []
        await editor.hover(uri, "first")
        params = editor.inline_params(uri, editor.find(uri, "a / b"))
        assert not await editor.client.text_document_inline_completion_async(params)
    assert editor.engine_events() == []
    assert editor.messages() == []


@pytest.mark.parametrize("name", [".env", "id_rsa", "server.pem", "secret/notes.py"])
async def test_secret_files_are_never_shown(start_editor: StartEditor, name: str) -> None:
    editor = await start_editor(settings={"review": {"trigger": "onOpen"}})
    (editor.folder / ".nexoignore").write_text("secret/\n", encoding="utf-8")
    (editor.folder / "secret").mkdir()
    uri = editor.open(name, CODE)
    with pytest.raises(JsonRpcException):
        await editor.review(uri)
    assert await editor.actions(uri, "a / b") == []
    await editor.hover(uri, "first")
    params = editor.inline_params(uri, editor.find(uri, "a / b"))
    assert not await editor.client.text_document_inline_completion_async(params)
    # Nor as context of another file.
    other = editor.open("b.py", "def uses():\n    return first([])\n")
    await editor.review(other)
    assert all(
        "items[len(items)]" not in event["prompt"].partition("def uses")[0][-400:]
        for event in editor.engine_events()
    )


@pytest.mark.parametrize(
    "uri",
    ["untitled:Untitled-1", "vscode-notebook-cell:/w/a.ipynb#W1", "git:/w/a.py?%7B%22ref%22%3A%22HEAD%22%7D"],
)
async def test_documents_that_are_no_files_are_reviewed(start_editor: StartEditor, uri: str) -> None:
    editor = await start_editor(rules=RULES)
    assert editor.open(uri, CODE) == uri
    assert (await editor.review(uri)).findings == 2
    await findings_of(editor, uri, 2)
    assert await editor.hover(uri, "first") is not None
    kinds = {str(action.kind) for action in await editor.actions(uri, "a / b")}
    assert "refactor.rewrite.nexo.explain" in kinds
    # What is only a view takes no edits.
    assert ("refactor.rewrite.nexo.optimize" in kinds) is not uri.startswith("git:")

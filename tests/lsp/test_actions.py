"""Code actions: listed at once, carried out as jobs, applied as one edit."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from lsprotocol import types
from pygls.exceptions import JsonRpcException

from tests.lsp.conftest import StartEditor
from tests.lsp.editor import Editor

STUB = "def double(x):\n    ...\n"
DONE = "def double(x):\n    return x * 2\n"
GENERATE = "refactor.rewrite.nexo.generate"
ANSWER = {"match": "Complete this function", "answer": "    return x * 2\n```"}


async def run(editor: Editor, uri: str, text: str, kind: str) -> Any:
    """Choose the action of `kind` at `text`; gives the answer, which comes at once."""
    action = await editor.action(uri, text, kind)
    assert action.edit is None
    assert action.command is not None
    return await editor.execute(action.command)


async def until_text(editor: Editor, uri: str, text: str) -> None:
    await editor.until(lambda: uri in editor.buffers and editor.buffers[uri].text == text, f"{text!r}")


def ends(editor: Editor) -> list[str]:
    reports = [r for reports in editor.client.progress_reports.values() for r in reports]
    return [str(report.message) for report in reports if report.kind == "end"]


async def test_the_list_is_made_without_the_model(start_editor: StartEditor) -> None:
    editor = await start_editor()
    uri = editor.open("a.py", f"{STUB}\n\ndef half(x):\n    return x / 2\n")
    stub = {str(action.kind) for action in await editor.actions(uri, "double")}
    done = {str(action.kind) for action in await editor.actions(uri, "half")}
    rewrite = "refactor.rewrite.nexo"
    assert {GENERATE, f"{rewrite}.document", f"{rewrite}.explain"} <= stub
    assert {f"{rewrite}.{word}" for word in ("optimize", "document", "tests", "explain")} == done
    assert editor.engine_events() == []


async def test_kinds_are_a_hierarchy(start_editor: StartEditor) -> None:
    editor = await start_editor()
    uri = editor.open("a.py", STUB)
    for only, some in [
        (["refactor"], True),
        (["refactor.rewrite"], True),
        (["refactor.rewrite.nexo"], True),
        ([GENERATE], True),
        ([""], True),
        (["source", "refactor"], True),
        (["refactor.rewrite.nexo.gen"], False),
        (["refactor.extract"], False),
        (["quickfix"], False),
        ([], True),
    ]:
        kinds = [str(action.kind) for action in await editor.actions(uri, "double", only)]
        assert (GENERATE in kinds) is some, only


async def test_a_client_without_action_literals_gets_commands(start_editor: StartEditor) -> None:
    def forget(capabilities: dict[str, Any]) -> None:
        capabilities["textDocument"]["codeAction"].pop("codeActionLiteralSupport")

    editor = await start_editor(change=forget, rules=[ANSWER])
    uri = editor.open("a.py", STUB)
    commands: list[Any] = list(await editor.actions(uri, "double"))
    assert all(isinstance(command, types.Command) for command in commands)
    await editor.execute(next(c for c in commands if c.title.startswith("Implement")))
    await until_text(editor, uri, DONE)


@pytest.mark.parametrize("client", ["vscode", "neovim"])
async def test_a_stub_is_implemented(start_editor: StartEditor, client: str) -> None:
    editor = await start_editor(client, rules=[ANSWER])
    uri = editor.open("a.py", STUB, version=5)
    answer = await run(editor, uri, "double", GENERATE)
    assert answer["jobId"] == "job-1"
    await until_text(editor, uri, DONE)
    (applied,) = editor.applied
    if client == "vscode":
        assert applied.edit.changes is None
        (change,) = applied.edit.document_changes or ()
        assert isinstance(change, types.TextDocumentEdit)
        assert change.text_document.version == 5
        edits: Any = change.edits
    else:
        assert applied.edit.document_changes is None
        edits = (applied.edit.changes or {})[uri]
    # Only what differs is replaced.
    assert all(edit.range.start.line == 1 for edit in edits)
    await editor.until(lambda: ends(editor) == ["done"])


async def test_line_ends_and_wide_characters_survive(start_editor: StartEditor) -> None:
    before = (
        "# 🎉 größe\r\n\r\ndef double(x):  # 🎉\r\n    ...\r\n\r\n\r\ndef half(x):\r\n    return '🎉', x\r\n"
    )
    editor = await start_editor(rules=[ANSWER])
    uri = editor.open("a.py", before)
    await run(editor, uri, "double", GENERATE)
    await until_text(editor, uri, before.replace("...", "return x * 2"))


async def test_edits_above_move_the_answer_along(start_editor: StartEditor) -> None:
    editor = await start_editor(rules=[{**ANSWER, "delay_ms": 100}])
    uri = editor.open("a.py", STUB)
    await run(editor, uri, "double", GENERATE)
    await editor.until_engine("start")
    editor.insert(uri, 0, "import os\n\n\n")
    editor.insert(uri, len(editor.buffers[uri].text), "\n\nprint(os.name)\n")
    await until_text(editor, uri, f"import os\n\n\n{DONE}\n\nprint(os.name)\n")


async def test_edits_in_the_same_place_refuse_the_answer(start_editor: StartEditor) -> None:
    editor = await start_editor(rules=[{**ANSWER, "delay_ms": 100}])
    uri = editor.open("a.py", STUB)
    await run(editor, uri, "double", GENERATE)
    await editor.until_engine("start")
    editor.insert(uri, STUB.index("..."), "pass; ")
    await editor.until(editor.messages)
    assert "nothing was applied" in editor.messages()[0]
    assert editor.applied == []
    await editor.until(lambda: ends(editor) == ["failed"])


async def test_a_client_that_moved_on_gets_the_edit_once_more(start_editor: StartEditor) -> None:
    editor = await start_editor(rules=[ANSWER])
    uri = editor.open("a.py", STUB)
    editor.before_apply = lambda: editor.insert(uri, 0, "# new\n")
    await run(editor, uri, "double", GENERATE)
    await until_text(editor, uri, f"# new\n{DONE}")
    assert editor.messages() == []


async def test_a_refusal_is_told_with_its_reason(start_editor: StartEditor) -> None:
    editor = await start_editor(rules=[ANSWER])
    uri = editor.open("a.py", STUB)
    editor.refusals = ["the file is read-only"]
    await run(editor, uri, "double", GENERATE)
    await editor.until(editor.messages)
    assert "the file is read-only" in editor.messages()[0]
    assert editor.buffers[uri].text == STUB


async def test_progress_counts_tokens_and_its_cancel_reaches_the_engine(start_editor: StartEditor) -> None:
    slow = {**ANSWER, "answer": "    return x * 2  # " + "very " * 4000, "delay_ms": 60}
    editor = await start_editor(rules=[slow])
    uri = editor.open("a.py", STUB)
    await run(editor, uri, "double", GENERATE)

    def reported() -> Any:
        return next(
            (
                t
                for t, reports in editor.client.progress_reports.items()
                if any(r.kind == "report" for r in reports)
            ),
            None,
        )

    token = await editor.until(reported, "a report")
    begin, report, *_ = editor.client.progress_reports[token]
    assert begin.title == "Implement 'double'"  # type: ignore[union-attr]
    assert begin.cancellable is True  # type: ignore[union-attr]
    assert str(report.message).endswith(" tokens")
    editor.client.window_work_done_progress_cancel(types.WorkDoneProgressCancelParams(token))
    await editor.until_engine("cancel")
    await editor.until(lambda: ends(editor) == ["stopped"])
    assert editor.messages() == []
    assert editor.buffers[uri].text == STUB


@pytest.mark.parametrize("by_name", [False, True])
async def test_stop_reaches_the_engine(start_editor: StartEditor, by_name: bool) -> None:
    editor = await start_editor(rules=[{"hang": True}])
    uri = editor.open("a.py", STUB)
    answer = await run(editor, uri, "double", GENERATE)
    await editor.until_engine("start")
    arguments = [{"jobId": answer["jobId"]}] if by_name else None
    await editor.execute(types.Command("", "nexo.stop", arguments=arguments))
    await editor.until_engine("cancel")
    await editor.until(lambda: ends(editor) == ["stopped"])
    with pytest.raises(JsonRpcException, match="no running job"):
        await editor.execute(types.Command("", "nexo.stop", arguments=[{"jobId": answer["jobId"]}]))


async def test_a_client_without_progress_gets_the_edit_all_the_same(start_editor: StartEditor) -> None:
    def forget(capabilities: dict[str, Any]) -> None:
        capabilities["window"]["workDoneProgress"] = False

    editor = await start_editor(change=forget, rules=[ANSWER])
    uri = editor.open("a.py", STUB)
    await run(editor, uri, "double", GENERATE)
    await until_text(editor, uri, DONE)
    assert editor.client.progress_reports == {}


async def test_a_finding_is_fixed(start_editor: StartEditor) -> None:
    code = "def last(items):\n    return items[len(items)]\n"
    finding = {
        "quote": "return items[len(items)]", "category": "bug", "severity": "warning",
        "message": "One too large.", "suggestion": "Use items[-1].",
    }  # fmt: skip
    rules = [
        {"match": "Fix one problem", "answer": "    return items[-1]\n```"},
        {"match": "def last", "json": {"findings": [finding]}},
    ]
    editor = await start_editor(rules=rules)
    uri = editor.open("a.py", code)
    await editor.review(uri)
    fix = await editor.action(uri, "len(items)", "quickfix.nexo")
    assert [d.message for d in fix.diagnostics or ()] == ["One too large.\nSuggestion: Use items[-1]."]
    await run(editor, uri, "len(items)", "quickfix.nexo")
    await until_text(editor, uri, code.replace("len(items)", "-1"))
    await editor.until(lambda: not editor.client.diagnostics[uri])


async def test_code_is_documented(start_editor: StartEditor) -> None:
    editor = await start_editor(rules=[{"match": "documentation comment", "answer": "Twice x."}])
    uri = editor.open("a.py", DONE)
    await run(editor, uri, "double", "refactor.rewrite.nexo.document")
    await editor.until(lambda: '"""' in editor.buffers[uri].text)
    assert editor.buffers[uri].text.startswith('def double(x):\n    """')
    assert editor.buffers[uri].text.endswith("    return x * 2\n")


@pytest.mark.parametrize("client", ["vscode", "neovim"])
async def test_tests_come_as_a_new_file(start_editor: StartEditor, client: str) -> None:
    rules = [{"match": "unit tests", "answer": "():\n    assert double(2) == 4\n```"}]
    editor = await start_editor(client, rules=rules)
    (editor.folder / "tests").mkdir()
    (editor.folder / "pyproject.toml").touch()
    uri = editor.open("a.py", DONE)
    await run(editor, uri, "double", "refactor.rewrite.nexo.tests")
    made = editor.uri("tests/test_a.py")
    await editor.until(lambda: made in editor.buffers)
    assert "def test_double():\n    assert double(2) == 4\n" in editor.buffers[made].text
    assert editor.buffers[uri].text == DONE
    changes = editor.applied[0].edit.document_changes
    created = [change for change in changes or () if isinstance(change, types.CreateFile)]
    assert len(created) == (1 if client == "vscode" else 0)


async def test_an_explanation_is_shown_as_a_read_only_document(start_editor: StartEditor) -> None:
    editor = await start_editor(rules=[{"answer": "It doubles **x**."}])
    uri = editor.open("a.py", DONE)
    await run(editor, uri, "double", "refactor.rewrite.nexo.explain")
    await editor.until(lambda: editor.client.shown_documents)
    shown = Path(unquote(urlsplit(editor.client.shown_documents[0].uri).path))
    assert "It doubles **x**." in shown.read_text(encoding="utf-8")  # noqa: ASYNC240
    assert shown.stat().st_mode & 0o222 == 0  # noqa: ASYNC240
    assert editor.applied == []


async def test_an_explanation_is_a_message_elsewhere(start_editor: StartEditor) -> None:
    def forget(capabilities: dict[str, Any]) -> None:
        capabilities["window"].pop("showDocument")

    editor = await start_editor(change=forget, rules=[{"answer": "It doubles x."}])
    uri = editor.open("a.py", DONE)
    await run(editor, uri, "double", "refactor.rewrite.nexo.explain")
    await editor.until(editor.messages)
    assert "It doubles x." in editor.messages()[0]
    assert editor.client.messages[0].type is types.MessageType.Info


def with_proposals(capabilities: dict[str, Any]) -> None:
    capabilities["experimental"] = {"nexo": {"proposals": True}}


async def proposal(editor: Editor) -> Any:
    def done() -> Any:
        return next((p for method, p in editor.notifications if method == "nexo/proposal" and p.done), None)

    return await editor.until(done, "a complete proposal")


async def test_proposals_are_streamed_and_applied_when_accepted(start_editor: StartEditor) -> None:
    editor = await start_editor(change=with_proposals, rules=[{**ANSWER, "delay_ms": 60}])
    uri = editor.open("a.py", STUB)
    await run(editor, uri, "double", GENERATE)
    whole = await proposal(editor)
    assert (whole.uri, whole.version, whole.title) == (uri, 1, "Implement 'double'")
    assert whole.text == DONE.rstrip("\n")
    parts = [p for _, p in editor.notifications if not p.done]
    assert parts
    assert all(whole.text.startswith(part.text.rstrip()) for part in parts)
    assert editor.applied == []
    editor.insert(uri, 0, "\n")
    answer = await editor.request("nexo/proposal/accept", {"id": whole.id})
    assert answer.applied is True
    assert editor.buffers[uri].text == f"\n{DONE}"
    with pytest.raises(JsonRpcException, match="no proposal"):
        await editor.request("nexo/proposal/accept", {"id": whole.id})


async def test_a_discarded_proposal_is_gone(start_editor: StartEditor) -> None:
    editor = await start_editor(change=with_proposals, rules=[ANSWER])
    uri = editor.open("a.py", STUB)
    await run(editor, uri, "double", GENERATE)
    whole = await proposal(editor)
    assert await editor.request("nexo/proposal/discard", {"id": whole.id}) is None
    with pytest.raises(JsonRpcException, match="no proposal"):
        await editor.request("nexo/proposal/accept", {"id": whole.id})
    assert editor.buffers[uri].text == STUB


async def test_a_proposal_whose_place_was_changed_is_not_applied(start_editor: StartEditor) -> None:
    editor = await start_editor(change=with_proposals, rules=[ANSWER])
    uri = editor.open("a.py", STUB)
    await run(editor, uri, "double", GENERATE)
    whole = await proposal(editor)
    editor.insert(uri, STUB.index("..."), "pass; ")
    answer = await editor.request("nexo/proposal/accept", {"id": whole.id})
    assert answer.applied is False
    assert "changed" in answer.reason


async def test_a_failed_proposal_says_so(start_editor: StartEditor) -> None:
    editor = await start_editor(change=with_proposals, rules=[{"crash": True}])
    uri = editor.open("a.py", STUB)
    await run(editor, uri, "double", GENERATE)
    failed = await proposal(editor)
    assert "ended unexpectedly" in failed.error
    await editor.until(editor.messages)


async def test_an_explanation_is_no_proposal(start_editor: StartEditor) -> None:
    editor = await start_editor(
        change=with_proposals, rules=[{"answer": "It doubles what it gets.", "delay_ms": 60}]
    )
    uri = editor.open("a.py", DONE)
    await run(editor, uri, "double", "refactor.rewrite.nexo.explain")
    await editor.until(lambda: ends(editor) == ["done"])
    assert [method for method, _ in editor.notifications if method == "nexo/proposal"] == []


async def test_a_proposal_for_an_open_test_file_names_that_file(start_editor: StartEditor) -> None:
    editor = await start_editor(
        change=with_proposals, rules=[{"match": "unit tests", "answer": "():\n    assert True\n"}]
    )
    (editor.folder / "test_a.py").write_text("import os\n", encoding="utf-8")
    uri = editor.open("a.py", DONE)
    tests = editor.open("test_a.py", "import os\n", version=7)
    await run(editor, uri, "double", "refactor.rewrite.nexo.tests")
    whole = await proposal(editor)
    assert (whole.uri, whole.version, whole.range.start.line) == (tests, 7, 1)
    assert (await editor.request("nexo/proposal/accept", {"id": whole.id})).applied is True
    assert "def test_double():" in editor.buffers[tests].text

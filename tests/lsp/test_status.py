"""`nexo/status`, asked for and told."""

from __future__ import annotations

from typing import Any

from tests.lsp.conftest import StartEditor
from tests.lsp.editor import Editor


def states(editor: Editor) -> list[str]:
    return [params.state for method, params in editor.notifications if method == "nexo/status"]


async def test_the_status_names_engine_and_reasons(start_editor: StartEditor) -> None:
    editor = await start_editor()
    status = await editor.request("nexo/status")
    assert (status.enabled, status.engine) == (True, "mock")
    assert any("nexo.engine" in reason for reason in status.reasons)


async def test_changes_are_told_to_those_who_asked(start_editor: StartEditor) -> None:
    editor = await start_editor(rules=[{"answer": "x", "delay_ms": 50}])
    uri = editor.open("a.py", "def f(x):\n    return x\n")
    await editor.hover(uri, "f(x)")
    await editor.until_engine("finish")
    assert states(editor) == []
    await editor.request("nexo/status")
    other = editor.open("b.py", "def g(x):\n    return x + 1\n")
    await editor.hover(other, "g(x)")
    await editor.until(lambda: {"busy", "ready"} <= set(states(editor)), "the states")


async def test_changes_are_told_to_those_who_declared_it(start_editor: StartEditor) -> None:
    def declare(capabilities: dict[str, Any]) -> None:
        capabilities["experimental"] = {"nexo": {"status": True}}

    editor = await start_editor(change=declare, rules=[{"answer": "x", "delay_ms": 50}])
    uri = editor.open("a.py", "def f(x):\n    return x\n")
    await editor.hover(uri, "f(x)")
    await editor.until(lambda: "busy" in states(editor))

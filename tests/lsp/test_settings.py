"""Settings by all ways in which editors give them."""

from __future__ import annotations

from typing import Any

import pytest
from lsprotocol import types

from tests.lsp.conftest import StartEditor
from tests.lsp.editor import Editor

CODE = "def add(a, b):\n    return a - b\n"


def push(editor: Editor, settings: Any) -> None:
    editor.client.workspace_did_change_configuration(types.DidChangeConfigurationParams(settings=settings))


async def enabled(editor: Editor) -> bool:
    return (await editor.request("nexo/status")).enabled


async def test_initialization_options_count(start_editor: StartEditor) -> None:
    editor = await start_editor(settings={"enable": False})
    assert await enabled(editor) is False


async def test_workspace_configuration_counts_more(start_editor: StartEditor) -> None:
    editor = await start_editor(settings={"enable": True}, configuration={"enable": False})
    uri = editor.open("a.py", CODE)
    # The review waits for the answer to workspace/configuration, and then says why it does nothing.
    with pytest.raises(Exception, match="switched off"):
        await editor.review(uri)
    assert await enabled(editor) is False


async def test_pushed_settings_count(start_editor: StartEditor) -> None:
    editor = await start_editor("neovim")
    push(editor, {"nexo": {"enable": False}})
    assert await enabled(editor) is False
    push(editor, {"nexo": {}})
    assert await enabled(editor) is True
    push(editor, {"other": {"enable": False}})
    assert await enabled(editor) is True


async def test_word_of_a_change_makes_the_server_ask(start_editor: StartEditor) -> None:
    editor = await start_editor()
    await editor.until(lambda: "workspace/didChangeConfiguration" in editor.registered)
    assert await enabled(editor) is True
    editor.client.set_configuration({"nexo": {"enable": False, "review": {"trigger": "never"}}})
    push(editor, None)
    await editor.until(editor.messages, "the wrong setting is named")
    assert await enabled(editor) is False


async def test_the_environment_counts_most(start_editor: StartEditor) -> None:
    editor = await start_editor(settings={"enable": True}, environ={"NEXO_ENABLE": "false"})
    assert await enabled(editor) is False


async def test_each_wrong_setting_is_named_once_in_one_message(start_editor: StartEditor) -> None:
    wrong = {"enabel": False, "review": {"trigger": "always"}, "hover": {"waitMs": -1}}
    editor = await start_editor("neovim", settings=wrong)
    push(editor, {"nexo": wrong | {"completion": 3}})
    push(editor, {"nexo": wrong | {"completion": 3}})
    assert await enabled(editor) is True
    shown = editor.messages()
    assert len(shown) == 2, shown
    assert "did you mean nexo.enable?" in shown[0]
    assert "nexo.review.trigger" in shown[0]
    assert "nexo.hover.waitMs" in shown[0]
    # The same mistakes came again by the push, with a new one; only that is named.
    assert shown[1].startswith("nexo-lsp settings: nexo.completion: "), shown
    assert all(message.type is types.MessageType.Warning for message in editor.client.messages)


async def test_a_client_that_gives_no_settings_is_served(start_editor: StartEditor) -> None:
    def forget(capabilities: dict[str, Any]) -> None:
        capabilities["workspace"].pop("configuration")

    editor = await start_editor(change=forget)
    uri = editor.open("a.py", CODE)
    assert (await editor.review(uri)).complete is True


async def test_workspace_folders_come_and_go(start_editor: StartEditor) -> None:
    editor = await start_editor(settings={"disabledGlobs": ["gen/**"]})
    other = editor.folder.parent / "other"
    other.mkdir()
    folder = types.WorkspaceFolder(other.as_uri(), "other")
    uri = editor.open((other / "gen" / "a.py").as_uri(), CODE)
    assert (await editor.review(uri)).complete is True
    event = types.WorkspaceFoldersChangeEvent(added=[folder], removed=[])
    editor.client.workspace_did_change_workspace_folders(types.DidChangeWorkspaceFoldersParams(event))
    with pytest.raises(Exception, match="disabledGlobs"):
        await editor.review(uri)
    event = types.WorkspaceFoldersChangeEvent(added=[], removed=[folder])
    editor.client.workspace_did_change_workspace_folders(types.DidChangeWorkspaceFoldersParams(event))
    assert (await editor.review(uri)).complete is True

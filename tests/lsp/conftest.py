"""The real server process, driven by a small editor with the capabilities of a real one."""

from __future__ import annotations

import copy
import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Union

import pytest
import pytest_asyncio
from cattrs import Converter
from lsprotocol import types
from lsprotocol.converters import get_converter
from pygls.protocol import default_converter
from pytest_lsp import ClientServerConfig, LanguageClient
from pytest_lsp.client import register_lsp_features

from nexo_lsp.engines.mock import MockEngine, Rule
from tests.lsp.editor import Editor
from tests.lsp.engine_client import ENGINE, EngineClient

CLIENTS = Path(__file__).parent / "clients"
ROOT = Path(__file__).parents[2]

StartEditor = Callable[..., Coroutine[Any, Any, Editor]]
StartEngineClient = Callable[..., Coroutine[Any, Any, EngineClient]]


def capabilities_of(client: str) -> dict[str, Any]:
    """The `clientInfo` and `capabilities` that `clients/NAME.json` holds."""
    return json.loads((CLIENTS / f"{client}.json").read_text(encoding="utf-8"))


def make_client() -> LanguageClient:
    """A client that can tell a code action from a bare command (lsprotocol 2025.0.0 takes both for one)."""

    def converter() -> Converter:
        made = default_converter()

        def structure(value: Any, _: object) -> types.Command | types.CodeAction:
            bare = isinstance(value.get("command"), str)
            return made.structure(value, types.Command if bare else types.CodeAction)

        made.register_structure_hook(Union[types.Command, types.CodeAction], structure)  # noqa: UP007 - cattrs wants it as lsprotocol has it
        return made

    client = LanguageClient(converter_factory=converter)
    register_lsp_features(client)
    return client


def server_environment(home: Path, **extra: str) -> dict[str, str]:
    """An environment in which the server touches nothing outside `home`."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("NEXO_")}
    # Nor does it matter whether this machine is a laptop whose battery is low.
    alone = {"NEXO_HOME": str(home), "NEXO_FAKE_BATTERY": str(home / "no-battery")}
    return {**environ, **alone, "NEXO_LOG": "DEBUG", "PYTHONPATH": str(ROOT), **extra}


@pytest_asyncio.fixture
async def start_editor(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[StartEditor]:
    """A function that starts a server and connects an editor to it.

    `client` names the capabilities; `change` may edit them. `rules` script the mock engine. `settings` are
    `initializationOptions`, `configuration` what `workspace/configuration` answers. `environ` is added to the
    server's environment.
    """
    editors: list[Editor] = []
    home = tmp_path / "home"

    async def start(
        client: str = "vscode",
        *,
        rules: Sequence[dict[str, Any]] = (),
        settings: dict[str, Any] | None = None,
        configuration: dict[str, Any] | None = None,
        environ: dict[str, str] | None = None,
        change: Callable[[dict[str, Any]], None] | None = None,
        folder: Path | None = None,
        initialize: bool = True,
    ) -> Editor:
        folder = folder or tmp_path / "workspace"
        folder.mkdir(exist_ok=True)
        script, log = tmp_path / "rules.json", tmp_path / "engine.jsonl"
        script.write_text(json.dumps(list(rules)), encoding="utf-8")
        mock = {"NEXO_ENGINE": "mock", "NEXO_MOCK_SCRIPT": str(script), "NEXO_MOCK_LOG": str(log)}
        spoken = copy.deepcopy(capabilities_of(client))
        if change is not None:
            change(spoken["capabilities"])
        lsp = await start_client(server_environment(home, **{**mock, **(environ or {})}))
        lsp.set_configuration({"nexo": configuration or {}})
        editor = Editor(lsp, spoken, folder, log)
        editors.append(editor)
        if initialize:
            await begin(editor, settings)
        return editor

    yield start
    for editor in editors:
        if editor.result is not None and editor.client.error is None:
            await editor.client.shutdown_session()
        await editor.client.stop()
    show_log(home)


@pytest_asyncio.fixture
async def start_engine_client(start_editor: StartEditor) -> AsyncIterator[StartEngineClient]:
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


async def start_client(environ: dict[str, str]) -> LanguageClient:
    """A client that is connected to a server process of its own, before the handshake."""
    config = ClientServerConfig(
        server_command=[sys.executable, "-m", "nexo_lsp", "serve"],
        client_factory=make_client,
        server_env=environ,
    )
    client = await config.start()
    assert isinstance(client, LanguageClient)
    return client


async def begin(editor: Editor, settings: dict[str, Any] | None = None) -> types.InitializeResult:
    """Do the handshake."""
    capabilities = get_converter().structure(editor.capabilities["capabilities"], types.ClientCapabilities)
    editor.result = await editor.client.initialize_session(
        types.InitializeParams(
            capabilities=capabilities,
            client_info=types.ClientInfo(**editor.capabilities["clientInfo"]),
            workspace_folders=[types.WorkspaceFolder(editor.folder.as_uri(), "workspace")],
            root_uri=editor.folder.as_uri(),
            initialization_options=settings,
        )
    )
    encoding = editor.result.capabilities.position_encoding
    editor.encoding = str(getattr(encoding, "value", encoding))
    return editor.result


def show_log(home: Path) -> None:
    """Print the server's log; pytest shows it when the test fails."""
    for file in sorted((home / "logs").glob("*.log")):
        print(f"--- {file.name}\n{file.read_text(encoding='utf-8')}", file=sys.stderr)

"""From the handshake to the end of the process."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from lsprotocol import types

from nexo_lsp.server.capabilities import COMMANDS
from tests.lsp.conftest import StartEditor, capabilities_of, server_environment
from tests.lsp.editor import WAIT_S
from tests.lsp.raw import INITIALIZE, RawServer, start_raw


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-32"])
async def test_the_preferred_encoding_is_spoken(start_editor: StartEditor, encoding: str) -> None:
    def prefer(capabilities: dict[str, Any]) -> None:
        capabilities["general"]["positionEncodings"] = [encoding, "utf-16"]

    editor = await start_editor(change=prefer)
    assert editor.encoding == encoding
    uri = editor.open("a.py", "def f():\n    '''🎉 é'''; return g('🎉🎉')\n\n\ndef g(x):\n    return x\n")
    hover = await editor.hover(uri, "g('🎉")
    assert hover is not None
    assert hover.range is not None
    assert editor.text_at(uri, hover.range) == "g"


@pytest.mark.parametrize("client", ["vscode", "neovim"])
async def test_what_is_announced(start_editor: StartEditor, client: str) -> None:
    editor = await start_editor(client)
    assert editor.result is not None
    announced = editor.result.capabilities
    assert announced.diagnostic_provider is None
    assert announced.inline_completion_provider is not None
    assert announced.completion_provider is None
    assert isinstance(announced.text_document_sync, types.TextDocumentSyncOptions)
    assert announced.text_document_sync.change is types.TextDocumentSyncKind.Incremental
    assert announced.execute_command_provider is not None
    assert tuple(announced.execute_command_provider.commands) == COMMANDS
    assert editor.result.server_info is not None
    assert editor.result.server_info.name == "nexo-lsp"


async def test_every_request_is_answered_whatever_it_is(tmp_path: Path) -> None:
    server = await start_raw(tmp_path)
    server.send({"id": "early", "method": "textDocument/hover", "params": {}})
    assert (await server.receive())["error"]["code"] == -32002
    server.send(INITIALIZE)
    assert (await server.answer_to(1))["result"]["serverInfo"]["name"] == "nexo-lsp"
    server.send({"method": "initialized", "params": {}})
    wrong: list[tuple[dict[str, Any], int]] = [
        ({"id": 2, "method": "initialize", "params": {}}, -32600),
        ({"id": 3, "method": "no/such"}, -32601),
        ({"id": 4, "method": "textDocument/hover", "params": {"position": 1}}, -32602),
        ({"id": 5, "method": "nexo/review"}, -32602),
        ({"id": 6, "method": "nexo/review", "params": {"textDocument": {"uri": "file:///not/open"}}}, -32803),
        ({"id": 7, "method": "workspace/executeCommand", "params": {"command": "no.such"}}, -32803),
        ({"id": 8, "method": "workspace/executeCommand", "params": {"command": "nexo.action"}}, -32803),
    ]
    for message, code in wrong:
        server.send(message)
        answer = await server.answer_to(message["id"])
        assert answer["error"]["code"] == code, answer
        assert "Traceback" not in json.dumps(answer)
    server.send_bytes(b"Content-Length: 3\r\n\r\n{]}")
    assert (await server.answer_to(None))["error"]["code"] == -32700
    server.send({"id": 9, "method": "nexo/status"})
    assert (await server.answer_to(9))["result"]["engine"] == "mock"
    server.send({"id": 10, "method": "shutdown"})
    assert (await server.answer_to(10))["result"] is None
    server.send({"id": 11, "method": "nexo/status"})
    assert (await server.answer_to(11))["error"]["code"] == -32600
    server.send({"method": "exit"})
    assert await server.ended() == 0


async def test_exit_without_shutdown_is_an_error(tmp_path: Path) -> None:
    server = await start_raw(tmp_path)
    server.send(INITIALIZE)
    await server.answer_to(1)
    server.send({"method": "exit"})
    assert await server.ended() == 1


@pytest.mark.parametrize("initialized", [False, True])
async def test_a_client_that_vanishes_takes_the_server_along(tmp_path: Path, initialized: bool) -> None:
    server = await start_raw(tmp_path)
    if initialized:
        server.send(INITIALIZE)
        await server.answer_to(1)
    assert server.process.stdin is not None
    server.process.stdin.close()
    assert await server.ended() == 1


async def test_the_server_ends_when_the_process_that_it_was_told_of_is_gone(tmp_path: Path) -> None:
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "input()", stdin=asyncio.subprocess.PIPE
    )
    server = await start_raw(tmp_path)
    server.send({**INITIALIZE, "params": {**INITIALIZE["params"], "processId": parent.pid}})
    await server.answer_to(1)
    server.send({"id": 2, "method": "nexo/status"})
    await server.answer_to(2)
    assert parent.stdin is not None
    parent.stdin.close()
    await parent.wait()
    assert await server.ended() == 1


async def test_nothing_heavy_is_loaded_before_the_first_answer() -> None:
    code = (
        "import sys, nexo_lsp.server, nexo_lsp.server.stdio\n"
        "heavy = {'lsprotocol', 'pygls', 'pydantic', 'tree_sitter', 'httpx', 'huggingface_hub', 'rich', "
        "'typer', 'websockets', 'asyncio'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE, env=server_environment(Path.cwd())
    )
    out, _ = await process.communicate()
    assert out.decode().strip() == "[]"


async def test_a_library_that_prints_does_not_reach_the_client(tmp_path: Path) -> None:
    """`sitecustomize` stands for a native library: it writes to descriptor 1 once the server runs."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, threading, sys\n"
        "def shout():\n"
        "    os.write(1, b'noise from a library\\n')\n"
        "    os.system('echo noise from a child')\n"
        "def watch(event, args):\n"
        "    if event == 'import' and args[0] == 'nexo_lsp.server.transports':\n"
        "        shout()\n"
        "sys.addaudithook(watch)\n",
        encoding="utf-8",
    )
    environ = server_environment(tmp_path)
    path = (
        f"{tmp_path}:{environ['PYTHONPATH']}"
        if sys.platform != "win32"
        else f"{tmp_path};{environ['PYTHONPATH']}"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "nexo_lsp", "serve",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={**environ, "NEXO_ENGINE": "mock", "PYTHONPATH": path},
    )  # fmt: skip
    server = RawServer(process)
    server.send(INITIALIZE)
    await server.answer_to(1)
    server.send({"id": 2, "method": "nexo/status"})
    await server.answer_to(2)
    server.send({"id": 3, "method": "shutdown"})
    await server.answer_to(3)
    server.send({"method": "exit"})
    assert process.stderr is not None
    shouted = (await process.stderr.read()).decode()
    assert "noise from a library" in shouted
    assert "noise from a child" in shouted
    assert await server.ended() == 0


async def test_shutdown_ends_work_and_leaves_no_process(start_editor: StartEditor) -> None:
    editor = await start_editor(rules=[{"match": "", "hang": True}])
    uri = editor.open("a.py", "def f(x):\n    return x + 1\n")
    review = editor.start("nexo/review", {"textDocument": {"uri": uri}}, 4711)
    await editor.until_engine("start")
    server = editor.client._server
    assert server is not None
    children = psutil.Process(server.pid).children(recursive=True)
    await editor.client.shutdown_session()
    editor.result = None
    assert server.returncode == 0
    assert review.done()
    gone, alive = psutil.wait_procs(children, timeout=WAIT_S)
    assert alive == []
    assert len(gone) == len(children)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGTERM on Windows")
async def test_a_polite_kill_ends_it_in_order(tmp_path: Path) -> None:
    server = await start_raw(tmp_path)
    server.send(INITIALIZE)
    server.send({"id": 2, "method": "nexo/status"})
    await server.answer_to(2)
    server.process.terminate()
    assert await server.ended() == 1


async def test_the_log_holds_no_code(tmp_path: Path) -> None:
    server = await start_raw(tmp_path, NEXO_LOG="INFO")
    server.send(INITIALIZE)
    server.send({"method": "initialized", "params": {}})
    item = {
        "uri": "file:///a.py",
        "languageId": "python",
        "version": 1,
        "text": "def very_private():\n    pass\n",
    }
    server.send({"method": "textDocument/didOpen", "params": {"textDocument": item}})
    server.send({"id": 2, "method": "nexo/review", "params": {"textDocument": {"uri": "file:///a.py"}}})
    assert (await server.answer_to(2))["result"]["complete"] is True
    server.send(
        {"method": "textDocument/didOpen", "params": {"textDocument": {**item, "version": "very_private"}}}
    )
    server.send({"id": 3, "method": "shutdown"})
    await server.answer_to(3)
    server.send({"method": "exit"})
    assert await server.ended() == 0
    log = (tmp_path / "logs" / "server.log").read_text(encoding="utf-8")
    assert "client: unknown client" in log
    assert "does not fit textDocument/didOpen" in log
    assert "very_private" not in log


def test_the_clients_are_the_real_ones() -> None:
    assert "documentChanges" not in capabilities_of("neovim")["capabilities"]["workspace"]["workspaceEdit"]
    assert capabilities_of("vscode")["capabilities"]["textDocument"]["inlineCompletion"]

"""TCP and web sockets."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus
from websockets.typing import Origin, Subprotocol

from nexo_lsp.server.framing import FrameParser, frame
from tests.lsp.conftest import server_environment
from tests.lsp.editor import WAIT_S

PAGE = "https://editor.example"
INITIALIZE: dict[str, Any] = {
    "jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {"processId": None, "capabilities": {}},
}  # fmt: skip
STATUS: dict[str, Any] = {"jsonrpc": "2.0", "id": 2, "method": "nexo/status"}

Listen = Callable[..., Coroutine[Any, Any, "tuple[asyncio.subprocess.Process, str]"]]


@pytest_asyncio.fixture
async def listen(tmp_path: Path) -> AsyncIterator[Listen]:
    """A function that starts a listening server; gives it with the address that it printed."""
    processes: list[asyncio.subprocess.Process] = []

    async def start(*options: str) -> tuple[asyncio.subprocess.Process, str]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "nexo_lsp", "serve", *options,
            stderr=asyncio.subprocess.PIPE,
            env={**server_environment(tmp_path, NEXO_ENGINE="mock"), "NEXO_LOG": "WARNING"},
        )  # fmt: skip
        processes.append(process)
        assert process.stderr is not None
        line = (await asyncio.wait_for(process.stderr.readline(), WAIT_S)).decode()
        found = re.search(r"listens on (\S+)", line)
        assert found, line
        return process, found[1]

    yield start
    for process in processes:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def over_tcp(address: str) -> dict[str, Any]:
    """A whole session; gives the status."""
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    parser, answers = FrameParser(), {}
    writer.write(frame(INITIALIZE) + frame(STATUS))
    while 2 not in answers:
        data = await asyncio.wait_for(reader.read(65536), WAIT_S)
        assert data
        for body in parser.feed(data):
            message = json.loads(body)
            answers[message.get("id")] = message
    writer.write(frame({"jsonrpc": "2.0", "method": "exit"}))
    assert await asyncio.wait_for(reader.read(), WAIT_S) == b""
    writer.close()
    await writer.wait_closed()
    assert answers[1]["result"]["serverInfo"]["name"] == "nexo-lsp"
    return answers[2]["result"]


async def test_tcp_serves_one_client_after_the_other_and_several_at_once(listen: Listen) -> None:
    process, address = await listen("--tcp", "127.0.0.1:0")
    assert address.startswith("tcp://127.0.0.1:")
    assert (await over_tcp(address))["engine"] == "mock"
    both = await asyncio.gather(over_tcp(address), over_tcp(address))
    assert [status["engine"] for status in both] == ["mock", "mock"]
    assert process.returncode is None


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGINT to another process on Windows")
async def test_an_interrupt_ends_it(listen: Listen) -> None:
    process, address = await listen("--tcp", "127.0.0.1:0")
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    _reader, writer = await asyncio.open_connection(host, int(port))
    process.send_signal(signal.SIGINT)
    assert await asyncio.wait_for(process.wait(), WAIT_S) == 130
    writer.close()


async def session(socket: ClientConnection) -> dict[str, Any]:
    await socket.send(json.dumps(INITIALIZE))
    await socket.send(json.dumps(STATUS))
    answers: dict[Any, Any] = {}
    while 2 not in answers:
        message = json.loads(await asyncio.wait_for(socket.recv(), WAIT_S))
        answers[message.get("id")] = message
    assert answers[1]["result"]["capabilities"]["positionEncoding"] == "utf-16"
    return answers[2]["result"]


async def test_a_web_socket_needs_the_token_and_an_allowed_page(listen: Listen) -> None:
    _, address = await listen("--ws", "127.0.0.1:0", "--origin", PAGE)
    base, _, token = address.partition("?token=")
    assert len(token) >= 24
    refused = [
        (connect(base), 401),
        (connect(f"{base}?token=wrong"), 401),
        (connect(base, origin=Origin(PAGE)), 401),
        (connect(address, origin=Origin("https://evil.example")), 403),
    ]
    for attempt, status in refused:
        with pytest.raises(InvalidStatus) as caught:
            await attempt
        assert caught.value.response.status_code == status
    async with connect(address) as socket:
        assert (await session(socket))["engine"] == "mock"
    async with connect(base, additional_headers={"Authorization": f"Bearer {token}"}) as socket:
        assert (await session(socket))["engine"] == "mock"
    offered = [Subprotocol("nexo-lsp"), Subprotocol(f"nexo-token.{token}")]
    async with connect(base, origin=Origin(PAGE), subprotocols=offered) as socket:
        assert socket.subprotocol == "nexo-lsp"
        assert (await session(socket))["engine"] == "mock"


async def test_a_given_token_is_not_replaced(listen: Listen) -> None:
    _, address = await listen("--ws", "127.0.0.1:0", "--token", "given-by-the-user")
    assert address.endswith("?token=given-by-the-user")

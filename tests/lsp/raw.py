"""The server process, spoken to in bare messages: for what no well-behaved client does."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from nexo_lsp.server.framing import FrameParser, frame
from tests.lsp.conftest import server_environment
from tests.lsp.editor import WAIT_S


class RawServer:
    """The server process, spoken to in bare messages."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self._parser = FrameParser()
        self._waiting: list[dict[str, Any]] = []

    def send(self, message: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(frame({"jsonrpc": "2.0", **message}))

    def send_bytes(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)

    async def receive(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        while not self._waiting:
            data = await asyncio.wait_for(self.process.stdout.read(65536), WAIT_S)
            assert data, "the server closed its output"
            self._waiting += [json.loads(body) for body in self._parser.feed(data)]
        return self._waiting.pop(0)

    async def answer_to(self, identity: object) -> dict[str, Any]:
        """The answer to a request; what else comes is passed over."""
        while (message := await self.receive()).get("id") != identity or "method" in message:
            pass
        return message

    async def ended(self) -> int:
        return await asyncio.wait_for(self.process.wait(), WAIT_S)


async def start_raw(home: Path, **environ: str) -> RawServer:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "nexo_lsp", "serve",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        env=server_environment(home, **{"NEXO_ENGINE": "mock", **environ}),
    )  # fmt: skip
    return RawServer(process)


INITIALIZE = {
    "id": 1,
    "method": "initialize",
    "params": {"processId": None, "rootUri": None, "capabilities": {}},
}

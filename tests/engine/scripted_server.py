"""A server of OpenAI's protocol that does as it is told: an asyncio server that writes HTTP by hand."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

WAIT_S = 20


class Hang:
    """Nothing more, until the client leaves."""


class Cut:
    """The connection is reset."""


Chunk = bytes | Hang | Cut | asyncio.Event


@dataclass(frozen=True)
class Reply:
    """`chunks` are sent one by one; an event is waited for."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    chunks: Sequence[Chunk] = ()


@dataclass(frozen=True)
class Got:
    """A request as it came."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: Any


def event(data: object) -> bytes:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


def says(text: str, **more: object) -> bytes:
    return event({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}], **more})


def ends(reason: str = "stop", **more: object) -> bytes:
    return event({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}], **more})


DONE = b"data: [DONE]\n\n"
USAGE = event({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}})


def sse(*chunks: Chunk) -> Reply:
    return Reply(200, {"content-type": "text/event-stream"}, chunks)


def answer(*texts: str) -> Reply:
    """A whole answer."""
    return sse(*(says(text) for text in texts), ends(), USAGE, DONE)


def refusal(status: int, message: str, headers: Mapping[str, str] | None = None, **more: object) -> Reply:
    body = json.dumps({"error": {"message": message, **more}}).encode()
    return Reply(status, {"content-type": "application/json", **(headers or {})}, (body,))


def data(value: object, **headers: str) -> Reply:
    return Reply(200, {"content-type": "application/json", **headers}, (json.dumps(value).encode(),))


CHAT, COMPLETIONS, MODELS = "/v1/chat/completions", "/v1/completions", "/v1/models"

Rule = Callable[[Got], Reply] | Reply


class ScriptedServer:
    """Answers by path. Of several replies for one path each is used once, and the last for ever."""

    def __init__(self, owner: str = "someone", model: str = "coder", **entry: object) -> None:
        self.got: list[Got] = []
        self.left: asyncio.Event = asyncio.Event()
        """Set when a client closed its connection before the reply was over."""
        self.active = 0
        self.most_active = 0
        self._replies: dict[str, list[Rule]] = {
            MODELS: [data({"object": "list", "data": [{"id": model, "owned_by": owner, **entry}]})]
        }
        self.tls: ssl.SSLContext | None = None
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._arrived = asyncio.Condition()

    def on(self, path: str, *replies: Rule) -> None:
        self._replies[path] = list(replies)

    @property
    def url(self) -> str:
        return f"http{'s' if self.tls else ''}://127.0.0.1:{self.port}/v1"

    @property
    def chats(self) -> list[Got]:
        return [got for got in self.got if got.path == CHAT]

    async def until(self, path: str, count: int = 1) -> None:
        """Wait until so many requests have come to `path`."""
        async with asyncio.timeout(WAIT_S), self._arrived:
            await self._arrived.wait_for(lambda: sum(got.path == path for got in self.got) >= count)

    async def __aenter__(self) -> ScriptedServer:
        await self.start(0)
        return self

    async def start(self, port: int) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port, ssl=self.tls)
        self.port = self._server.sockets[0].getsockname()[1]

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """End at once, with every connection."""
        if self._server is not None:
            self._server.close()
            for writer in set(self._writers):
                writer.transport.abort()
            await self._server.wait_closed()
            self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await self._exchange(reader, writer)
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        method, path, _ = head[0].split(" ")
        headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])
        }
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        got = Got(method, path, headers, json.loads(body) if body else None)
        self.got.append(got)
        async with self._arrived:
            self._arrived.notify_all()
        rules = self._replies.get(path, [refusal(404, "no such path")])
        rule = rules.pop(0) if len(rules) > 1 else rules[0]
        reply = rule(got) if callable(rule) else rule
        self.active += 1
        self.most_active = max(self.most_active, self.active)
        gone = asyncio.ensure_future(reader.read(1))
        try:
            await self._send(reply, writer, gone)
        finally:
            self.active -= 1
            gone.cancel()

    async def _send(self, reply: Reply, writer: asyncio.StreamWriter, gone: asyncio.Future[bytes]) -> None:
        lines = [f"HTTP/1.1 {reply.status} X", "transfer-encoding: chunked", "connection: close"]
        lines += [f"{name}: {value}" for name, value in reply.headers.items()]
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        await writer.drain()
        for chunk in reply.chunks:
            if isinstance(chunk, Cut):
                writer.transport.abort()
                return
            if isinstance(chunk, bytes):
                writer.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
                await writer.drain()
                if not gone.done():
                    await asyncio.sleep(0)
                continue
            going_on = asyncio.ensure_future(chunk.wait()) if isinstance(chunk, asyncio.Event) else None
            await asyncio.wait({gone, going_on} - {None}, return_when=asyncio.FIRST_COMPLETED)
            if going_on is not None:
                going_on.cancel()
            if gone.done():
                self.left.set()
                return
        writer.write(b"0\r\n\r\n")
        await writer.drain()

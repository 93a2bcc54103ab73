"""A client with an engine of its own, that does as each test says."""

from __future__ import annotations

import asyncio

from nexo_lsp.engines.client_hosted import ClientHostedEngine
from nexo_lsp.engines.client_port import Announcement, ClientPort, End
from nexo_lsp.generation import FinishReason, Piece, Request

from .requests import chat, collect

STOP = FinishReason.STOP
ALL = Announcement(
    model="m",
    context_tokens=8192,
    infill=True,
    json_schema=True,
    answer_prefix=True,
    counts_tokens=True,
    local=True,
)


class Link:
    """Remembers what the client is told."""

    def __init__(self) -> None:
        self.started: dict[int, Request] = {}
        self.cancelled: list[int] = []
        self.tokens: int | None = 3
        self._news = asyncio.Event()

    def start(self, request_id: int, request: Request) -> None:
        self.started[request_id] = request
        self._news.set()

    def cancel(self, request_id: int) -> None:
        self.cancelled.append(request_id)

    async def count_tokens(self, text: str) -> int | None:
        return self.tokens

    async def asked(self, count: int = 1) -> int:
        """The id of the `count`-th request."""
        async with asyncio.timeout(30):
            while len(self.started) < count:
                self._news.clear()
                await self._news.wait()
        return list(self.started)[count - 1]


class Client:
    """A port with a link, and an engine at it."""

    def __init__(self, announcement: Announcement = ALL, **options: object) -> None:
        self.link, self.port = Link(), ClientPort()
        self.port.connect(self.link)
        self.port.announce(announcement)
        self.engine = ClientHostedEngine(self.port, **options)

    def begin(self, request: Request | None = None) -> asyncio.Task[tuple[str, Piece]]:
        return asyncio.ensure_future(collect(self.engine.stream(request or chat())))

    def say(self, request_id: int, *texts: str, end: FinishReason | None = STOP) -> None:
        for sequence, text in enumerate(texts):
            self.port.piece(request_id, sequence, text)
        if end is not None:
            self.port.ended(request_id, len(texts), End(end, 5, 2, len(texts)))

"""Providers and engines that are what a test says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field

from nexo_lsp.engines.engine import Engine
from nexo_lsp.errors import EngineClosed
from nexo_lsp.generation import (
    Capabilities,
    ChatPrompt,
    EngineState,
    EngineStatus,
    FinishReason,
    Message,
    Piece,
    Request,
    Role,
)
from nexo_lsp.runtime.providers.provider import Availability, Traits

REQUEST = Request(ChatPrompt((Message(Role.USER, "hello"),)))


class Held:
    """An engine that says its name, and its last word once it is let go on."""

    def __init__(self, name: str = "held") -> None:
        self.name = name
        self.go_on = asyncio.Event()
        self.closed = asyncio.Event()

    def capabilities(self) -> Capabilities:
        return Capabilities(infill=True)

    def status(self) -> EngineStatus:
        return EngineStatus(EngineState.CLOSED if self.closed.is_set() else EngineState.READY, self.name)

    async def count_tokens(self, text: str) -> int:
        return len(text)

    async def stream(self, request: Request) -> AsyncGenerator[Piece, None]:
        if self.closed.is_set():
            raise EngineClosed("The engine was closed.")
        yield Piece(self.name, 1)
        ended = [asyncio.ensure_future(event.wait()) for event in (self.go_on, self.closed)]
        try:
            await asyncio.wait(ended, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for waiting in ended:
                waiting.cancel()
        if self.closed.is_set():
            raise EngineClosed("The engine was closed.")
        yield Piece("!", 2, FinishReason.STOP)

    async def close(self) -> None:
        self.closed.set()


@dataclass(frozen=True)
class Fake:
    """A provider; `made` are the engines that it made."""

    name: str = "native"
    is_like: Traits = field(default_factory=Traits)
    says: Availability = field(default_factory=lambda: Availability(True, "it is there"))
    can: Capabilities = field(default_factory=lambda: Capabilities(infill=True))
    make: Callable[[], Engine] = Held
    made: list[Engine] = field(default_factory=list[Engine])

    def traits(self) -> Traits:
        return self.is_like

    def probe(self) -> Availability:
        return self.says

    def capabilities(self) -> Capabilities:
        return self.can

    def create_engine(self, on_status: Callable[[EngineStatus], None]) -> Engine:
        self.made.append(self.make())
        return self.made[-1]


async def text_of(engine: Engine) -> str:
    """The whole answer to `REQUEST`."""
    async with aclosing(engine.stream(REQUEST)) as pieces:
        return "".join([piece.text async for piece in pieces])

"""The one interface behind which every engine stands."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from nexo_lsp.generation import Capabilities, EngineStatus, Piece, Request


class Engine(Protocol):
    """Takes requests, streams pieces, can be cancelled and closed."""

    def capabilities(self) -> Capabilities:
        """What it can do."""
        ...

    def status(self) -> EngineStatus:
        """How it is, at this moment; never blocks."""
        ...

    async def count_tokens(self, text: str) -> int:
        """How many tokens `text` is for the loaded model (loads it if need be)."""
        ...

    def stream(self, request: Request) -> AsyncGenerator[Piece, None]:
        """Make an answer. Pieces come as the tokens are made; the last one has `finish` and `usage`.

        Closing the generator, or cancelling the task that reads it, stops the engine's work on it at once,
        in prompt processing too. Raises `EngineError` and its kinds.
        """
        ...

    async def close(self) -> None:
        """Let go of everything; waiting requests end with `EngineClosed`. May be called twice."""
        ...

"""An engine that asks servers for its tokens."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence

import httpx

from nexo_lsp.engines.remote.endpoint import Endpoint, RemoteOptions
from nexo_lsp.generation import Capabilities, EngineState, EngineStatus, Piece, Request
from nexo_lsp.offload import Offload, in_thread

MakeClient = Callable[[Endpoint], httpx.AsyncClient]


class RemoteEngine:
    """Implements `Engine` with one or several servers that speak OpenAI's protocol."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        options: RemoteOptions | None = None,
        *,
        client: MakeClient | None = None,
        offload: Offload = in_thread,
    ) -> None:
        """`endpoints` are at least one, the best first. Raises `SettingsError` for a wrong address.

        `client` makes the HTTP client of one endpoint (for tests); `offload` runs what reads certificates.
        """
        self.options = options or RemoteOptions()
        self.on_status: Callable[[EngineStatus], None] = lambda _status: None
        self._endpoints = tuple(endpoints)
        self._client = client
        self._offload = offload

    def capabilities(self) -> Capabilities:
        """What the servers can do, as far as that was found out."""
        return Capabilities(infill=True, json_schema=True, context_tokens=self.options.context_tokens)

    def status(self) -> EngineStatus:
        """The present picture."""
        return EngineStatus(EngineState.IDLE, self.options.name)

    async def count_tokens(self, text: str) -> int:
        """How many tokens `text` is there, or about how many."""
        raise NotImplementedError

    def stream(self, request: Request) -> AsyncGenerator[Piece, None]:
        """Make an answer; see `Engine.stream`."""
        raise NotImplementedError

    async def close(self) -> None:
        """Close every connection."""
        raise NotImplementedError

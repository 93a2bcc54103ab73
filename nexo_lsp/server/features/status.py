"""`nexo/status`: how the engine is, when asked and as it changes."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

from nexo_lsp.server.custom_messages import STATUS, MetricsParams, StatusParams

if TYPE_CHECKING:
    from nexo_lsp.app import Status
    from nexo_lsp.server.language_server import NexoServer

_INTERVAL_S: Final = 0.1


class StatusFeed:
    """Sends changes: a new state at once, numbers at most ten times a second.

    Only to clients that declared `experimental.nexo.status` or asked once: others would log, or even show
    (Eglot does), each notification as one that they do not know.
    """

    def __init__(self, server: NexoServer) -> None:
        self._server = server
        self._asked = False
        self._last: StatusParams | None = None
        self._last_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        server.app.on_status = self.changed

    def ask(self) -> StatusParams:
        """The status now; from here on the client gets changes too."""
        self._asked = True
        return _params(self._server.app.status())

    def changed(self, status: Status) -> None:
        """The app says that something changed."""
        if not (self._asked or self._server.client.status):
            return
        params = _params(status)
        wait = self._last_at + _INTERVAL_S - time.monotonic()
        if self._last is None or params.state != self._last.state or wait <= 0:
            self._send(params)
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(wait, self._late)

    def _late(self) -> None:
        self._timer = None
        self._send(_params(self._server.app.status()))

    def _send(self, params: StatusParams) -> None:
        self._last_at = time.monotonic()
        if params != self._last:
            self._last = params
            self._server.protocol.notify(STATUS, params)

    def close(self) -> None:
        """Send nothing more."""
        self._server.app.on_status = lambda _: None
        if self._timer is not None:
            self._timer.cancel()


def _params(status: Status) -> StatusParams:
    return StatusParams(
        enabled=status.enabled,
        engine=status.engine,
        state=status.state.value,
        model=status.model,
        device=status.device,
        queued=status.queued,
        running=status.running,
        prompt_tokens_per_second=status.prompt_tokens_per_s,
        decode_tokens_per_second=status.decode_tokens_per_s,
        memory_bytes=status.memory_bytes,
        detail=status.detail,
        reasons=list(status.reasons),
        metrics=MetricsParams(**asdict(status.metrics)) if status.metrics is not None else None,
    )


async def status(server: NexoServer, params: object) -> StatusParams:
    """`nexo/status`, the request."""
    return server.status_feed.ask()

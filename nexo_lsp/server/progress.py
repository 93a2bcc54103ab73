"""Work-done progress: what an editor shows while something takes long, and its cancel button."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from lsprotocol import types
from pygls.exceptions import JsonRpcException

if TYPE_CHECKING:
    from nexo_lsp.server.language_server import NexoServer

log = logging.getLogger(__name__)

# More reports than this are not read by anybody and cost the editor a redraw each.
_INTERVAL_S: Final = 0.1

_Begun = types.WorkDoneProgressBegin | types.WorkDoneProgressReport | types.WorkDoneProgressEnd


class Progress:
    """One progress bar; silent where the client shows none. Work never waits for it.

    The token is the server's own where the client can make one, else the one that the client sent along with
    its request (if any). Editors show percentages only if there was one at the beginning.
    """

    _numbers = itertools.count(1)

    def __init__(
        self,
        server: NexoServer,
        title: str,
        cancel: Callable[[], None] | None = None,
        client_token: types.ProgressToken | None = None,
        percentage: int | None = None,
    ) -> None:
        self._server = server
        self._title = title
        self._cancel = cancel
        self._token = client_token
        self._begun = False
        self._ended = False
        self._message: str | None = None
        self._percentage = percentage
        self._last = 0.0
        if server.client.progress:
            self._token = f"nexo-{next(self._numbers)}"
            server.spawn(self._create(self._token), f"progress of {title}")
        elif client_token is not None:
            self._begin()

    async def _create(self, token: types.ProgressToken) -> None:
        params = types.WorkDoneProgressCreateParams(token=token)
        try:
            await self._server.window_work_done_progress_create_async(params)
        except JsonRpcException:
            log.info("the client made no progress bar for %r", self._title)
            return
        if not self._ended:
            self._begin()

    def _begin(self) -> None:
        self._begun = True
        if self._cancel is not None and self._token is not None:
            self._server.progress_cancels[self._token] = self._cancel
        self._send(
            types.WorkDoneProgressBegin(
                title=self._title,
                cancellable=self._cancel is not None,
                message=self._message,
                percentage=self._percentage,
            )
        )

    def report(self, message: str, percentage: int | None = None) -> None:
        """Show how far it is; `percentage` from 0 to 100."""
        self._message, self._percentage = message, percentage
        now = time.monotonic()
        if self._begun and not self._ended and now - self._last >= _INTERVAL_S:
            self._last = now
            self._send(types.WorkDoneProgressReport(message=message, percentage=percentage))

    def end(self, message: str | None = None) -> None:
        """Take the bar away; may be called twice."""
        if self._ended:
            return
        self._ended = True
        if self._begun and self._token is not None:
            self._server.progress_cancels.pop(self._token, None)
            self._send(types.WorkDoneProgressEnd(message=message))

    def _send(self, value: _Begun) -> None:
        if self._token is not None:
            self._server.progress(types.ProgressParams(token=self._token, value=value))


def cancelled_by_client(server: NexoServer, params: types.WorkDoneProgressCancelParams) -> None:
    """The user pressed a bar's cancel button (`window/workDoneProgress/cancel`)."""
    cancel = server.progress_cancels.get(params.token)
    if cancel is None:
        log.info("a cancel for the progress %r, which is over", params.token)
    else:
        cancel()

"""Looking after endpoints in the background while they are in use."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence

from nexo_lsp.engines.remote.server import Server

_PAUSE_S = 1.0
"""Between two looks at an endpoint that failed, whatever its rest."""


class Watch:
    """Asks how endpoints are: those that failed when their rest is over, the others now and then.

    It ends by itself when nobody has asked the engine anything for `idle_s`: an editor that is left open
    shall not knock at a server all night.
    """

    def __init__(
        self, servers: Sequence[Server], every_s: float, idle_s: float, changed: Callable[[], None]
    ) -> None:
        self._servers = servers
        self._every_s = every_s
        self._idle_s = idle_s
        self._changed = changed
        self._task: asyncio.Task[None] | None = None
        self._used = 0.0
        self._failed = asyncio.Event()

    def used(self) -> None:
        """The engine is asked something."""
        loop = asyncio.get_running_loop()
        self._used = loop.time()
        if self._task is None or self._task.done():
            self._task = loop.create_task(self._run())

    def failed(self) -> None:
        """An endpoint failed: the next look comes when its rest is over."""
        self._failed.set()

    async def close(self) -> None:
        """End it."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        next_round = loop.time() + self._every_s
        while loop.time() - self._used < self._idle_s:
            soonest = loop.time() + _PAUSE_S
            resting = [max(soonest, server.rests_until) for server in self._servers if not server.well]
            self._failed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(min([next_round, *resting])):
                    await self._failed.wait()
            now = loop.time()
            due = [server for server in self._servers if not server.well and server.rests_until <= now]
            if now >= next_round:
                next_round = now + self._every_s
                due = [server for server in self._servers if server.running == 0 or server in due]
            if due:
                before = [server.well for server in self._servers]
                await asyncio.gather(*(server.check() for server in due))
                if before != [server.well for server in self._servers]:
                    self._changed()

"""Who is next, and at which endpoint."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from nexo_lsp.engines.remote.server import Server
from nexo_lsp.generation import Priority


@dataclass(eq=False, slots=True)
class _Waiter:
    priority: Priority
    order: int
    avoid: Collection[Server]
    granted: asyncio.Future[Server]


class Places:
    """So many requests at once for each endpoint; the most urgent first, at the endpoint with the fewest.

    The least urgent leave one place of each endpoint free: a server goes on with what it has begun, so
    somebody who types would wait for a review to end.
    """

    def __init__(self, servers: Sequence[Server]) -> None:
        self._servers = servers
        self._waiters: list[_Waiter] = []
        self._orders = itertools.count()

    @property
    def waiting(self) -> int:
        """How many requests have no place yet."""
        return len(self._waiters)

    async def take(self, priority: Priority, avoid: Collection[Server] = ()) -> Server:
        """A place at an endpoint that is not in `avoid`; give it back with `leave`."""
        future: asyncio.Future[Server] = asyncio.get_running_loop().create_future()
        waiter = _Waiter(priority, next(self._orders), avoid, future)
        self._waiters.append(waiter)
        self.look_again()
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self.leave(future.result())
            elif waiter in self._waiters:
                self._waiters.remove(waiter)
            raise

    def leave(self, server: Server) -> None:
        """Give a place back."""
        server.running -= 1
        self.look_again()

    def look_again(self) -> None:
        """Hand out what is free: an endpoint may be well again."""
        for waiter in sorted(self._waiters, key=lambda one: (one.priority, one.order)):
            server = self._best(waiter)
            if server is None:
                continue
            server.running += 1
            self._waiters.remove(waiter)
            if waiter.granted.cancelled():
                server.running -= 1
            else:
                waiter.granted.set_result(server)

    def _best(self, waiter: _Waiter) -> Server | None:
        def has_room(server: Server) -> bool:
            spared = 1 if waiter.priority is Priority.BACKGROUND and server.places > 1 else 0
            return server not in waiter.avoid and server.running < server.places - spared

        free = [server for server in self._servers if has_room(server)]
        # An endpoint that failed is asked only when no other has a place; among equals, the user's order.
        well = [server for server in free if server.well]
        if not well:
            if any(server.well and server not in waiter.avoid for server in self._servers):
                return None
            return min(free, key=lambda server: server.rests_until, default=None)
        return min(well, key=lambda server: server.running)

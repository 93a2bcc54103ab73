"""How long is waited: until a request's deadline, or until the engine is closed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import TypeVar

from nexo_lsp.errors import EngineClosed

_T = TypeVar("_T")


class OutOfTime(Exception):
    """A request's deadline has passed."""


class Waits:
    """Everything that an engine waits for at this moment."""

    def __init__(self) -> None:
        self.closed = False
        self._scopes: set[asyncio.Timeout] = set()

    async def until(self, deadline: float | None, work: Awaitable[_T]) -> _T:
        """The result of `work`, which is cancelled at `deadline` (of the loop's clock).

        Raises `OutOfTime` then, and `EngineClosed` when the engine is closed. Each wait has a scope of its
        own, since one around a whole generator would cancel whoever reads it.
        """
        scope = asyncio.timeout_at(deadline)
        try:
            async with scope:
                self._scopes.add(scope)
                if self.closed:
                    scope.reschedule(asyncio.get_running_loop().time())
                try:
                    return await work
                finally:
                    self._scopes.discard(scope)
        except TimeoutError as error:
            if self.closed:
                raise EngineClosed("The engine was closed.") from error
            if scope.expired():
                raise OutOfTime from error
            raise

    def close(self) -> None:
        """End all waits."""
        self.closed = True
        now = asyncio.get_running_loop().time()
        for scope in self._scopes:
            if not scope.expired():
                scope.reschedule(now)


@dataclass(frozen=True, slots=True)
class Patience:
    """What one request waits with."""

    waits: Waits
    deadline: float | None
    """Of the loop's clock."""

    async def wait(self, work: Awaitable[_T]) -> _T:
        """See `Waits.until`."""
        return await self.waits.until(self.deadline, work)

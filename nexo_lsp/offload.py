"""Running blocking work away from the event loop, as something that is handed in.

The core never reaches for threads itself (a browser has none): `app.py` hands an `Offload` to whoever needs
one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

T = TypeVar("T")


class Offload(Protocol):
    """Runs `work` where it may block, and answers with what it returns or raises."""

    def __call__(self, work: Callable[[], T], /) -> Awaitable[T]:
        """Start `work`; the answer is awaited on the loop."""
        ...


async def in_thread(work: Callable[[], T], /) -> T:
    """Off-load to a thread of the default pool."""
    return await asyncio.to_thread(work)


async def inline(work: Callable[[], T], /) -> T:
    """Run at once, on the loop: for platforms without threads, and for tests."""
    return work()

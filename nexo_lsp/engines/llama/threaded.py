"""The worker in a thread of this process, for platforms that have no processes.

The process is left as it is found: its descriptors, signals, allocator and environment belong to whoever runs
it. What native code prints on descriptor 1 goes where that leads: a server on standard input and output has
moved it away already. There is no protection from a crash in native code; it takes the process along.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from nexo_lsp.engines.llama.messages import FromWorker, Load, Shutdown, ToWorker
from nexo_lsp.engines.llama.process import Hosted

if TYPE_CHECKING:
    from nexo_lsp.engines.llama.worker import Worker

_log = logging.getLogger(__name__)

_NAME: Final = "nexo-engine"


async def spawn_in_thread(_wish: Load) -> Hosted:
    """A `Spawn` that starts a worker in a thread."""
    # What the worker needs takes a while to be read from disk, and a server starts without it.
    await asyncio.to_thread(_worker_class)
    return Hosted(ThreadLink(), shared=False, reason="there are no processes here, so it runs in a thread")


def _worker_class() -> type[Worker]:
    from nexo_lsp.engines.llama.worker import Worker

    return Worker


class ThreadLink:
    """A worker in a thread, reached through queues in memory. To be made on the loop that reads it."""

    pid: int | None = None

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._inbox: queue.SimpleQueue[ToWorker | None] = queue.SimpleQueue()
        self._outbox: asyncio.Queue[FromWorker | None] = asyncio.Queue()
        self._ended = asyncio.Event()
        self._over = False
        self._worker = _worker_class()(self._receive, self._say)
        # A daemon: native code that never comes back must not keep the interpreter from ending.
        self._thread = threading.Thread(target=self._run, name=_NAME, daemon=True)
        self._thread.start()

    # In the loop.

    def send(self, message: ToWorker) -> None:
        """Put `message` in line, and give a step up for it that is less urgent."""
        if not self._over:
            self._worker.notice(message)
            self._inbox.put(message)

    async def receive(self) -> AsyncIterator[FromWorker]:
        """Messages until the thread ends."""
        while (message := await self._outbox.get()) is not None:
            yield message

    def work_s(self) -> float:
        """The processor time of the whole process, since that of all threads of the engine cannot be told."""
        return time.process_time()

    def kill(self) -> None:
        """Have the thread end as soon as it comes back from what it does; nothing else ends a thread."""
        if not self._over:
            self._over = True
            self._worker.notice(None)
            self._inbox.put(None)
            # Whoever reads must not wait for a thread that hangs.
            self._outbox.put_nowait(None)

    async def close(self, grace_s: float) -> None:
        """Have the thread free the model and end. One that does not within `grace_s` is left behind."""
        self.send(Shutdown())
        self._over = True
        try:
            await asyncio.wait_for(self._ended.wait(), grace_s)
        except TimeoutError:
            _log.error("The engine's thread does not end; it frees the model when it comes back, if it does.")

    def _end(self) -> None:
        self._over = True
        self._ended.set()
        self._outbox.put_nowait(None)

    def last_words(self) -> str:
        """Nothing: what the engine printed is in this process's own log."""
        return ""

    async def exit_code(self) -> int | None:
        """None; threads have none."""
        return None

    # In the thread.

    def _run(self) -> None:
        try:
            self._worker.run()
        finally:
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._end)

    def _say(self, message: FromWorker) -> None:
        try:
            self._loop.call_soon_threadsafe(self._outbox.put_nowait, message)
        except RuntimeError as error:
            # The loop is closed: nobody hears it any more.
            raise EOFError from error

    def _receive(self, wait: bool) -> ToWorker | None:
        try:
            message = self._inbox.get(block=wait)
        except queue.Empty:
            return None
        if message is None:
            raise EOFError
        return message

"""One running worker: who waits for what from it, and whether it still lives."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable

from nexo_lsp.engines.llama.messages import (
    Count,
    Delta,
    Done,
    Failed,
    Failure,
    FromWorker,
    Load,
    Loaded,
    LoadFailed,
    Rejected,
    Shutdown,
    Stats,
    ToWorker,
)
from nexo_lsp.engines.llama.process import WorkerLink
from nexo_lsp.errors import EngineCrashed, EngineError, EngineLoadFailed, NexoError, PromptTooLong

_log = logging.getLogger(__name__)

Answer = Delta | Done | Count

# A worker that says nothing and yet computes (a long step of a large model, weights from a slow disk) is
# given this many times the silence of one that stands still.
_WORKING_PATIENCE = 6
# Less than this share of one processor is no work: a worker that waits for something looks now and then.
_WORKING_SHARE = 0.05

# A worker that is starting may be silent for this long at least: the interpreter and the library are read
# from disk before it can say anything.
_START_SILENCE_S = 30.0

_DIED = "The engine's process ended unexpectedly; it is started again with the next request."
_KILLED = (
    "The engine's process ended unexpectedly: it was killed, perhaps because memory ran out (then close "
    "something, or set nexo.engine.memoryLimitMb); it is started again with the next request."
)
_KILL_CODE = -9
_HUNG = "The engine hung and was ended; it is started again with the next request."


class Inbox:
    """What the worker says about one request, in order; ends with an error at the latest when it dies."""

    def __init__(self) -> None:
        self._items: deque[Answer | NexoError] = deque()
        self._waiter: asyncio.Future[None] | None = None

    def put(self, item: Answer | NexoError) -> None:
        """Add something; never blocks."""
        self._items.append(item)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def next(self) -> Answer:
        """The next message. Raises the error that ended the request."""
        while not self._items:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        item = self._items.popleft()
        if isinstance(item, NexoError):
            raise item
        return item


class Connection:
    """Routes messages between requests and one worker, and watches over the worker."""

    def __init__(
        self,
        link: WorkerLink,
        *,
        hang_s: float,
        grace_s: float,
        changed: Callable[[], None],
    ) -> None:
        self.stats: Stats | None = None
        self.lost: EngineCrashed | None = None
        """Why the worker is gone, once it is."""
        self.on_lost: Callable[[EngineCrashed], None] = lambda _error: None
        self._link = link
        self._hang_s = hang_s
        self._grace_s = grace_s
        self._changed = changed
        self._inboxes: dict[int, Inbox] = {}
        self._info: Loaded | None = None
        self._loading: asyncio.Future[Loaded] | None = None
        self._heard = time.monotonic()
        self._ending = False
        self._reader = asyncio.ensure_future(self._read())
        self._watchdog = asyncio.ensure_future(self._watch())

    @property
    def pid(self) -> int | None:
        """The worker's process."""
        return self._link.pid

    @property
    def info(self) -> Loaded:
        """What was loaded; only asked for after `load`."""
        if self._info is None:
            raise EngineError("The engine has no model yet.")
        return self._info

    async def load(self, wish: Load, timeout_s: float) -> None:
        """Have the model loaded. Raises `EngineLoadFailed` or `EngineCrashed`."""
        if self.lost is not None:
            raise self.lost
        self._loading = asyncio.get_running_loop().create_future()
        self._heard = time.monotonic()
        self.send(wish)
        try:
            self._info = await asyncio.wait_for(self._loading, timeout_s)
        except TimeoutError:
            raise EngineLoadFailed(
                f"Loading {wish.path} took longer than {timeout_s:.0f} s; set nexo.model to a smaller model."
            ) from None
        finally:
            self._loading = None

    def open(self, request_id: int) -> Inbox:
        """Where the answers to `request_id` arrive."""
        inbox = self._inboxes[request_id] = Inbox()
        if not self._reader.done() and len(self._inboxes) == 1:
            # Silence counts from here: an idle worker has nothing to say.
            self._heard = time.monotonic()
        if self.lost is not None:
            inbox.put(self.lost)
        return inbox

    def forget(self, request_id: int) -> None:
        """Nobody waits for `request_id` any more."""
        self._inboxes.pop(request_id, None)

    def send(self, message: ToWorker) -> None:
        """Tell the worker something."""
        if not self._ending and self.lost is None:
            self._link.send(message)

    async def end(self, reason: NexoError) -> None:
        """End the worker; whoever still waits gets `reason`."""
        self._fail_all(reason)
        if not self._ending:
            self.send(Shutdown())
            self._ending = True
        self._watchdog.cancel()
        await self._link.close(self._grace_s)
        await asyncio.wait({self._reader, self._watchdog})

    async def _read(self) -> None:
        async for message in self._link.receive():
            self._heard = time.monotonic()
            self._dispatch(message)
        if not self._ending and self.lost is None:
            code = await self._link.exit_code()
            if not self._ending:
                self._lose(EngineCrashed(_KILLED if code == _KILL_CODE else _DIED))

    def _dispatch(self, message: FromWorker) -> None:
        match message:
            case Delta() | Done() | Count():
                self._put(message.id, message)
            case Failed():
                self._put(message.id, _error(message))
            case Loaded():
                if self._loading is not None and not self._loading.done():
                    self._loading.set_result(message)
            case LoadFailed():
                if self._loading is not None and not self._loading.done():
                    self._loading.set_exception(EngineLoadFailed(message.message))
            case Stats():
                self.stats = message
                self._changed()
            case Rejected():
                _log.error("The engine's worker did not understand a message: %s", message.message)
            case _:
                _log.debug("worker: %s", message)

    def _put(self, request_id: int, item: Answer | NexoError) -> None:
        inbox = self._inboxes.get(request_id)
        if inbox is not None:
            inbox.put(item)

    async def _watch(self) -> None:
        """End a worker that has work and neither says anything nor computes; one that computes, much later.

        Silence is counted in ticks of this task, so that a laptop that slept for hours is not taken for a
        worker that hung.
        """
        tick = self._hang_s / 8
        silent, still = 0.0, 0.0
        heard, worked = self._heard, self._link.work_s()
        while not self._reader.done():
            await asyncio.sleep(tick)
            expecting = bool(self._inboxes) or self._loading is not None
            before, worked = worked, self._link.work_s()
            if not expecting or heard != self._heard:
                silent = still = 0.0
            else:
                silent += tick
                still = 0.0 if worked - before >= _WORKING_SHARE * tick else still + tick
            heard = self._heard
            limit = self._hang_s if self._loading is None else max(self._hang_s, _START_SILENCE_S)
            if still >= limit or silent >= _WORKING_PATIENCE * limit:
                _log.error("The engine's worker %s has said nothing for %.1f s.", self.pid, silent)
                self._lose(EngineCrashed(_HUNG))
                self._link.kill()
                return

    def _lose(self, error: EngineCrashed) -> None:
        if self.lost is not None:
            return
        self.lost = error
        words = self._link.last_words()
        _log.error("%s Its last words:\n%s", error, words or "(none)")
        if self._loading is not None and not self._loading.done():
            self._loading.set_exception(error)
        self._fail_all(error)
        self.on_lost(error)

    def _fail_all(self, error: NexoError) -> None:
        for inbox in self._inboxes.values():
            inbox.put(error)


def _error(message: Failed) -> EngineError:
    if message.failure is Failure.PROMPT_TOO_LONG:
        return PromptTooLong(message.message)
    return EngineError(message.message)

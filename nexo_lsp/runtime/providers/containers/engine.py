"""An engine whose server comes and goes in a container; the answers are made by the engine of servers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from nexo_lsp.engines.engine import Engine
from nexo_lsp.errors import (
    BadAnswer,
    EngineClosed,
    EngineCrashed,
    EngineError,
    EngineSilent,
    ModelCorrupt,
    ModelMissing,
    ModelUnknown,
    NexoError,
    PromptTooLong,
)
from nexo_lsp.generation import Capabilities, EngineState, EngineStatus, FinishReason, Piece, Request, Usage

_log = logging.getLogger(__name__)

NAME = "docker"

_BACKOFF_FIRST_S, _BACKOFF_MOST_S = 1.0, 60.0
# To see these costs a look at the disk, and as soon as the user has mended them the next request shall work.
_SEEN_AT_ONCE = (ModelMissing, ModelCorrupt, ModelUnknown)
# What a server answers that is well.
_NO_CRASH = (PromptTooLong, BadAnswer, EngineClosed)
# A connection breaks a moment before the container is said to have ended.
_PATIENCE_S = 2.0

_CLOSED = "The engine was closed."


class Server(Protocol):
    """A server that runs and answers."""

    url: str
    key: str
    name: str
    image: str
    host: str
    memory_limit_bytes: int
    confined: bool
    """Whether it has no way out into a network."""

    async def crashed(self, patience_s: float) -> EngineError | None:
        """Why it no longer runs, None if it does."""
        ...

    async def stop(self) -> None:
        """End it."""
        ...


Start = Callable[[Path, Callable[[str], None]], Awaitable[Server]]
Connect = Callable[[str, str], Engine]
"""From an address and a key to an engine that asks there."""


@dataclass(frozen=True, slots=True)
class _Live:
    server: Server
    engine: Engine


class ContainerEngine:
    """Implements `Engine` with a server that comes and goes."""

    def __init__(
        self,
        model: Callable[[], Awaitable[Path]],
        start: Start,
        connect: Connect,
        *,
        capabilities: Capabilities,
        idle_unload_s: float = 600.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`model` gives the file at the first need; `capabilities` are those to be expected before that."""
        self.on_status: Callable[[EngineStatus], None] = lambda _status: None
        self._model = model
        self._start_server = start
        self._connect = connect
        self._expected = capabilities
        self._idle_unload_s = idle_unload_s
        self._clock = clock
        self._live: _Live | None = None
        self._starting: asyncio.Task[_Live] | None = None
        self._ending: set[asyncio.Task[None]] = set()
        self._model_path: Path | None = None
        self._doing = ""
        self._waiting = 0
        self._heard = 0
        """How many pieces came from servers."""
        self._failures = 0
        self._retry_at = 0.0
        self._last_error: NexoError | None = None
        self._idle_timer: asyncio.TimerHandle | None = None
        self._closed = False

    def capabilities(self) -> Capabilities:
        """What the server can do; before it runs, what is to be expected."""
        return self._live.engine.capabilities() if self._live is not None else self._expected

    def status(self) -> EngineStatus:
        """The present picture."""
        error = str(self._last_error) if self._last_error is not None else ""
        state = self._state()
        model = self._model_path.stem if self._model_path is not None else None
        if self._live is None:
            return EngineStatus(state, NAME, model, queued=self._waiting, detail=self._doing or error)
        server, inner = self._live.server, self._live.engine.status()
        notes = (
            f"container: {server.name} of {server.image} at {server.url}, by {server.host}",
            f"container: at most {server.memory_limit_bytes / 1e9:.1f} GB of memory; "
            f"{'no network but its port' if server.confined else 'its port is for this machine only'}",
        )
        return replace(
            inner,
            state=state,
            name=NAME,
            model=model,
            device=server.image,
            detail=error,
            extra={"notes": notes},
        )

    async def count_tokens(self, text: str) -> int:
        """How many tokens `text` is; starts the server if need be."""
        with self._counted():
            try:
                return await self._count(text)
            except EngineCrashed as error:
                _log.warning("beginning again after: %s", error)
                return await self._count(text)

    async def stream(self, request: Request) -> AsyncGenerator[Piece, None]:
        """Make an answer; see `Engine.stream`.

        When the server dies before anything was shown, the answer is begun again once, on the next one.
        """
        deadline = None if request.deadline_s is None else self._clock() + request.deadline_s
        shown = retried = False
        with self._counted():
            while True:
                try:
                    async with aclosing(self._attempt(request, deadline)) as pieces:
                        async for piece in pieces:
                            shown = True
                            yield piece
                    return
                except EngineCrashed as error:
                    if shown or retried:
                        raise
                    retried = True
                    _log.warning("nothing of an answer had been shown; beginning it again after: %s", error)

    async def close(self) -> None:
        """Stop and remove the container; waiting requests end with `EngineClosed`."""
        self._closed = True
        self._stop_idle_timer()
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.wait({self._starting})
        self._let_go()
        while self._ending:
            await asyncio.wait(set(self._ending))
        self._changed()

    async def _attempt(self, request: Request, deadline: float | None) -> AsyncGenerator[Piece, None]:
        try:
            live = await self._ready(deadline)
        except TimeoutError:
            yield Piece("", 0, FinishReason.DEADLINE, Usage(queue_s=request.deadline_s or 0.0))
            return
        if deadline is not None:
            request = replace(request, deadline_s=max(0.0, deadline - self._clock()))
        heard = self._heard
        try:
            async with aclosing(live.engine.stream(request)) as pieces:
                async for piece in pieces:
                    self._heard += 1
                    yield piece
        except EngineError as error:
            raise await self._explained(live, error, heard) from error
        self._failures, self._last_error = 0, None

    async def _count(self, text: str) -> int:
        live = await self._ready(None)
        heard = self._heard
        try:
            return await live.engine.count_tokens(text)
        except EngineError as error:
            raise await self._explained(live, error, heard) from error

    async def _explained(self, live: _Live, error: EngineError, heard: int) -> EngineError:
        """What became of the container if that is the reason, else the error itself.

        A container that runs and says nothing is let go of, unless something came for another request since
        `heard`: then it is only busy.
        """
        if isinstance(error, _NO_CRASH) or self._closed:
            return error
        if self._live is not live:
            # Another request was told already, or it was let go of.
            return self._last_error if isinstance(self._last_error, EngineCrashed) else error
        crash = await live.server.crashed(_PATIENCE_S)
        hangs = isinstance(error, EngineSilent) and self._heard == heard
        if crash is None and not hangs:
            return error
        reason = crash or error
        if self._live is live:
            self._note_failure(reason)
            self._let_go()
            self._changed()
        return reason

    # The server's life.

    async def _ready(self, deadline: float | None) -> _Live:
        """A server that has the model; all who wait share one start.

        Raises `TimeoutError` at the deadline, `EngineError` and its kinds, and what `model` raises.
        """
        if self._closed:
            raise EngineClosed(_CLOSED)
        if self._live is not None:
            return self._live
        if self._starting is None:
            wait = self._retry_at - self._clock()
            if wait > 0 and self._last_error is not None:
                raise type(self._last_error)(f"{self._last_error} (Next try in {wait:.0f} s.)")
            self._starting = asyncio.ensure_future(self._start())
            self._starting.add_done_callback(self._started)
            self._changed()
        start = self._starting
        timeout = None if deadline is None else max(0.0, deadline - self._clock())
        await asyncio.wait({start}, timeout=timeout)
        if not start.done():
            raise TimeoutError
        if start.cancelled():
            raise EngineClosed(_CLOSED)
        return start.result()

    async def _start(self) -> _Live:
        # One that was let go of is gone first: two would need twice the memory.
        if self._ending:
            await asyncio.wait(set(self._ending))
        self._model_path = path = await self._model()
        server = await self._start_server(path, self._tell)
        return _Live(server, self._connect(server.url, server.key))

    def _started(self, start: asyncio.Task[_Live]) -> None:
        self._starting, self._doing = None, ""
        if start.cancelled():
            return
        error = start.exception()
        if error is None:
            self._live = start.result()
            self._last_error = None
        elif isinstance(error, NexoError):
            self._note_failure(error)
        self._rearm_idle_timer()
        self._changed()

    def _note_failure(self, error: NexoError) -> None:
        """Back off: the first try after a failure comes at once, later ones ever more slowly."""
        self._last_error = error
        if isinstance(error, _SEEN_AT_ONCE):
            return
        self._failures += 1
        wait = 0.0
        if self._failures > 1:
            wait = min(_BACKOFF_MOST_S, _BACKOFF_FIRST_S * 2 ** (self._failures - 2))
        self._retry_at = self._clock() + wait

    def _let_go(self) -> None:
        live, self._live = self._live, None
        self._stop_idle_timer()
        if live is not None:
            task = asyncio.ensure_future(_end(live))
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    # Idling and status.

    @contextmanager
    def _counted(self) -> Generator[None]:
        """Count a request while it runs, so that the server is not let go of under it."""
        self._waiting += 1
        self._stop_idle_timer()
        self._changed()
        try:
            yield
        finally:
            self._waiting -= 1
            self._rearm_idle_timer()
            self._changed()

    def _rearm_idle_timer(self) -> None:
        self._stop_idle_timer()
        if self._live is not None and self._waiting == 0 and self._idle_unload_s > 0:
            loop = asyncio.get_running_loop()
            self._idle_timer = loop.call_later(self._idle_unload_s, self._unload)

    def _stop_idle_timer(self) -> None:
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None

    def _unload(self) -> None:
        _log.info("stopping the container after %.0f s without use", self._idle_unload_s)
        self._let_go()
        self._changed()

    def _tell(self, words: str) -> None:
        # The last words about a download may come when it was given up already.
        if self._starting is not None:
            self._doing = words
            self._changed()

    def _state(self) -> EngineState:
        if self._closed:
            return EngineState.CLOSED
        if self._starting is not None:
            return EngineState.LOADING
        if self._live is not None:
            return EngineState.BUSY if self._waiting else EngineState.READY
        return EngineState.FAILED if self._last_error is not None else EngineState.IDLE

    def _changed(self) -> None:
        self.on_status(self.status())


async def _end(live: _Live) -> None:
    await live.engine.close()
    await live.server.stop()

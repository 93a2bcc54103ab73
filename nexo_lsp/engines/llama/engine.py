"""The server's side of the embedded engine: starts the worker when it is needed, and outlives it."""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import psutil

from nexo_lsp.engines.llama.connection import Connection
from nexo_lsp.engines.llama.messages import Cancel, Count, CountTokens, Delta, Done, Load, Start
from nexo_lsp.engines.llama.process import Hosted, Spawn, spawn_private
from nexo_lsp.errors import (
    EngineClosed,
    EngineCrashed,
    EngineUnavailable,
    ModelCorrupt,
    ModelMissing,
    ModelUnknown,
    NexoError,
)
from nexo_lsp.generation import (
    Capabilities,
    EngineState,
    EngineStatus,
    FinishReason,
    Piece,
    Request,
    Usage,
)

_log = logging.getLogger(__name__)

# To see these costs a look at the disk, and as soon as the user has mended them the next request shall work.
_SEEN_AT_ONCE = (ModelMissing, ModelCorrupt, ModelUnknown)

_BACKOFF_FIRST_S, _BACKOFF_MOST_S = 1.0, 60.0

# Double quotes are the ones that every shell knows, that of Windows too.
INSTALL_HINT = (
    'llama-cpp-python is not installed; run: pip install "nexo-lsp[native]" (it is compiled on this machine; '
    "`nexo-lsp doctor` says whether a compiler is missing)."
)


def is_installed() -> bool:
    """Whether the library is there; looked up without importing it."""
    return importlib.util.find_spec("llama_cpp") is not None


@dataclass(frozen=True, slots=True)
class LlamaOptions:
    """How the engine is run."""

    context_tokens: int = 8192
    """How many tokens it holds at once, over all sequences."""
    threads: int = 0
    """0 lets the worker choose."""
    gpu_layers: int | None = None
    """None: as many as fit where the build can use a GPU; -1: all."""
    sequences: int = 8
    memory_limit_mb: int = 0
    """What the worker may take in all, in MiB; 0: only what is free counts."""
    kv_type: Literal["", "f16", "q8_0"] = ""
    """How the cache is kept; empty lets the worker choose."""
    prefix_folder: Path | None = None
    """Where evaluated static prompts are kept between two runs; None keeps none."""
    draft_path: Path | None = None
    """A smaller model of the same vocabulary that guesses what comes next."""
    unpack_folder: Path | None = None
    """Where a copy of the model with its weights in whole bytes may be kept; None makes none."""
    idle_unload_s: float = 600.0
    """After so long without a request the worker is ended; 0 keeps it."""
    hang_s: float = 30.0
    """A worker with work that says nothing for so long is ended."""
    load_timeout_s: float = 300.0
    close_grace_s: float = 2.0


class LlamaEngine:
    """Implements `Engine` with llama.cpp in a worker that comes and goes."""

    def __init__(
        self,
        model: Callable[[], Awaitable[Path]],
        options: LlamaOptions | None = None,
        *,
        spawn: Spawn = spawn_private,
        tune: Callable[[Path, LlamaOptions], LlamaOptions] | None = None,
        installed: Callable[[], bool] = is_installed,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`model` gives the file at the first need; its errors reach the requests that wait for it.

        `tune` fits the options to that file; it may read a small file, and runs in a thread.
        """
        self.options = options or LlamaOptions()
        self.on_status: Callable[[EngineStatus], None] = lambda _status: None
        self._model = model
        self._spawn = spawn
        self._tune = tune
        self._installed = installed
        self._clock = clock
        self._ids = itertools.count(1)
        self._connection: Connection | None = None
        self._hosted: Hosted | None = None
        self._starting: asyncio.Task[Connection] | None = None
        self._model_path: Path | None = None
        self._waiting = 0
        self._failures = 0
        self._retry_at = 0.0
        self._last_error: NexoError | None = None
        self._idle_timer: asyncio.TimerHandle | None = None
        self._ending: set[asyncio.Task[None]] = set()
        self._closed = False

    def capabilities(self) -> Capabilities:
        """What the loaded model can do; before that, what is to be expected."""
        info = self._connection.info if self._connection is not None else None
        return Capabilities(
            chat=True,
            infill=info.infill if info is not None else True,
            json_schema=True,
            context_tokens=info.context_tokens if info is not None else self.options.context_tokens,
            local=True,
        )

    def status(self) -> EngineStatus:
        """The present picture."""
        connection = self._connection
        stats = connection.stats if connection is not None else None
        # A shared worker counts everybody's; more than we asked for is not ours.
        running = min(stats.running, self._waiting) if stats is not None else 0
        return EngineStatus(
            state=self._state(),
            name="native",
            model=self._model_path.stem if self._model_path is not None else None,
            device=connection.info.device if connection is not None else None,
            queued=self._waiting - running,
            running=running,
            prompt_tokens_per_s=stats.prompt_tokens_per_s if stats is not None else None,
            decode_tokens_per_s=stats.decode_tokens_per_s if stats is not None else None,
            memory_bytes=_resident_bytes(connection.pid) if connection is not None else None,
            detail=str(self._last_error) if self._last_error is not None else "",
            extra={} if connection is None else _details(connection, self._hosted),
        )

    async def count_tokens(self, text: str) -> int:
        """How many tokens `text` is; loads the model if need be."""
        with _Waiting(self):
            try:
                return await self._count(text)
            except EngineCrashed as error:
                self._log_retry(error)
                return await self._count(text)

    async def stream(self, request: Request) -> AsyncGenerator[Piece, None]:
        """Make an answer; see `Engine.stream`.

        When the worker dies or hangs before anything was shown, the answer is begun again on the next worker:
        once, since it may be this very request that the worker dies of.
        """
        deadline = None if request.deadline_s is None else self._clock() + request.deadline_s
        shown = retried = False
        with _Waiting(self):
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
                    self._log_retry(error)

    async def _attempt(self, request: Request, deadline: float | None) -> AsyncGenerator[Piece, None]:
        try:
            connection = await self._ready(deadline)
        except TimeoutError:
            yield Piece("", 0, FinishReason.DEADLINE, Usage(queue_s=request.deadline_s or 0.0))
            return
        if deadline is not None:
            request = replace(request, deadline_s=max(0.0, deadline - self._clock()))
        request_id = next(self._ids)
        inbox = connection.open(request_id)
        done = False
        try:
            connection.send(Start(request_id, request))
            while not done:
                message = await inbox.next()
                if isinstance(message, Delta) and message.text:
                    yield Piece(message.text, message.tokens)
                elif isinstance(message, Done):
                    done = True
                    self._failures, self._last_error = 0, None
                    yield Piece(message.text, message.tokens, message.finish, message.usage)
        finally:
            if not done:
                connection.send(Cancel(request_id))
            connection.forget(request_id)

    async def _count(self, text: str) -> int:
        connection = await self._ready(None)
        request_id = next(self._ids)
        inbox = connection.open(request_id)
        try:
            connection.send(CountTokens(request_id, text))
            while True:
                message = await inbox.next()
                if isinstance(message, Count):
                    return message.tokens
        finally:
            connection.forget(request_id)

    def _log_retry(self, error: EngineCrashed) -> None:
        _log.warning("Nothing of an answer had been shown; beginning it again after: %s", error)

    async def close(self) -> None:
        """End the worker; waiting requests end with `EngineClosed`."""
        self._closed = True
        self._stop_idle_timer()
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.wait({self._starting})
        if self._connection is not None:
            self._end(EngineClosed("The engine was closed."))
        while self._ending:
            await asyncio.wait(set(self._ending))
        self._changed()

    # The worker's life.

    async def _ready(self, deadline: float | None) -> Connection:
        """The connection to a worker that has the model; all who wait share one start.

        Raises `TimeoutError` at the deadline, `EngineError` and its kinds, and what `model` raises.
        """
        if self._closed:
            raise EngineClosed("The engine was closed.")
        if self._connection is not None:
            return self._connection
        if self._starting is None:
            self._refuse_if_hopeless()
            self._starting = asyncio.ensure_future(self._start())
            self._starting.add_done_callback(self._started)
            self._changed()
        start = self._starting
        timeout = None if deadline is None else max(0.0, deadline - self._clock())
        await asyncio.wait({start}, timeout=timeout)
        if not start.done():
            raise TimeoutError
        if start.cancelled():
            raise EngineClosed("The engine was closed.")
        return start.result()

    def _refuse_if_hopeless(self) -> None:
        if not self._installed():
            raise EngineUnavailable(INSTALL_HINT)
        wait = self._retry_at - self._clock()
        if wait > 0 and self._last_error is not None:
            raise type(self._last_error)(f"{self._last_error} (Next try in {wait:.0f} s.)")

    async def _start(self) -> Connection:
        path = await self._model()
        self._model_path = path
        options = self.options
        if self._tune is not None:
            options = await asyncio.to_thread(self._tune, path, options)
        wish = _wish(path, options)
        self._hosted = hosted = await self._spawn(wish)
        connection = Connection(
            hosted.link,
            hang_s=options.hang_s,
            grace_s=options.close_grace_s,
            changed=self._changed,
        )
        try:
            await connection.load(wish, options.load_timeout_s)
        except BaseException as error:
            # Also when the start is cancelled: a worker that nobody knows of would stay for ever.
            reason = error if isinstance(error, NexoError) else EngineClosed("The engine was closed.")
            await connection.end(reason)
            raise
        return connection

    def _started(self, start: asyncio.Task[Connection]) -> None:
        self._starting = None
        if start.cancelled():
            return
        error = start.exception()
        if error is None:
            self._connection = connection = start.result()
            connection.on_lost = self._lost
            self._last_error = None
            _log.info("Model loaded: %s", connection.info)
            if connection.lost is not None:
                self._lost(connection.lost)
        elif isinstance(error, NexoError):
            self._note_failure(error)
        self._rearm_idle_timer()
        self._changed()

    def _lost(self, error: EngineCrashed) -> None:
        """The worker died or hung. Its requests have their error already; the next need starts another."""
        self._note_failure(error)
        self._end(error)
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

    def _end(self, reason: NexoError) -> None:
        connection, self._connection = self._connection, None
        self._stop_idle_timer()
        if connection is not None:
            task = asyncio.ensure_future(connection.end(reason))
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    # Idle unloading and status.

    def enter(self) -> None:
        """A request begins."""
        self._waiting += 1
        self._stop_idle_timer()
        self._changed()

    def leave(self) -> None:
        """A request has ended."""
        self._waiting -= 1
        self._rearm_idle_timer()
        self._changed()

    def _rearm_idle_timer(self) -> None:
        self._stop_idle_timer()
        idle = self._connection is not None and self._waiting == 0 and not self._closed
        if idle and self.options.idle_unload_s > 0:
            loop = asyncio.get_running_loop()
            self._idle_timer = loop.call_later(self.options.idle_unload_s, self._unload)

    def _stop_idle_timer(self) -> None:
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None

    def _unload(self) -> None:
        _log.info("Letting go of the model after %.0f s without use.", self.options.idle_unload_s)
        self._end(EngineClosed("The engine was unloaded."))
        self._changed()

    def _state(self) -> EngineState:
        if self._closed:
            return EngineState.CLOSED
        if self._starting is not None:
            return EngineState.LOADING
        if self._connection is not None:
            return EngineState.BUSY if self._waiting else EngineState.READY
        return EngineState.FAILED if self._last_error is not None else EngineState.IDLE

    def _changed(self) -> None:
        self.on_status(self.status())


class _Waiting:
    """Counts a request while it runs, so that the model is not unloaded under it."""

    def __init__(self, engine: LlamaEngine) -> None:
        self._engine = engine

    def __enter__(self) -> None:
        self._engine.enter()

    def __exit__(self, *_: object) -> None:
        self._engine.leave()


def _wish(path: Path, options: LlamaOptions) -> Load:
    # The worker runs in another folder.
    file = str(path.absolute())
    return Load(
        file,
        options.context_tokens,
        options.threads,
        options.sequences,
        options.gpu_layers,
        kv_type=options.kv_type,
        memory_limit_mb=options.memory_limit_mb,
        prefix_folder=_text(options.prefix_folder),
        draft_path=_text(options.draft_path),
        unpack_folder=_text(options.unpack_folder),
    )


def _text(path: Path | None) -> str:
    return str(path.absolute()) if path is not None else ""


def _details(connection: Connection, hosted: Hosted | None) -> dict[str, Any]:
    info = connection.info
    notes = (*((f"weights: {info.weights}",) if info.weights else ()), *info.notes)
    details: dict[str, Any] = {"loadS": info.load_s, "pid": connection.pid, "notes": notes}
    if hosted is not None:
        details |= {"shared": hosted.shared, "sharedReason": hosted.reason}
    if connection.stats is not None:
        details["metrics"] = asdict(connection.stats.metrics)
    return details


def _resident_bytes(pid: int | None) -> int | None:
    if pid is None:
        return None
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return None

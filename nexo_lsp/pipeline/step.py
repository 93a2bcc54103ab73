"""What every pipeline works with, and the steps that they share."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from nexo_lsp.context.gather import Gatherer, outline_of
from nexo_lsp.context.prompts import Prompts
from nexo_lsp.documents import DocumentStore, Snapshot
from nexo_lsp.engines.engine import Engine
from nexo_lsp.errors import DisabledError, DocumentNotOpen
from nexo_lsp.generation import FinishReason, Operation, Piece, Request, Usage
from nexo_lsp.memory.answers import Answers
from nexo_lsp.offload import Offload
from nexo_lsp.runtime.power import BackgroundCare
from nexo_lsp.settings import Settings

T = TypeVar("T")
_log = logging.getLogger("nexo_lsp.pipeline")


InfillWords = tuple[str, tuple[str, str, str] | None]
"""A model's family, and the tokens that its file names; both may be unknown (see `Prompts.infill`)."""


@dataclass(frozen=True, slots=True)
class Workbench:
    """The services that the pipelines share; what may be replaced while running comes as a function."""

    documents: DocumentStore
    answers: Answers
    gatherer: Gatherer
    prompts: Prompts
    offload: Offload
    engine: Callable[[Operation], Engine]
    settings: Callable[[], Settings]
    model_key: Callable[[Operation], str]
    """What identifies the model and engine in the keys of cached answers."""
    infill_of: Callable[[Operation], InfillWords]
    """How the model of an operation wants a gap."""
    parameters_of: Callable[[Operation], float | None]
    """How large the model of an operation is, in billions of parameters; None where that is not known."""
    permitted: Callable[[Snapshot], str | None]
    """None if the document may be shown to the model, else the reason against it."""
    context_of: Callable[[Snapshot], bool]
    """Whether the document may be shown beside others, which is less than being shown for itself."""
    refresh: Callable[..., Awaitable[None]]
    """Called with snapshots before `permitted` is asked for a request: notices what changed on disk."""
    care: BackgroundCare | None = None
    """Holds back what nobody asked for, where a battery is to be spared."""

    def require(self, snapshot: Snapshot) -> None:
        """Raise `DisabledError` unless the document may be shown to the model."""
        reason = self.permitted(snapshot)
        if reason is not None:
            raise DisabledError(reason)

    async def others(self, snapshot: Snapshot) -> tuple[Snapshot, ...]:
        """The other open documents that may be shown as context, with their outlines ready."""
        found: list[Snapshot] = []
        for other in self.documents.all():
            if other.uri == snapshot.uri or other.language is None or not self.context_of(other):
                continue
            if other.is_parsed:
                found.append(other)
                continue
            try:
                parsed = await self.documents.parsed(other.uri)
            except DocumentNotOpen:
                continue
            outline_of(parsed)
            found.append(parsed)
            # Each takes some milliseconds; a keystroke gets its turn in between.
            await asyncio.sleep(0)
        return tuple(found)


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer of the engine."""

    text: str
    finish: FinishReason
    usage: Usage
    stand_in: bool = False
    """Whether another engine than the one that was chosen made it: then it is not what that one would say."""


async def infer(
    engine: Engine, request: Request, on_piece: Callable[[str, int], bool | None] | None = None
) -> Answer:
    """Stream `request` to its end.

    `on_piece` gets the text so far and the number of tokens, and ends the stream by returning True. The
    engine's work ends when this coroutine is cancelled.
    """
    parts: list[str] = []
    last: Piece | None = None
    async with contextlib.aclosing(engine.stream(request)) as stream:
        async for piece in stream:
            parts.append(piece.text)
            if piece.finish is not None:
                last = piece
            if on_piece is not None and piece.text and on_piece("".join(parts), piece.tokens):
                break
    finish = last.finish if last is not None and last.finish is not None else FinishReason.STOP
    usage = last.usage if last is not None and last.usage is not None else Usage()
    return Answer("".join(parts), finish, usage, last is not None and last.stand_in)


class SharedJobs(Generic[T]):
    """Work keyed by content: whoever asks for the same key gets the same running task.

    An asker who is cancelled leaves; the work goes on for the others and for whoever asks next. It ends when
    it is done, or by `cancel`.
    """

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[T]] = {}

    def start(self, key: str, work: Callable[[], Coroutine[Any, Any, T]]) -> asyncio.Task[T]:
        """The running task for `key`, started now if there is none."""
        task = self._tasks.get(key)
        if task is None:
            task = asyncio.get_running_loop().create_task(work(), name=f"nexo:{key[:12]}")
            self._tasks[key] = task
            task.add_done_callback(lambda done: self._finished(key, done))
        return task

    def cancel(self, key: str) -> None:
        """End the work for `key`; its askers see `asyncio.CancelledError`."""
        task = self._tasks.pop(key, None)
        if task is not None:
            task.cancel()

    def cancel_all(self) -> None:
        """End all work."""
        for key in list(self._tasks):
            self.cancel(key)

    def _finished(self, key: str, task: asyncio.Task[T]) -> None:
        if self._tasks.get(key) is task:
            del self._tasks[key]
        if not task.cancelled() and (error := task.exception()) is not None:
            # Askers get the error too; one whose askers have all left would go unseen without this line.
            _log.info("%s failed: %s", task.get_name(), error)


class Pool(Generic[T]):
    """Runs coroutines side by side, at most so many, and hands their results over as they come.

    After a failure those that run are waited for all the same; the first error is kept in `error`.
    """

    def __init__(self, most: int) -> None:
        self.error: BaseException | None = None
        self._most = most
        self._tasks: dict[asyncio.Task[T], str] = {}

    @property
    def busy(self) -> bool:
        """Whether something runs."""
        return bool(self._tasks)

    @property
    def full(self) -> bool:
        """Whether nothing more may be started."""
        return len(self._tasks) >= self._most

    def start(self, name: str, work: Coroutine[Any, Any, T]) -> None:
        """Run `work`; its result comes with `name`."""
        task = asyncio.get_running_loop().create_task(work, name=f"nexo:{name[:12]}")
        # A failure that nobody comes for any more would be complained about by the loop.
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._tasks[task] = name

    async def ended(self) -> list[tuple[str, T]]:
        """Wait until something ends; the names and results of what did, the oldest first."""
        await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        results: list[tuple[str, T]] = []
        for task in [task for task in self._tasks if task.done()]:
            name = self._tasks.pop(task)
            error = task.exception()
            if error is None:
                results.append((name, task.result()))
            else:
                self.error = self.error or error
        return results

    def cancel(self) -> None:
        """End what runs."""
        for task in self._tasks:
            task.cancel()
        self._tasks.clear()


async def first_of(*waits: Coroutine[Any, Any, object]) -> None:
    """Wait until one of them ends; the others are cancelled. Raises what that one raises."""
    tasks = [asyncio.get_running_loop().create_task(wait) for wait in waits]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()


async def joined(task: asyncio.Task[T]) -> T:
    """Wait for a shared task; being cancelled leaves the task running."""
    return await asyncio.shield(task)

"""The composition root: from settings to wired services. The only place that names concrete classes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from nexo_lsp.app.engine_room import EngineRoom, Hooks
from nexo_lsp.context.gather import Gatherer
from nexo_lsp.context.prompts import Prompts
from nexo_lsp.documents import DocumentStore, Snapshot, local_place
from nexo_lsp.engines.client_port import ClientPort
from nexo_lsp.engines.engine import Engine
from nexo_lsp.engines.llama.messages import Metrics
from nexo_lsp.errors import DisabledError, NexoError
from nexo_lsp.folders import Folders, folders
from nexo_lsp.generation import Capabilities, EngineState, EngineStatus, Operation, Piece, Request
from nexo_lsp.ignore import IgnoreRules
from nexo_lsp.memory.answers import Answers
from nexo_lsp.offload import Offload, in_thread
from nexo_lsp.pipeline.actions import ActionKind, ActionService
from nexo_lsp.pipeline.complete import CompletionService
from nexo_lsp.pipeline.document import Documenter
from nexo_lsp.pipeline.explain import Explainer
from nexo_lsp.pipeline.hover import HoverService
from nexo_lsp.pipeline.review import ReviewService
from nexo_lsp.pipeline.rewrite import Rewriter
from nexo_lsp.pipeline.step import Workbench
from nexo_lsp.pipeline.write_tests import TestWriter
from nexo_lsp.runtime.environment import Environment
from nexo_lsp.runtime.machine import read_environment
from nexo_lsp.runtime.power import BackgroundCare, power_watch
from nexo_lsp.runtime.supply import Asks, Fetch
from nexo_lsp.settings import Layer, Problem, Resolved, Settings, effective
from nexo_lsp.storage import FILE_NAME, Database
from nexo_lsp.text import Edit

if TYPE_CHECKING:
    from nexo_lsp.models.store import ModelStore

_log = logging.getLogger("nexo_lsp.app")

Level = Literal["error", "warning", "info"]
__all__ = ["App", "Fetch", "Host", "Level", "Status", "create_app"]


class Host(Asks, Protocol):
    """What the app needs from its surroundings: an editor, or a terminal."""

    def notice(self, message: str, level: Level) -> None:
        """Tell the user one thing."""
        ...


@dataclass(frozen=True, slots=True)
class Status:
    """A readable picture of the whole at one moment."""

    enabled: bool
    engine: str
    state: EngineState
    model: str | None
    device: str | None
    queued: int
    running: int
    prompt_tokens_per_s: float | None
    decode_tokens_per_s: float | None
    memory_bytes: int | None
    detail: str
    reasons: tuple[str, ...] = field(default=())
    """Why this engine and model were chosen, and what the machine allowed less of than was asked for."""
    metrics: Metrics | None = None
    """How the engine does; None while nothing is loaded, and for engines that do not count."""


class App:
    """The services of one server or one command, wired."""

    def __init__(
        self,
        environ: Mapping[str, str],
        host: Host,
        offload: Offload,
        environment: Environment,
        *,
        lasting: bool,
    ) -> None:
        self._environ = environ
        self._host = host
        self._offload = offload
        self.folders: Folders = folders(environ)
        self.documents = DocumentStore(offload=offload)
        self.ignore = IgnoreRules(offload=offload)
        self.trusted = False
        self.resolved: Resolved = effective(self.folders.settings_file, environ)
        self.on_status: Callable[[Status], None] = lambda _status: None
        self._roots: tuple[Path, ...] = ()
        self._background: set[asyncio.Task[None]] = set()
        self.room = EngineRoom(
            environ,
            self.folders,
            host,
            offload,
            lambda: self.settings,
            environment,
            Hooks(
                keep=lambda work: _keep(self._background, work),
                on_status=self._tell,
                notice=lambda text: host.notice(text, "warning"),
                free_bytes=lambda: read_environment().free_bytes,
                lasting=lasting,
            ),
        )
        self._answers = Answers(Database(self.folders.state / FILE_NAME), offload)
        self._power = power_watch(environ, offload)
        self._power.on_change = self._tell
        bench = Workbench(
            documents=self.documents,
            answers=self._answers,
            gatherer=Gatherer(),
            prompts=Prompts(),
            offload=offload,
            engine=lambda operation: _Gated(self, operation),
            settings=lambda: self.settings,
            model_key=self.room.model_key,
            infill_of=self.room.infill_of,
            parameters_of=self.room.parameters_of,
            permitted=self.permitted,
            context_of=self._context_of,
            refresh=self._refresh,
            care=BackgroundCare(self._power, self.room.pause_below),
        )
        self.reviews = ReviewService(bench)
        rewriter = Rewriter(bench)
        self.actions = ActionService(
            bench,
            {
                ActionKind.GENERATE: rewriter,
                ActionKind.OPTIMIZE: rewriter,
                ActionKind.FIX: rewriter,
                ActionKind.DOCUMENT: Documenter(bench),
                ActionKind.TESTS: TestWriter(bench),
                ActionKind.EXPLAIN: Explainer(bench),
            },
            self.reviews.findings,
        )
        self.hovers = HoverService(bench)
        self.completions = CompletionService(bench)

    @property
    def settings(self) -> Settings:
        """The effective settings."""
        return self.resolved.settings

    @property
    def client_port(self) -> ClientPort:
        """Where the editor's own engine is plugged in, if it has one."""
        return self.room.client_port

    @property
    def store(self) -> ModelStore:
        """The model files of this user."""
        return self.room.store

    def configure(self, layers: Sequence[Layer]) -> tuple[Problem, ...]:
        """Take settings from `layers` (later ones win, the environment last) and rewire what they change.

        Returns what is wrong with them; the rest counts all the same.
        """
        before = self.settings
        self.resolved = effective(self.folders.settings_file, self._environ, layers)
        after = self.settings
        if (before.models, before.model) != (after.models, after.model):
            self.room.supply.ask_again()
        if before != after:
            self.room.plan()
        if before.enable and not after.enable:
            self.stop()
            self.room.engines.drop()
        if before != after:
            self._withdraw()
            self._power.look_again()
        self._tell()
        return self.resolved.problems

    def set_workspace(self, roots: Sequence[Path], *, trusted: bool) -> None:
        """The folders that the user works in, and whether they said that they trust them."""
        self._roots = tuple(roots)
        self.trusted = trusted
        self.room.supply.closed_folders = () if trusted else self._roots
        self.room.plan(trusted=trusted)
        self.ignore.set_roots(self._roots)

    def opened(self, snapshot: Snapshot) -> None:
        """A document was opened."""
        _keep(self._background, self._refresh(snapshot))

    def changed(self, snapshot: Snapshot, edits: Sequence[Edit]) -> None:
        """A document was changed by `edits`."""
        self.reviews.changed(snapshot, edits)
        self.hovers.changed(snapshot, edits)
        self.completions.changed(snapshot.uri)

    def closed(self, snapshot: Snapshot) -> None:
        """A document was closed; `snapshot` is its last state."""
        self.reviews.closed(snapshot.uri, snapshot)
        self.hovers.closed(snapshot.uri)
        self.completions.closed(snapshot.uri)

    def permitted(self, snapshot: Snapshot) -> str | None:
        """None if the document may be shown to a model on this machine, else the reason against it."""
        settings = self.settings
        if not settings.enable:
            return "nexo is switched off (nexo.enable)."
        if snapshot.language_id in settings.disabled_languages:
            return f"nexo is switched off for {snapshot.language_id} (nexo.disabledLanguages)."
        path = local_place(snapshot.uri)
        secret = self.ignore.secret(path, path.name if path is not None else snapshot.uri)
        if secret is not None:
            return secret
        if path is not None and settings.disabled_globs:
            glob = self.ignore.disabled_glob(path, settings.disabled_globs)
            if glob is not None:
                return f"nexo is switched off for files like this one ({glob} in nexo.disabledGlobs)."
        return None

    def _context_of(self, other: Snapshot) -> bool:
        """Whether the document may be shown beside another one."""
        if self.permitted(other) is not None:
            return False
        place = local_place(other.uri)
        return place is None or not self.ignore.git_ignored(place)

    async def _refresh(self, *snapshots: Snapshot) -> None:
        """Notice ignore files that were edited since these documents were last asked about."""
        await self.room.know_models()
        places = (local_place(snapshot.uri) for snapshot in snapshots)
        await self.ignore.prepare(*[place for place in places if place is not None])

    def _withdraw(self) -> None:
        """End the work on, and take away the findings of, what the settings no longer permit."""
        settings = self.settings
        for snapshot in self.documents.all():
            if self.permitted(snapshot) is not None:
                self.closed(snapshot)
        if not settings.review.enabled:
            self.reviews.clear()
        if not settings.completion.enabled:
            self.completions.stop()
        if not (settings.hover.enabled and settings.hover.explain):
            self.hovers.stop()

    def status(self, operation: Operation = Operation.ACTION) -> Status:
        """The present state, seen from one operation; never blocks."""
        engine = self.room.status(operation)
        waits = self._power.waiting_for
        return Status(
            enabled=self.settings.enable,
            engine=engine.name,
            state=engine.state,
            model=self.room.model_of(operation, engine),
            device=engine.device,
            queued=engine.queued,
            running=engine.running,
            prompt_tokens_per_s=engine.prompt_tokens_per_s,
            decode_tokens_per_s=engine.decode_tokens_per_s,
            memory_bytes=engine.memory_bytes,
            detail=engine.detail or waits,
            reasons=(*self.room.reasons(), *_notes(engine), *((waits,) if waits else ())),
            metrics=_metrics(engine),
        )

    def stop(self) -> None:
        """End every review, hover and completion that is under way."""
        self.reviews.stop()
        self.hovers.stop()
        self.completions.stop()

    async def close(self) -> None:
        """End all work and let go of everything."""
        self.stop()
        self.room.engines.drop()
        await self.room.supply.close()
        while self._background:
            # Not `gather`: from Python 3.12 on, one of finished tasks is finished itself, so awaiting it
            # gives the loop no turn to take them out of the set.
            await asyncio.wait(set(self._background))
        await self._answers.close()

    def engine(self, operation: Operation = Operation.ACTION) -> Engine:
        """The engine that an operation gets, made at its first use.

        Raises `DisabledError` when the server is switched off and `EngineUnavailable` when there is none.
        """
        if not self.settings.enable:
            raise DisabledError("nexo is switched off (nexo.enable).")
        return self.room.engine(operation)

    def _tell(self) -> None:
        self.on_status(self.status())


class _Gated:
    """The engine of the moment, behind the switch: what the pipelines get.

    The engine is looked up at each request, so that a change of settings reaches work that begins after it.
    """

    def __init__(self, app: App, operation: Operation) -> None:
        self._app = app
        self._operation = operation

    def capabilities(self) -> Capabilities:
        return self._app.engine(self._operation).capabilities()

    def status(self) -> EngineStatus:
        return self._app.engine(self._operation).status()

    async def count_tokens(self, text: str) -> int:
        return await self._app.engine(self._operation).count_tokens(text)

    def stream(self, request: Request) -> AsyncGenerator[Piece, None]:
        return self._app.engine(self._operation).stream(request)

    async def close(self) -> None:
        """The app closes the engine."""


def _notes(engine: EngineStatus) -> tuple[str, ...]:
    """What an engine says about itself beside its state: why it is shared or not, what memory allowed."""
    shared = engine.extra.get("sharedReason")
    return (*((str(shared),) if shared else ()), *map(str, engine.extra.get("notes", ())))


def _metrics(engine: EngineStatus) -> Metrics | None:
    metrics = engine.extra.get("metrics")
    return Metrics(**metrics) if metrics is not None else None


def create_app(
    environ: Mapping[str, str],
    host: Host,
    offload: Offload = in_thread,
    environment: Environment | None = None,
    *,
    lasting: bool = False,
) -> App:
    """Wire an app. Reads nothing but the settings file and the machine, starts no process, loads no model.

    A `lasting` one (a server) may fetch a better model while another one answers, and looks for GPUs.
    """
    return App(environ, host, offload, environment or read_environment(), lasting=lasting)


def _keep(tasks: set[asyncio.Task[None]], work: Coroutine[Any, Any, None]) -> None:
    """Run `work` in the background; errors of it are logged."""
    task = asyncio.get_running_loop().create_task(work)
    tasks.add(task)

    def finished(done: asyncio.Task[None]) -> None:
        tasks.discard(done)
        if not done.cancelled() and (error := done.exception()) is not None:
            level = logging.INFO if isinstance(error, NexoError) else logging.ERROR
            _log.log(level, "background work failed: %s", error)

    task.add_done_callback(finished)

"""The composition root: from settings to wired services. The only place that names concrete classes."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from nexo_lsp.context.gather import Gatherer
from nexo_lsp.context.prompts import Prompts
from nexo_lsp.documents import DocumentStore, Snapshot, local_place
from nexo_lsp.engines.engine import Engine
from nexo_lsp.engines.llama.messages import Metrics
from nexo_lsp.errors import DisabledError, ModelCorrupt, ModelDownloadCancelled, ModelMissing, NexoError
from nexo_lsp.folders import Folders, folders
from nexo_lsp.generation import Capabilities, EngineState, EngineStatus, Piece, Request
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
from nexo_lsp.runtime.power import BackgroundCare, power_watch
from nexo_lsp.runtime.providers.mock import MockProvider
from nexo_lsp.runtime.providers.native import NativeProvider
from nexo_lsp.runtime.providers.provider import Provider
from nexo_lsp.runtime.selection import Selection, select
from nexo_lsp.settings import Layer, Problem, Resolved, Settings, effective
from nexo_lsp.storage import FILE_NAME, Database
from nexo_lsp.text import Edit

if TYPE_CHECKING:
    # The store brings an HTTP library along; a server that already has its model never needs it at start.
    from nexo_lsp.models.progress import PullProgress
    from nexo_lsp.models.store import ModelStore

_log = logging.getLogger("nexo_lsp.app")

Level = Literal["error", "warning", "info"]
Fetch = Callable[[Callable[["PullProgress"], None], threading.Event], Path]


class Host(Protocol):
    """What the app needs from its surroundings: an editor, or a terminal."""

    async def confirm_download(self, model: str, size_bytes: int) -> bool:
        """Ask the user whether a model may be fetched."""
        ...

    async def download(self, model: str, size_bytes: int, fetch: Fetch) -> Path:
        """Run `fetch(progress, cancel)` away from the loop, showing progress; `cancel` is set to end it."""
        ...

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

    def __init__(self, environ: Mapping[str, str], host: Host, offload: Offload) -> None:
        self._environ = environ
        self._host = host
        self._offload = offload
        self.folders: Folders = folders(environ)
        self.documents = DocumentStore(offload=offload)
        self.ignore = IgnoreRules(offload=offload)
        self.trusted = False
        self.resolved: Resolved = effective(self.folders.settings_file, environ)
        self.on_status: Callable[[Status], None] = lambda _status: None
        self._store: ModelStore | None = None
        self._roots: tuple[Path, ...] = ()
        self._fetching: dict[str, asyncio.Task[Path]] = {}
        self._declined = False
        self._engine: Engine | None = None
        self._background: set[asyncio.Task[None]] = set()
        self._selection: Selection = self._select()
        self._answers = Answers(Database(self.folders.state / FILE_NAME), offload)
        self._power = power_watch(environ, offload)
        self._power.on_change = self._tell
        bench = Workbench(
            documents=self.documents,
            answers=self._answers,
            gatherer=Gatherer(),
            prompts=Prompts(),
            offload=offload,
            engine=lambda: _Gated(self),
            settings=lambda: self.settings,
            model_key=self._model_key,
            permitted=self.permitted,
            context_of=self._context_of,
            refresh=self._refresh,
            care=BackgroundCare(self._power, lambda: self.settings.review.pause_below_battery),
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
    def store(self) -> ModelStore:
        """The model files of this user."""
        if self._store is None:
            from nexo_lsp.models.store import ModelStore

            self._store = ModelStore(self.folders.models, self._environ)
        return self._store

    def configure(self, layers: Sequence[Layer]) -> tuple[Problem, ...]:
        """Take settings from `layers` (later ones win, the environment last) and rewire what they change.

        Returns what is wrong with them; the rest counts all the same.
        """
        before = self.settings
        self.resolved = effective(self.folders.settings_file, self._environ, layers)
        after = self.settings
        if (before.engine, before.model) != (after.engine, after.model):
            self._drop_engine()
            self._selection = self._select()
        if (before.models, before.model) != (after.models, after.model):
            self._declined = False
        if before.enable and not after.enable:
            self.stop()
            self._drop_engine()
        if before != after:
            self._withdraw()
            self._power.look_again()
        self._tell()
        return self.resolved.problems

    def set_workspace(self, roots: Sequence[Path], *, trusted: bool) -> None:
        """The folders that the user works in, and whether they said that they trust them."""
        self._roots = tuple(roots)
        self.trusted = trusted
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

    def status(self) -> Status:
        """The present state; never blocks."""
        engine = self._engine.status() if self._engine is not None else None
        name = self._selection.provider.name if self._selection.provider is not None else "none"
        if engine is None:
            state = EngineState.IDLE if self._selection.provider is not None else EngineState.FAILED
            engine = EngineStatus(state, name, detail="" if self._selection.provider else self._why_not())
        waits = self._power.waiting_for
        return Status(
            enabled=self.settings.enable,
            engine=engine.name,
            state=engine.state,
            model=self._model_name(),
            device=engine.device,
            queued=engine.queued,
            running=engine.running,
            prompt_tokens_per_s=engine.prompt_tokens_per_s,
            decode_tokens_per_s=engine.decode_tokens_per_s,
            memory_bytes=engine.memory_bytes,
            detail=engine.detail or waits,
            reasons=(*self._selection.reasons, *_notes(engine), *((waits,) if waits else ())),
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
        self._drop_engine()
        fetching = set(self._fetching.values())
        for task in fetching:
            task.cancel()
        if fetching:
            # Waited for, so that what was being written is closed in good order.
            await asyncio.wait(fetching)
        while self._background:
            # Not `gather`: from Python 3.12 on, one of finished tasks is finished itself, so awaiting it
            # gives the loop no turn to take them out of the set.
            await asyncio.wait(set(self._background))
        await self._answers.close()

    def engine(self) -> Engine:
        """The engine that the settings ask for, made at its first use.

        Raises `DisabledError` when the server is switched off and `EngineUnavailable` when there is none.
        """
        if not self.settings.enable:
            raise DisabledError("nexo is switched off (nexo.enable).")
        if self._engine is None:
            provider = self._selection.require()
            _log.info("engine %s", " ".join(self._selection.reasons))
            self._engine = provider.create_engine(lambda _status: self._tell())
        return self._engine

    async def model_file(self) -> Path:
        """The path of the model that the settings name; fetched first if it is missing or damaged.

        Raises the kinds of `ModelError`.
        """
        name = self.settings.model
        try:
            return await self._offload(lambda: self.store.locate(name))
        except (ModelMissing, ModelCorrupt) as missing:
            entry = self.store.entry_for(name)
            if entry is None:
                raise
            policy = self.settings.models.auto_download
            if policy == "never" or self._declined:
                raise
            fetching = self._fetching.get(entry.name)
            if fetching is None:
                fetching = asyncio.get_running_loop().create_task(
                    self._fetch(entry.name, entry.size, ask=policy == "ask", missing=missing),
                    name="nexo:fetch-model",
                )
                self._fetching[entry.name] = fetching
                fetching.add_done_callback(lambda task: self._fetched(entry.name, task))
            return await asyncio.shield(fetching)

    async def _fetch(self, name: str, size: int, *, ask: bool, missing: ModelMissing | ModelCorrupt) -> Path:
        if ask and not await self._host.confirm_download(name, size):
            self._declined = True
            raise missing

        def fetch(progress: Callable[[PullProgress], None], cancel: threading.Event) -> Path:
            return self.store.pull(name, progress, cancel)

        try:
            return await self._host.download(name, size, fetch)
        except ModelDownloadCancelled:
            # The next keystroke would begin it again; a change of the settings asks anew.
            self._declined = True
            raise

    def _fetched(self, name: str, task: asyncio.Task[Path]) -> None:
        del self._fetching[name]
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.warning("the model could not be fetched: %s", error)

    def _select(self) -> Selection:
        providers: list[Provider] = [
            NativeProvider(self.settings.engine, self.model_file, self.folders.prefixes),
            MockProvider(self._environ),
        ]
        return select(self.settings.engine.kind, providers)

    def _drop_engine(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            _keep(self._background, engine.close())

    def _model_name(self) -> str | None:
        name = self.settings.model
        if self._selection.provider is None or self._selection.provider.name == "mock":
            return None
        if name == "auto":
            from nexo_lsp.models.catalog import DEFAULT_MODEL

            return DEFAULT_MODEL
        return name

    def _model_key(self) -> str:
        provider = self._selection.provider
        return f"{provider.name if provider is not None else 'none'}:{self._model_name() or ''}"

    def _why_not(self) -> str:
        return " ".join(self._selection.reasons)

    def _tell(self) -> None:
        self.on_status(self.status())


class _Gated:
    """The engine of the moment, behind the switch: what the pipelines get.

    The engine is looked up at each request, so that a change of settings reaches work that begins after it.
    """

    def __init__(self, app: App) -> None:
        self._app = app

    def capabilities(self) -> Capabilities:
        return self._app.engine().capabilities()

    def status(self) -> EngineStatus:
        return self._app.engine().status()

    async def count_tokens(self, text: str) -> int:
        return await self._app.engine().count_tokens(text)

    def stream(self, request: Request) -> AsyncGenerator[Piece, None]:
        return self._app.engine().stream(request)

    async def close(self) -> None:
        """The app closes the engine."""


def _notes(engine: EngineStatus) -> tuple[str, ...]:
    """What an engine says about itself beside its state: why it is shared or not, what memory allowed."""
    shared = engine.extra.get("sharedReason")
    return (*((str(shared),) if shared else ()), *map(str, engine.extra.get("notes", ())))


def _metrics(engine: EngineStatus) -> Metrics | None:
    metrics = engine.extra.get("metrics")
    return Metrics(**metrics) if metrics is not None else None


def create_app(environ: Mapping[str, str], host: Host, offload: Offload = in_thread) -> App:
    """Wire an app. Reads nothing but the settings file, starts no process, loads no model."""
    return App(environ, host, offload)


def _keep(tasks: set[asyncio.Task[Any]], work: Any) -> None:
    """Run `work` in the background; errors of it are logged."""
    task: asyncio.Task[Any] = asyncio.get_running_loop().create_task(work)
    tasks.add(task)

    def finished(done: asyncio.Task[Any]) -> None:
        tasks.discard(done)
        if not done.cancelled() and (error := done.exception()) is not None:
            level = logging.INFO if isinstance(error, NexoError) else logging.ERROR
            _log.log(level, "background work failed: %s", error)

    task.add_done_callback(finished)

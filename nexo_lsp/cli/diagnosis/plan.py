"""Which engine and model each operation gets on this machine, and why, as data: read from the engine room."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from nexo_lsp.app.engine_room import EngineRoom
from nexo_lsp.errors import ModelCorrupt, ModelError, ModelMissing
from nexo_lsp.folders import Folders
from nexo_lsp.generation import Operation
from nexo_lsp.models.catalog import CatalogEntry, size_text
from nexo_lsp.models.fetching import partial_of
from nexo_lsp.models.files import size_of
from nexo_lsp.models.store import ModelStore
from nexo_lsp.models.variants import Host, budget_of, look_at
from nexo_lsp.runtime.choice import ModelChoice, host_of, kind_of
from nexo_lsp.runtime.providers.mobile import PHONES
from nexo_lsp.runtime.providers.native import tuning_of
from nexo_lsp.runtime.selection import ORDER, Selection
from nexo_lsp.settings import Settings

WHAT: Mapping[str, str] = {
    "native": "llama.cpp on this machine",
    "mobile": "llama.cpp under the rules of a phone",
    "client-hosted": "an engine that your editor runs",
    "docker": "a llama.cpp server in a container on this machine",
    "remote": "servers that you name",
    "mock": "scripted answers, for tests",
}
NAMES: Mapping[Operation, str] = {
    Operation.COMPLETION: "completion",
    Operation.ACTION: "actions",
    Operation.REVIEW: "review",
}
"""How operations are called on the screen, in its order."""

FileState = Literal["here", "not here", "damaged", "unknown"]
"""As a cheap look has it; `unknown` is a name that nothing has."""

_RUN_HERE = frozenset({"native", "mobile"})


@dataclass(frozen=True, slots=True)
class Cell:
    """What an engine is worth for one operation."""

    points: int | None
    """None if it may not be used."""
    reasons: tuple[str, ...]
    """What the points are for, or the one reason against it."""
    probe: str = ""
    """What it said of itself."""
    chosen: bool = False
    if_trusted: int | None = None
    """The points that it has in a workspace that is trusted, if it may only be used there."""


@dataclass(frozen=True, slots=True)
class EngineRow:
    """One way to have an engine."""

    name: str
    what: str
    cells: Mapping[Operation, Cell]


@dataclass(frozen=True, slots=True)
class Better:
    """A model that would suit the machine better, and is not here."""

    name: str
    size_bytes: int
    why: str
    coming: str
    """Whether it is being fetched, may be, or why not."""


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """The model of an operation. Bytes and speeds are 0 where nothing is known."""

    reference: str
    """What the settings, or the choice, call it."""
    name: str
    path: str
    """Where its file is; empty while there is none that could be used."""
    state: FileState
    size_bytes: int
    quantisation: str
    memory_bytes: int
    """Server and engine together."""
    budget_bytes: int
    tokens_per_s: float
    measured: bool
    """Whether the speed was measured here, not reckoned."""
    fits: bool
    why: str
    better: Better | None
    rejected: tuple[str, ...]
    """Those that the table prefers, and why each is not it: "NAME: takes 12 GB …"."""


@dataclass(frozen=True, slots=True)
class OperationPlan:
    """What some operations get that get the same."""

    operations: tuple[Operation, ...]
    engine: str
    """Empty if there is none."""
    next_engines: tuple[str, ...]
    """Who takes over when it fails, in this order."""
    if_trusted: str
    """The engine in a workspace that is trusted, where that is another one."""
    model: ModelPlan | None
    """None where the engine has its own."""
    own_model: str
    """What the engine calls its own, if that is known."""
    context_tokens: int
    threads: int
    """0 where the engine's threads are not ours."""
    threads_why: str


@dataclass(frozen=True, slots=True)
class Plan:
    """All of it."""

    engines: tuple[EngineRow, ...]
    operations: tuple[OperationPlan, ...]

    @property
    def models(self) -> tuple[ModelPlan, ...]:
        """The models of all operations, each once."""
        found = {plan.model.reference: plan.model for plan in self.operations if plan.model is not None}
        return tuple(found.values())

    def uses(self, engine: str) -> bool:
        """Whether any operation has this engine."""
        return any(plan.engine == engine for plan in self.operations)


def read_plan(room: EngineRoom, settings: Settings, folders: Folders) -> Plan:
    """What the room planned. Nobody knows here whether a workspace is trusted: both cases are looked at."""
    now = {operation: room.selection(operation) for operation in NAMES}
    trusted = now
    if settings.remote.enabled:
        room.plan(trusted=True)
        trusted = {operation: room.selection(operation) for operation in NAMES}
        room.plan(trusted=False)
    reader = _Reader(room, settings, folders)
    plans = [reader.operation(operation, now[operation], trusted[operation]) for operation in NAMES]
    return Plan(tuple(_rows(now, trusted)), tuple(_merged(plans)))


def _rows(now: Mapping[Operation, Selection], trusted: Mapping[Operation, Selection]) -> Iterator[EngineRow]:
    cells: dict[str, dict[Operation, Cell]] = {}
    for operation, selection in now.items():
        for place, candidate in enumerate(selection.ranked):
            score = candidate.score
            cell = Cell(score.points, score.reasons, candidate.probe, chosen=place == 0)
            cells.setdefault(candidate.provider.name, {})[operation] = cell
        worth = {one.provider.name: one.score.points for one in trusted[operation].ranked}
        for excluded in selection.excluded:
            cell = Cell(None, (excluded.reason,), if_trusted=worth.get(excluded.name))
            cells.setdefault(excluded.name, {})[operation] = cell
    for name in sorted(cells, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER)):
        yield EngineRow(name, WHAT.get(name, name), cells[name])


def _merged(plans: Sequence[OperationPlan]) -> Iterator[OperationPlan]:
    """Operations that get the same are one."""
    same: dict[OperationPlan, list[Operation]] = {}
    for plan in plans:
        same.setdefault(replace(plan, operations=()), []).extend(plan.operations)
    return (replace(plan, operations=tuple(operations)) for plan, operations in same.items())


class _Reader:
    def __init__(self, room: EngineRoom, settings: Settings, folders: Folders) -> None:
        self._room = room
        self._settings = settings
        self._folders = folders

    def operation(self, operation: Operation, now: Selection, trusted: Selection) -> OperationPlan:
        provider, other = now.provider, trusted.provider
        engine = provider.name if provider is not None else ""
        # Where there is no engine yet it will most likely be one that needs a file.
        needs_file = provider is None or self._room.loads_a_file(operation)
        model = self._model(operation) if needs_file else None
        threads, why = self._threads(model) if engine in _RUN_HERE else (0, "")
        return OperationPlan(
            operations=(operation,),
            engine=engine,
            next_engines=tuple(candidate.provider.name for candidate in now.ranked[1:]),
            if_trusted=other.name if other is not None and other.name != engine else "",
            model=model,
            own_model="" if needs_file else self._room.model_name(operation) or "",
            context_tokens=provider.capabilities().context_tokens if provider is not None else 0,
            threads=threads,
            threads_why=why,
        )

    def _threads(self, model: ModelPlan | None) -> tuple[int, str]:
        environment = self._room.environment
        tuning = tuning_of(self._settings.engine, Path(model.path if model else ""), self._folders.state)
        if tuning.threads:
            return tuning.threads, tuning.threads_reason
        if environment.platform in PHONES or environment.performance_cores < environment.physical_cores:
            return environment.performance_cores, "one for each performance core"
        return environment.physical_cores, "one for each core"

    def _model(self, operation: Operation) -> ModelPlan:
        choice, store = self._room.choice(operation), self._room.store
        path, state = located(store, choice.reference)
        entry = choice.entry
        host = host_of(self._room.environment, self._settings, kind_of(self._settings, operation))
        measured = self._room.measured_tokens_per_s(operation)
        seen = choice.taken.seen if choice.taken is not None else None
        if seen is None and entry is not None and entry.weight_bytes:
            seen = look_at(entry, host, measured)
        return ModelPlan(
            reference=choice.reference,
            name=entry.name if entry is not None else Path(choice.reference).name,
            path=str(path) if path is not None else "",
            state=state,
            size_bytes=size_of(path) if path is not None else entry.size if entry is not None else 0,
            quantisation=entry.quantisation if entry is not None else "",
            memory_bytes=seen.taken if seen is not None else 0,
            budget_bytes=budget_of(host),
            tokens_per_s=seen.tokens_per_s if seen is not None else 0.0,
            measured=measured is not None,
            fits=choice.taken is None or choice.taken.fits,
            why=choice.taken.rank if choice.taken is not None else "named by the settings",
            better=self._better(choice, host),
            rejected=choice.best.rejected if choice.best is not None else (),
        )

    def _better(self, choice: ModelChoice, host: Host) -> Better | None:
        entry = choice.better
        if entry is None:
            return None
        rank = choice.best.rank if choice.best is not None else ""
        seen = choice.best.seen if choice.best is not None else None
        why = f"{rank}: {(seen or look_at(entry, host)).why}"
        return Better(entry.name, entry.size, why, self._coming(entry))

    def _coming(self, entry: CatalogEntry) -> str:
        store, models = self._room.store, self._settings.models
        pull = f"`nexo-lsp models pull {entry.name}` fetches it"
        if store.cleaning.is_fetched(store.folder / entry.file):
            part = size_of(partial_of(store.versions.place(entry)))
            return f"is being fetched: {size_text(part)} of {entry.size_text} are here"
        if self._settings.offline:
            return "is not fetched, since nexo.offline is on"
        if not models.upgrade:
            return f"is not fetched by itself, since nexo.models.upgrade is off; {pull}"
        if models.auto_download == "never":
            return f"is not fetched by itself, since nexo.models.autoDownload is `never`; {pull}"
        asked = "is fetched" if models.auto_download == "always" else "is fetched, if you agree,"
        return f"{asked} in the background while the other one answers your editor; {pull} now"


def located(store: ModelStore, reference: str) -> tuple[Path | None, FileState]:
    """The file of a model, if there is one that could be used, and how it is."""
    try:
        return store.locate(reference), "here"
    except ModelMissing:
        return None, "not here"
    except ModelCorrupt:
        return None, "damaged"
    except ModelError:
        return None, "unknown"

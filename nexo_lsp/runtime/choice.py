"""Which model answers: what the settings name, or what suits the machine; and what would suit it better."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from nexo_lsp.generation import Operation
from nexo_lsp.models.catalog import DEFAULT_MODEL, CatalogEntry, Purpose
from nexo_lsp.models.variants import Choice, Form, Host, Preference, beside, choose, least_bytes, tables
from nexo_lsp.runtime.environment import Environment, GpuBackend, Platform
from nexo_lsp.settings import EngineKind, Settings

AUTO = "auto"

_FORMS: dict[Platform, Form] = {
    Platform.WEB: "web",
    Platform.ANDROID: "mobile",
    Platform.IOS: "mobile",
    Platform.CONSOLE: "console",
}
_PURPOSES: dict[Operation, Purpose] = {
    Operation.COMPLETION: "completion",
    Operation.ACTION: "chat",
    Operation.REVIEW: "review",
}
_QUALITY_SHARE = 4
"""Who prefers quality gives one part in so many of the machine's memory."""
_MIB = 2**20


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """The model for an operation."""

    reference: str
    """What `ModelStore.locate` takes."""
    reasons: tuple[str, ...] = ()
    better: CatalogEntry | None = None
    """What would suit the machine better and is not here yet."""
    context_tokens: int = 0
    """The longest context that the machine's form is given; 0: as the settings say."""
    entry: CatalogEntry | None = None
    """What the catalogue says of it; None for a file that it does not know."""
    least_bytes: int = 0
    """What an engine takes of the machine's memory with it at the least; 0 if unknown."""
    taken: Choice | None = None
    """How the table came to it; None where the settings name the model."""
    best: Choice | None = None
    """What the table would take if everything were here: the same, or what is better."""


def kind_of(settings: Settings, operation: Operation) -> EngineKind:
    """The engine that the settings name for an operation."""
    own: dict[Operation, EngineKind | Literal[""]] = {
        Operation.REVIEW: settings.review.engine,
        Operation.COMPLETION: settings.completion.engine,
    }
    return own.get(operation) or settings.engine.kind


def form_of(environment: Environment, kind: EngineKind = "auto") -> Form:
    """The kind of machine, or the one that the `mobile` engine is to be tried out for."""
    return "mobile" if kind == "mobile" else _FORMS.get(environment.platform, "desktop")


def host_of(environment: Environment, settings: Settings, kind: EngineKind = "auto") -> Host:
    """What of a machine decides which model suits it."""
    form = form_of(environment, kind)
    none = settings.engine.gpu_layers in {"none", 0} or (kind == "docker" and not settings.docker.gpus)
    gpus = () if none else environment.gpus
    return Host(
        form=form,
        cores=environment.performance_cores,
        memory_bytes=memory_budget(environment, settings, form),
        free_bytes=environment.free_bytes,
        gpu_bytes=sum(gpu.free_bytes for gpu in gpus if not gpu.shares_memory),
        # That of a PC's processor reads the same memory no quicker than the cores do.
        shared_gpu=any(gpu.shares_memory and gpu.backend is GpuBackend.METAL for gpu in gpus),
        narrow=environment.emulated or _without_wide_vectors(environment),
    )


def _without_wide_vectors(environment: Environment) -> bool:
    """Whether the cores are known to lack them. What a system does not tell counts as there."""
    simd = environment.simd
    if environment.architecture == "x86_64":
        return bool(simd) and "avx2" not in simd
    # Cores of small boards; Windows does not tell of `i8mm`, and Apple's are quick without it.
    small = environment.platform is Platform.LINUX and environment.architecture == "arm64"
    return small and bool(simd) and not simd & {"i8mm", "sve"}


def memory_budget(environment: Environment, settings: Settings, form: Form) -> int:
    """What server and engine may take together, in bytes."""
    if settings.engine.memory_limit_mb:
        return settings.engine.memory_limit_mb * _MIB
    budget = tables()[form].memory_bytes
    total = environment.total_bytes
    if not total:
        return budget
    if form == "desktop" and settings.models.prefer == "quality":
        budget = max(budget, total // _QUALITY_SHARE)
    # By what a machine has and not by what is free just now, or the model would change with every program
    # that is started; what is free decides how large a context the engine makes, and whether it can at all.
    return min(budget, total * 2 // 5)


def reference_of(settings: Settings, operation: Operation) -> str:
    """The model that the settings name for an operation."""
    own = {Operation.REVIEW: settings.review.model, Operation.COMPLETION: settings.completion.model}
    return own.get(operation, "") or settings.model


def model_for(
    settings: Settings,
    operation: Operation,
    environment: Environment,
    catalog: Sequence[CatalogEntry],
    is_here: Callable[[CatalogEntry], bool],
    measured: Callable[[CatalogEntry], float | None] = lambda _entry: None,
) -> ModelChoice:
    """The model for an operation.

    `auto` takes the best of what is here, and names what would be better. Where nothing is here it begins
    with the default model, which is small, unless the best one is hardly larger.
    """
    reference = reference_of(settings, operation)
    host, prefer = host_of(environment, settings, kind_of(settings, operation)), settings.models.prefer
    if reference != AUTO:
        entry = next((entry for entry in catalog if reference in {entry.name, entry.file}), None)
        return _named(reference, f"model {reference}: named by the settings", entry, host)
    best = choose(host, prefer, catalog, measured=measured)
    if best is None:
        return _named(DEFAULT_MODEL, f"model {DEFAULT_MODEL}: the table for {host.form} is empty", None, host)

    def suits(entry: CatalogEntry) -> bool:
        return not entry.good_for or _PURPOSES[operation] in entry.good_for

    own = None if suits(best.entry) else _beside(host, best, prefer, catalog, suits, measured)
    room, best = own or (host, best)
    now = choose(
        room, prefer, catalog, lambda entry: is_here(entry) and (own is None or suits(entry)), measured
    )
    if now is None:
        now = _first(best, catalog)
    elif not now.fits and best.fits and _may_fetch(settings):
        # What is here is too large or too slow for this machine: wait for the one that suits.
        now = best
    return _made(now, best, host)


def _beside(
    host: Host,
    first: Choice,
    prefer: Preference,
    catalog: Sequence[CatalogEntry],
    suits: Callable[[CatalogEntry], bool],
    measured: Callable[[CatalogEntry], float | None],
) -> tuple[Host, Choice] | None:
    """The model for what `first` is not good for, and its room; None where both together do not fit.

    Then one model does everything: two that push each other out of memory would be worse.
    """
    room = beside(host, first.entry)
    second = choose(room, prefer, catalog, suits, measured) if room is not None else None
    return (room, second) if room is not None and second is not None and second.fits else None


def _may_fetch(settings: Settings) -> bool:
    return settings.models.auto_download != "never" and not settings.offline


def _named(reference: str, reason: str, entry: CatalogEntry | None, host: Host) -> ModelChoice:
    least = least_bytes(entry, host) if entry is not None else 0
    return ModelChoice(reference, (reason,), None, _context_bound(host), entry, least)


def _context_bound(host: Host) -> int:
    """A desktop gets what the settings say: its engine makes the context smaller where memory is short."""
    return 0 if host.form == "desktop" else tables()[host.form].context_tokens


def _first(best: Choice, catalog: Sequence[CatalogEntry]) -> Choice:
    """What to begin with where nothing is here: the small one, so that help does not wait for gigabytes."""
    small = next((entry for entry in catalog if entry.name == DEFAULT_MODEL), None)
    if small is None or best.entry.size <= 1.5 * small.size:
        return best
    return Choice(
        small,
        best.context_tokens,
        f"{small.name}: quickly here",
        (),
        rank="small, so that it is quickly here",
    )


def _made(now: Choice, best: Choice, host: Host) -> ModelChoice:
    better = best.entry if now.entry is not best.entry else None
    reasons = [f"model {now.reason}"]
    if better is not None:
        reasons.append(f"better would be {best.reason}")
    reasons += [f"not {text}" for text in best.rejected]
    least = least_bytes(now.entry, host)
    return ModelChoice(
        now.entry.name, tuple(reasons), better, _context_bound(host), now.entry, least, now, best
    )

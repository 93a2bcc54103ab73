"""Which model answers: what the settings name, or what suits the machine; and what would suit it better."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nexo_lsp.generation import Operation
from nexo_lsp.models.catalog import DEFAULT_MODEL, CatalogEntry
from nexo_lsp.models.variants import Choice, Form, Host, choose, tables
from nexo_lsp.runtime.environment import Environment, Platform
from nexo_lsp.settings import Settings

AUTO = "auto"

_FORMS: dict[Platform, Form] = {
    Platform.WEB: "web",
    Platform.ANDROID: "mobile",
    Platform.IOS: "mobile",
    Platform.CONSOLE: "console",
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
    """The longest context that the machine's form is given; 0 where the user chose the model."""
    entry: CatalogEntry | None = None
    """What the catalogue says of it; None for a file that it does not know."""
    taken: Choice | None = None
    """How the table came to it; None where the settings name the model."""
    best: Choice | None = None
    """What the table would take if everything were here: the same, or what is better."""


def form_of(environment: Environment) -> Form:
    """The kind of machine."""
    return _FORMS.get(environment.platform, "desktop")


def host_of(environment: Environment, settings: Settings) -> Host:
    """What of a machine decides which model suits it."""
    form = form_of(environment)
    gpus = environment.gpus if settings.engine.gpu_layers not in {"none", 0} else ()
    return Host(
        form=form,
        cores=environment.performance_cores,
        memory_bytes=memory_budget(environment, settings, form),
        gpu_bytes=sum(gpu.free_bytes for gpu in gpus if not gpu.shares_memory),
        shared_gpu=any(gpu.shares_memory for gpu in gpus),
        emulated=environment.emulated,
    )


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
    # that is started; what is free decides how large a context the engine makes.
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
    if reference != AUTO:
        entry = next((entry for entry in catalog if reference in {entry.name, entry.file}), None)
        return ModelChoice(reference, (f"model {reference}: named by the settings",), entry=entry)
    host, prefer = host_of(environment, settings), settings.models.prefer
    best = choose(host, prefer, catalog, measured=measured)
    if best is None:
        return ModelChoice(DEFAULT_MODEL, (f"model {DEFAULT_MODEL}: the table for {host.form} is empty",))
    now = choose(host, prefer, catalog, is_here, measured) or _first(best, catalog)
    if now.entry is best.entry:
        return _made(best, best, None)
    if now.fits is False and best.fits:
        # What is here is too large or too slow for this machine: wait for the one that suits.
        return _made(best, best, None)
    return _made(now, best, best.entry)


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


def _made(now: Choice, best: Choice, better: CatalogEntry | None) -> ModelChoice:
    reasons = [f"model {now.reason}"]
    if better is not None:
        reasons.append(f"better would be {best.reason}")
    reasons += [f"not {text}" for text in best.rejected]
    return ModelChoice(now.entry.name, tuple(reasons), better, now.context_tokens, now.entry, now, best)

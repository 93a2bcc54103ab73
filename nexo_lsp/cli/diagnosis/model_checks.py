"""Whether the models are here and whole, whether they can come, and what the folder of models holds."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from nexo_lsp.app import App
from nexo_lsp.cli.check import Check, State
from nexo_lsp.cli.diagnosis.looks import Looks
from nexo_lsp.cli.diagnosis.plan import ModelPlan, Plan
from nexo_lsp.errors import ModelCorrupt, ModelError, ModelMissing
from nexo_lsp.models.catalog import CatalogEntry, load_catalog, size_text
from nexo_lsp.models.header import read_header
from nexo_lsp.models.installed import known_problem
from nexo_lsp.models.sources import hub_is_offline
from nexo_lsp.models.store import ModelStore
from nexo_lsp.runtime.environment import Environment
from nexo_lsp.settings import Settings

# Beside the weights there are the cache of tokens, the compute buffers and Python itself.
_MEMORY_FACTOR = 1.5
_MEMORY_EXTRA = 400_000_000
_DISK_FACTOR = 1.05
"""A download wants a little more than its size."""
_FILE = "model file"
_MUCH_WASTE = 100_000_000
"""Bytes that nothing uses and that are worth a word."""


def models(app: App, environ: Mapping[str, str], plan: Plan, looks: Looks) -> Iterator[Check]:
    """Every model that an operation gets."""
    for one in plan.models:
        yield from model(app.store, app.settings, one, app.room.environment, environ, looks)


def model(
    store: ModelStore,
    settings: Settings,
    plan: ModelPlan,
    environment: Environment,
    environ: Mapping[str, str],
    looks: Looks,
) -> Iterator[Check]:
    """Whether the file of a model is here and right, or can come, and whether it fits into memory."""
    try:
        path = store.locate(plan.reference)
    except ModelMissing:
        yield from _missing(store, settings, plan, environ, looks)
        return
    except ModelCorrupt:
        entry = store.entry(plan.reference)
        damaged, again = store.versions.place(entry), f"nexo-lsp models pull {plan.name}"
        mend = f"set nexo.offline to false, then {again}" if settings.offline else again
        yield Check(
            "model", _FILE, "problem", f"{damaged} {known_problem(entry, damaged) or 'is damaged'}", mend
        )
        return
    except ModelError as error:
        yield Check("model", _FILE, "problem", str(error), "nexo-lsp models list")
        return
    yield from _file(store, path, plan)
    need = plan.memory_bytes or round(path.stat().st_size * _MEMORY_FACTOR) + _MEMORY_EXTRA
    free = environment.free_bytes
    if free and free < need:
        text = f"{size_text(free)} available, about {size_text(need)} wanted"
        mend = "end other programs, or choose a smaller model (nexo.model)"
        if environment.container:
            mend = "give the container more memory, or choose a smaller model (nexo.model)"
        yield Check("model", "memory", "warning", text, mend)


def _missing(
    store: ModelStore,
    settings: Settings,
    plan: ModelPlan,
    environ: Mapping[str, str],
    looks: Looks,
) -> Iterator[Check]:
    entry = store.entry_for(plan.reference)
    name = entry.name if entry is not None else plan.reference
    pull = f"nexo-lsp models pull {name}"
    by_hand = f"put the file {entry.file if entry is not None else name} into {store.folder}"
    state: State = "problem"
    if entry is not None and store.cleaning.is_fetched(store.folder / entry.file):
        state, text, mend = "warning", "is being fetched just now", "wait; `nexo-lsp models list` shows it"
    elif settings.offline:
        text = "is not here, and nexo.offline allows no download"
        mend = f"set nexo.offline to false, then {pull}; or {by_hand}"
    elif entry is not None and not _has_source(entry, environ):
        text = "is not here, and HF_HUB_OFFLINE keeps it from being fetched"
        mend = f"unset HF_HUB_OFFLINE, then {pull}; or {by_hand}"
    elif settings.models.auto_download == "never":
        text, mend = "is not here, and nexo.models.autoDownload is `never`", pull
    else:
        asked = "" if settings.models.auto_download == "always" else ", if you agree"
        size = entry.size_text if entry is not None and entry.size else "a file of unknown size"
        state, text = "warning", f"is not here yet; its first use fetches {size}{asked}"
        mend = f"{pull}, which needs a network; without one {by_hand}"
    yield Check("model", _FILE, state, f"{name} {text}", mend)
    yield from _room(store.folder, entry, looks)


def _has_source(entry: CatalogEntry, environ: Mapping[str, str]) -> bool:
    """Whether anybody would be asked for a model: `HF_HUB_OFFLINE` leaves mirrors and what the user names."""
    named = environ.get("NEXO_MODEL_DIR") or environ.get("NEXO_MODEL_URL")
    return bool(named or entry.mirror) or not hub_is_offline(environ)


def _room(folder: Path, entry: CatalogEntry | None, looks: Looks) -> Iterator[Check]:
    free = looks.disk_free(folder)
    if entry is not None and free is not None and free < entry.size * _DISK_FACTOR:
        text = f"{size_text(free)} free where the model of {entry.size_text} would go"
        mend = "free some space (`nexo-lsp models prune`), or move the folder by NEXO_HOME"
        yield Check("model", "disk", "problem", text, mend)


def _file(store: ModelStore, path: Path, plan: ModelPlan) -> Iterator[Check]:
    installed = next((one for one in store.installed() if one.path == path), None)
    known = installed is not None and installed.entry is not None
    size = size_text(path.stat().st_size)
    try:
        # A file of the right size may hold anything, and llama.cpp's own words for that help nobody.
        header = read_header(path)
    except ModelError as error:
        mend = f"nexo-lsp models pull {plan.name}, which reads it through and fetches it again"
        own = "give nexo.model another file, or `auto`"
        yield Check("model", _FILE, "problem", str(error).rstrip("."), mend if known else own)
        return
    if not header.is_complete:
        text = f"{path} is cut off: {size}, and its tensors end at {size_text(header.needed_bytes)}"
        mend = f"nexo-lsp models pull {plan.name}" if known else "copy it again, or set nexo.model to `auto`"
        yield Check("model", _FILE, "problem", text, mend)
    elif installed is None or installed.entry is None:
        yield Check("model", _FILE, "ok", f"{path} ({size}; not of the catalogue)")
    elif installed.embedded:
        yield Check("model", _FILE, "ok", f"{path} ({size}; came with the program: {installed.embedded})")
    elif installed.verified:
        yield Check("model", _FILE, "ok", f"{path} ({size}, verified)")
    else:
        yield Check("model", _FILE, "warning", f"{path} was never checked", "nexo-lsp models verify")


def folder(app: App, plan: Plan) -> Iterator[Check]:
    """What else the folder of models holds, and whether the user's own catalogue counts."""
    file = app.folders.catalog_file
    for problem in load_catalog(file).problems:
        mend = f"correct it in {file}; `nexo-lsp models list` shows what counts"
        yield Check("folder of models", "catalogue", "problem", problem.removeprefix(f"{file}: "), mend)
    store = app.store
    try:
        yield from _held(store, {one.name for one in plan.models})
    except OSError as error:
        mend = "give yourself permission to read it, or move all folders by NEXO_HOME"
        text = f"{store.folder} cannot be read ({error.strerror or error})"
        yield Check("folder of models", "contents", "problem", text, mend)


def _held(store: ModelStore, told: Collection[str]) -> Iterator[Check]:
    area, limit, size = "folder of models", store.limit_bytes, store.cleaning.size()
    if limit and size > limit:
        text = f"{size_text(size)}, more than the {size_text(limit)} of nexo.models.cacheLimitGb"
        mend = "nexo-lsp models prune, nexo-lsp models remove, or a higher limit"
        yield Check(area, "size", "warning", text, mend)
    else:
        of = f" of {size_text(limit)} (nexo.models.cacheLimitGb)" if limit else ", no limit is set"
        yield Check(area, "size", "ok", f"{size_text(size)}{of}")
    waste = store.cleaning.waste(store.configured)
    unused = sum(one.size for one in waste)
    if unused >= _MUCH_WASTE:
        kinds = ", ".join(dict.fromkeys(one.why for one in waste))
        text = f"{size_text(unused)} that nothing needs: {kinds}"
        yield Check(area, "unused", "warning", text, "nexo-lsp models prune")
    for name, choice in sorted(store.versions.choices().items()):
        kept = "pinned" if choice.pinned else "rolled back to"
        undo = f"`nexo-lsp models unpin {name}` follows the catalogue again"
        yield Check(area, kept, "ok", f"{name}@{choice.version}; {undo}")
    for one in store.installed():
        if one.embedded:
            text = f"{one.path} ({size_text(one.size)}; {one.embedded})"
            yield Check(area, "came along", "ok", text)
        elif one.problem and one.name not in told:
            mend = f"nexo-lsp models pull {one.name}, or nexo-lsp models remove {one.name}"
            yield Check(area, "damaged", "warning", f"{one.name} {one.problem}", mend)

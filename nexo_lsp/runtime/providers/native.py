"""llama.cpp on this machine, in a worker process."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from nexo_lsp.engines.engine import Engine
from nexo_lsp.engines.llama.engine import INSTALL_HINT, LlamaEngine, LlamaOptions, is_installed
from nexo_lsp.engines.llama.messages import Load
from nexo_lsp.engines.llama.process import Hosted, Spawn, spawn_private
from nexo_lsp.folders import Folders, folders
from nexo_lsp.generation import Capabilities, EngineStatus
from nexo_lsp.models.catalog import builtin
from nexo_lsp.runtime.environment import Platform
from nexo_lsp.runtime.providers.provider import Availability, Traits
from nexo_lsp.settings import EngineSettings

if TYPE_CHECKING:
    from nexo_lsp.engines.llama.tuning_file import Tuned

_log = logging.getLogger(__name__)

_HOME = frozenset({Platform.LINUX, Platform.MACOS, Platform.WINDOWS, Platform.CONSOLE})

_SMALLER = 0.6
"""A model that guesses has to be this much smaller at least to be worth a measurement."""


@dataclass(frozen=True, slots=True)
class ModelFigures:
    """What selection wants to know of a model."""

    parameters: float | None = None
    """Billions."""
    least_bytes: int = 0
    """What it takes of memory at the least; 0 if unknown."""
    tokens_per_s: float | None = None
    """What `nexo-lsp doctor --tune` measured here."""


@dataclass(frozen=True, slots=True)
class NativeProvider:
    """Needs `llama-cpp-python`; the model file is found, and fetched if need be, by `model`."""

    settings: EngineSettings
    model: Callable[[], Awaitable[Path]]
    prefixes: Path | None = None
    """Where evaluated static prompts are kept between two runs."""
    installed: Callable[[], bool] = is_installed
    home: Callable[[], Folders] = lambda: folders(os.environ)
    """Where the worker that is shared is found."""
    about: ModelFigures = field(default_factory=ModelFigures)
    """What is known of the model."""
    cores: int = 0
    """How many threads are used where nobody said or measured how many; 0 lets the worker choose."""
    thread: Spawn | None = None
    """Hosts the worker in a thread, where processes are not allowed."""
    name: str = "native"

    def traits(self) -> Traits:
        """It is at home on desktop systems, and on consoles; phones have rules of their own (`mobile`)."""
        return Traits(
            processes=self.thread is None,
            platforms=_HOME,
            memory_bytes=self.about.least_bytes,
            tokens_per_s=self.about.tokens_per_s,
            parameters=self.about.parameters,
        )

    def capabilities(self) -> Capabilities:
        """What llama.cpp does with most models."""
        return Capabilities(infill=True, json_schema=True, context_tokens=self.settings.context_tokens)

    def probe(self) -> Availability:
        """Usable where the library is installed."""
        if self.installed():
            return Availability(True, "llama-cpp-python is installed")
        return Availability(False, INSTALL_HINT)

    def create_engine(self, on_status: Callable[[EngineStatus], None]) -> Engine:
        """A `LlamaEngine` that starts its worker at the first request."""
        spawn = self.thread or (_shared(self.home()) if self.settings.shared else spawn_private)
        engine = LlamaEngine(self.model, self.options(), spawn=spawn, tune=self._tuned)
        engine.on_status = on_status
        return engine

    def options(self) -> LlamaOptions:
        """What the settings say about how the engine is run."""
        return LlamaOptions(
            context_tokens=self.settings.context_tokens,
            threads=self.settings.threads or self.cores,
            gpu_layers=gpu_layers_of(self.settings.gpu_layers),
            memory_limit_mb=self.settings.memory_limit_mb,
            prefix_folder=self.prefixes,
            unpack_folder=unpack_folder(self.settings, self.home()),
            idle_unload_s=self.settings.idle_unload_minutes * 60,
        )

    def _tuned(self, path: Path, options: LlamaOptions) -> LlamaOptions:
        tuning = tuning_of(self.settings, path, self.home().state)
        _log.info("threads: %s; drafting: %s", tuning.threads_reason, tuning.draft_reason)
        return replace(options, threads=tuning.threads or options.threads, draft_path=tuning.draft)


@dataclass(frozen=True, slots=True)
class Tuning:
    """What a worker is started with because of what was measured, with reasons."""

    threads: int
    """0: the worker chooses."""
    threads_reason: str
    draft: Path | None
    """The second model, if it pays."""
    draft_reason: str


def tuning_of(settings: EngineSettings, model: Path, state: Path) -> Tuning:
    """What follows for `model` from `nexo-lsp doctor --tune`, whose figures lie in the folder `state`."""
    # Reads one small file; the checker of its form is built only where there is one.
    from nexo_lsp.engines.llama.tuning_file import TuningFile

    known = TuningFile(state).find(model)
    if settings.threads:
        threads, reason = settings.threads, f"{settings.threads}, set by nexo.engine.threads"
    elif known is not None:
        threads, reason = known.threads, f"{known.threads}, measured by doctor --tune on {known.on}"
    else:
        threads, reason = 0, "chosen from the machine"
    return Tuning(threads, reason, *_draft(model, known))


def measured_tokens_per_s(model: Path, state: Path) -> float | None:
    """How many tokens a second `nexo-lsp doctor --tune` found `model` to write; None if it did not look."""
    from nexo_lsp.engines.llama.tuning_file import TuningFile

    known = TuningFile(state).find(model)
    return 1 / known.figures.step_s(known.threads) if known is not None else None


def _draft(model: Path, known: Tuned | None) -> tuple[Path | None, str]:
    draft = draft_for(model)
    if draft is None:
        return None, "off, no smaller model of the same vocabulary is here"
    if known is None or (expected := known.drafting(draft)) is None:
        return None, f"off, not measured; `nexo-lsp doctor --tune` tells whether {draft.stem} pays"
    gain = f"{draft.stem} would make answers {expected.gain:.2f} times as fast"
    when = f"measured by doctor --tune on {known.on}"
    if expected.guesses == 0:
        return None, f"off, {draft.stem} makes no answer faster; {when}"
    if not expected.pays:
        return None, f"off, {gain}, which is not worth its memory; {when}"
    return draft, f"on, {gain}; {when}"


def draft_for(model: Path) -> Path | None:
    """The smaller model beside `model` that may guess for it, if there is one."""
    own = next((entry for entry in builtin() if entry.file == model.name), None)
    if own is None:
        return None
    kin = [
        entry for entry in builtin() if entry.family == own.family and 0 < entry.size <= own.size * _SMALLER
    ]
    found = [path for entry in kin if (path := model.with_name(entry.file)).is_file()]
    return min(found, key=lambda path: path.stat().st_size, default=None)


def _shared(where: Folders) -> Spawn:
    def make() -> Spawn:
        # What it needs takes a while to be read from disk, and a server starts without it.
        from nexo_lsp.engines.llama.shared import SharedSpawn, sharing_in

        return SharedSpawn(sharing_in(where))

    async def spawn(wish: Load) -> Hosted:
        return await (await asyncio.to_thread(make))(wish)

    return spawn


def unpack_folder(settings: EngineSettings, where: Folders) -> Path | None:
    """Where copies of models with weights in whole bytes are kept, if the settings allow any."""
    return where.unpacked if settings.unpack_weights else None


def gpu_layers_of(setting: str | int) -> int | None:
    """What `nexo.engine.gpuLayers` means to a worker: None chooses, -1 is all."""
    if isinstance(setting, int):
        return setting
    return {"none": 0, "all": -1}.get(setting)

"""llama.cpp on this machine, in a worker process."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from nexo_lsp.engines.engine import Engine
from nexo_lsp.engines.llama.engine import INSTALL_HINT, LlamaEngine, LlamaOptions, is_installed
from nexo_lsp.engines.llama.messages import Load
from nexo_lsp.engines.llama.process import Hosted, Spawn, spawn_private
from nexo_lsp.folders import Folders, folders
from nexo_lsp.generation import Capabilities, EngineStatus
from nexo_lsp.models.catalog import CATALOG
from nexo_lsp.runtime.environment import Platform
from nexo_lsp.runtime.providers.provider import Availability, Traits
from nexo_lsp.settings import EngineSettings

if TYPE_CHECKING:
    from nexo_lsp.engines.llama.tuning_file import Tuned

_log = logging.getLogger(__name__)

_SMALLER = 0.6
"""A model that guesses has to be this much smaller at least to be worth a measurement."""


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
    parameters: float | None = None
    """The size of the model in billions, if it is known."""
    name: str = "native"

    def traits(self) -> Traits:
        """It runs in a process of its own, on desktop systems."""
        return Traits(processes=True, platforms=frozenset({Platform.LINUX, Platform.MACOS, Platform.WINDOWS}))

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
        spawn = _shared(self.home()) if self.settings.shared else spawn_private
        engine = LlamaEngine(self.model, self.options(), spawn=spawn, tune=self._tuned)
        engine.on_status = on_status
        return engine

    def options(self) -> LlamaOptions:
        """What the settings say about how the engine is run."""
        return LlamaOptions(
            context_tokens=self.settings.context_tokens,
            threads=self.settings.threads,
            gpu_layers=gpu_layers_of(self.settings.gpu_layers),
            memory_limit_mb=self.settings.memory_limit_mb,
            prefix_folder=self.prefixes,
            unpack_folder=unpack_folder(self.settings, self.home()),
            idle_unload_s=self.settings.idle_unload_minutes * 60,
        )

    def _tuned(self, path: Path, options: LlamaOptions) -> LlamaOptions:
        tuning = tuning_of(self.settings, path, self.home().state)
        _log.info("threads: %s; drafting: %s", tuning.threads_reason, tuning.draft_reason)
        return replace(options, threads=tuning.threads, draft_path=tuning.draft)


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
    own = next((entry for entry in CATALOG if entry.file == model.name), None)
    if own is None:
        return None
    kin = [entry for entry in CATALOG if entry.family == own.family and entry.size <= own.size * _SMALLER]
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

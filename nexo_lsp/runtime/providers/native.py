"""llama.cpp on this machine, in a worker process."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from nexo_lsp.engines.engine import Engine
from nexo_lsp.engines.llama.engine import INSTALL_HINT, LlamaEngine, LlamaOptions, is_installed
from nexo_lsp.engines.llama.messages import Load
from nexo_lsp.engines.llama.process import Hosted, Spawn, spawn_private
from nexo_lsp.folders import Folders, folders
from nexo_lsp.generation import EngineStatus
from nexo_lsp.runtime.providers.provider import Availability
from nexo_lsp.settings import EngineSettings


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
    name: str = "native"

    def probe(self) -> Availability:
        """Usable where the library is installed."""
        if self.installed():
            return Availability(True, "llama-cpp-python is installed")
        return Availability(False, INSTALL_HINT)

    def create_engine(self, on_status: Callable[[EngineStatus], None]) -> Engine:
        """A `LlamaEngine` that starts its worker at the first request."""
        options = LlamaOptions(
            context_tokens=self.settings.context_tokens,
            threads=self.settings.threads,
            gpu_layers=gpu_layers_of(self.settings.gpu_layers),
            memory_limit_mb=self.settings.memory_limit_mb,
            prefix_folder=self.prefixes,
            idle_unload_s=self.settings.idle_unload_minutes * 60,
        )
        spawn = _shared(self.home()) if self.settings.shared else spawn_private
        engine = LlamaEngine(self.model, options, spawn=spawn)
        engine.on_status = on_status
        return engine


def _shared(where: Folders) -> Spawn:
    def make() -> Spawn:
        # What it needs takes a while to be read from disk, and a server starts without it.
        from nexo_lsp.engines.llama.shared import SharedSpawn, sharing_in

        return SharedSpawn(sharing_in(where))

    async def spawn(wish: Load) -> Hosted:
        return await (await asyncio.to_thread(make))(wish)

    return spawn


def gpu_layers_of(setting: str | int) -> int | None:
    """What `nexo.engine.gpuLayers` means to a worker: None chooses, -1 is all."""
    if isinstance(setting, int):
        return setting
    return {"none": 0, "all": -1}.get(setting)

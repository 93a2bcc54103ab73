"""A llama.cpp server in a container on this machine, by Docker or Podman."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nexo_lsp.engines.engine import Engine
from nexo_lsp.generation import Capabilities, EngineStatus
from nexo_lsp.runtime.environment import Platform
from nexo_lsp.runtime.providers.containers.daemon import INSTALL_HINT, is_installed
from nexo_lsp.runtime.providers.containers.engine import NAME, ContainerEngine
from nexo_lsp.runtime.providers.containers.places import find, this_platform
from nexo_lsp.runtime.providers.containers.server import ContainerOptions, Containers
from nexo_lsp.runtime.providers.native import ModelFigures
from nexo_lsp.runtime.providers.provider import Availability, Traits
from nexo_lsp.settings import DockerSettings, EngineSettings

_PLATFORMS = frozenset({Platform.LINUX, Platform.MACOS, Platform.WINDOWS})

_BUSY_S = 60.0
"""A server that computes a long prompt for others says nothing meanwhile."""


@dataclass(frozen=True, slots=True)
class DockerProvider:
    """Needs the Docker SDK, and Docker or Podman; `model` finds the model file, or fetches it."""

    settings: DockerSettings
    engine_settings: EngineSettings
    model: Callable[[], Awaitable[Path]]
    environ: Mapping[str, str]
    platform: Platform = field(default_factory=this_platform)
    installed: Callable[[], bool] = is_installed
    about: ModelFigures = field(default_factory=ModelFigures)
    """What is known of the model."""
    name: str = NAME

    def traits(self) -> Traits:
        """It is taken by itself only where the user turned it on; the processes are not ours."""
        return Traits(
            # Whoever names it may be a workspace; what turns it on is the user's own.
            needs_trust=not self.settings.enabled,
            only_by_name=not self.settings.enabled,
            platforms=_PLATFORMS,
            memory_bytes=self.about.least_bytes,
            parameters=self.about.parameters,
        )

    def capabilities(self) -> Capabilities:
        """What a llama.cpp server does with most models."""
        return Capabilities(
            infill=True, json_schema=True, context_tokens=self.engine_settings.context_tokens, local=True
        )

    def probe(self) -> Availability:
        """Usable where the SDK is installed and something listens, or seems to: nothing is connected to."""
        if not self.installed():
            return Availability(False, INSTALL_HINT)
        search = find(self.settings.socket, self.environ, self.platform)
        if search.place is None:
            return Availability(False, search.why_not.rstrip("."))
        return Availability(True, f"{search.place.url} is there ({search.place.source})")

    def options(self) -> ContainerOptions:
        """What the settings ask for."""
        return ContainerOptions(
            image=self.settings.image,
            pull=self.settings.pull,
            socket=self.settings.socket,
            context_tokens=self.engine_settings.context_tokens,
            threads=self.engine_settings.threads,
            memory_limit_mb=self.engine_settings.memory_limit_mb,
            gpus=self.settings.gpus,
        )

    def create_engine(self, on_status: Callable[[EngineStatus], None]) -> Engine:
        """An engine that starts its container at the first request."""
        engine = ContainerEngine(
            self.model,
            Containers(self.options(), self.environ, self.platform).start,
            self._connect,
            capabilities=self.capabilities(),
            idle_unload_s=self.engine_settings.idle_unload_minutes * 60,
        )
        engine.on_status = on_status
        return engine

    def _connect(self, url: str, key: str) -> Engine:
        # An HTTP library comes along; a server that starts no container does without.
        from nexo_lsp.engines.remote.endpoint import Endpoint, RemoteOptions
        from nexo_lsp.engines.remote.engine import RemoteEngine

        options = RemoteOptions(
            name=NAME,
            context_tokens=self.engine_settings.context_tokens,
            answer_timeout_s=_BUSY_S,
            attempts=2,
            proxies=False,
        )
        return RemoteEngine([Endpoint(url, key)], options)

"""Servers of the user's choice that speak OpenAI's protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nexo_lsp.engines.engine import Engine
from nexo_lsp.engines.remote.endpoint import Address, Endpoint, RemoteOptions
from nexo_lsp.errors import SettingsError
from nexo_lsp.folders import expanded
from nexo_lsp.generation import Capabilities, EngineStatus
from nexo_lsp.runtime.keys import Keys
from nexo_lsp.runtime.providers.provider import Availability, Traits
from nexo_lsp.safety.redaction import INSTALL_HINT, is_installed
from nexo_lsp.settings import RemoteSettings


@dataclass(frozen=True, slots=True)
class RemoteProvider:
    """Asks `nexo.remote.endpoints`, without secrets, and only from workspaces that are trusted."""

    settings: RemoteSettings
    """The user's own: a workspace cannot have set them."""
    trusted: Callable[[], bool]
    """Whether the workspace is trusted at this moment."""
    environ: Mapping[str, str] = field(repr=False)
    """Where keys may be."""
    on_redacted: Callable[[Mapping[str, int]], None] = lambda _counts: None
    """Told how many secrets of each kind were taken out of a request."""
    installed: Callable[[], bool] = is_installed
    name: str = "remote"

    def traits(self) -> Traits:
        """It needs a network, and sends code away, unless all its servers are on this machine."""
        local = bool(self.settings.endpoints) and all(map(_is_here, self.settings.endpoints))
        return Traits(sends_code=not local, network=not local)

    def probe(self) -> Availability:
        """Whether it may be used; nothing is asked of any server for it."""
        settings = self.settings
        if not settings.enabled:
            return Availability(False, "off; nexo.remote.enabled turns it on, in your own settings")
        if not settings.endpoints:
            return Availability(False, "no server is named; nexo.remote.endpoints does, in your own settings")
        try:
            hosts = [Address.of(url).host for url in settings.endpoints]
        except SettingsError as error:
            return Availability(False, str(error).rstrip("."))
        if not self.trusted():
            return Availability(False, "this workspace is not trusted, so nothing of it is sent anywhere")
        if not self.installed():
            return Availability(False, INSTALL_HINT.rstrip("."))
        return Availability(True, f"on, with {', '.join(hosts)}")

    def capabilities(self) -> Capabilities:
        """What most servers can do; the engine finds out about these."""
        return Capabilities(
            infill=True,
            json_schema=True,
            context_tokens=self.settings.context_tokens,
            local=not self.traits().sends_code,
        )

    def create_engine(self, on_status: Callable[[EngineStatus], None]) -> Engine:
        """A `RemoteEngine` that gets no secrets. Raises `SettingsError` for a wrong address."""
        # Its HTTP library takes a while to be read from disk, and a server starts without it.
        from nexo_lsp.engines.remote.engine import RemoteEngine
        from nexo_lsp.runtime.redacting import Redacting

        keys = Keys(self.environ)
        exposed = {one.host for one in map(Address.of, self.settings.endpoints) if one.exposed}

        def key(host: str) -> str | None:
            found = keys.find(host, general=host not in exposed)
            return found.value if found is not None else None

        endpoints = [Endpoint(url) for url in self.settings.endpoints]
        engine = RemoteEngine(endpoints, options_of(self.settings), keys=key)
        redacting = Redacting(engine, self.on_redacted, refusal=self._refusal)
        engine.on_status = lambda status: on_status(redacting.shown(status))
        return redacting

    def _refusal(self) -> str:
        """Why nothing may be sent now: trust may end while the engine lives."""
        found = self.probe()
        return "" if found.usable else f"Nothing was sent: {found.reason}."


def options_of(settings: RemoteSettings) -> RemoteOptions:
    """How the settings want servers to be asked."""
    return RemoteOptions(
        model=settings.model,
        context_tokens=settings.context_tokens,
        parallel=settings.parallel,
        connect_timeout_s=settings.connect_timeout_s,
        answer_timeout_s=settings.answer_timeout_s,
        ca_file=Path(expanded(settings.ca_file)) if settings.ca_file else None,
    )


def _is_here(url: str) -> bool:
    """Whether `url` is on this machine by its very name."""
    try:
        return Address.of(url).loopback
    except SettingsError:
        return False

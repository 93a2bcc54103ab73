"""The client's own engine: a browser's llama.cpp, or the language model of an editor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nexo_lsp.engines.client_hosted import ClientHostedEngine, Refusal, stays_here
from nexo_lsp.engines.client_port import NO_ENGINE, Announcement, ClientPort
from nexo_lsp.engines.engine import Engine
from nexo_lsp.generation import Capabilities, EngineStatus
from nexo_lsp.runtime.environment import Platform
from nexo_lsp.runtime.providers.provider import Availability, Traits
from nexo_lsp.safety import redaction


def never_sent() -> str | None:
    """The refusal where nobody said that prompts may leave the machine."""
    return "nothing here may send code to another machine"


@dataclass(frozen=True, slots=True)
class ClientHostedProvider:
    """Needs a client that announced an engine through `port`; without a connection there is none.

    Where that engine is not on the user's machine, `refusal` says why prompts may not be sent there (None:
    they may), and what is sent goes through `wrap`, which takes out what nobody else may see.
    """

    port: ClientPort | None
    refusal: Refusal = never_sent
    wrap: Callable[[Engine], Engine] | None = None
    name: str = "client-hosted"

    def traits(self) -> Traits:
        """It is at home where the client has the machine to itself. It takes nothing that we could count."""
        announced = self._announced()
        away = announced is not None and not announced.local
        platforms = frozenset({Platform.WEB, Platform.IOS, Platform.ANDROID})
        return Traits(sends_code=away, network=away, platforms=platforms)

    def capabilities(self) -> Capabilities:
        """What was announced."""
        return (self._announced() or Announcement()).capabilities

    def probe(self) -> Availability:
        """Usable when the client has announced an engine that may be asked."""
        announced = self._announced()
        if announced is None:
            return Availability(False, NO_ENGINE)
        name = f"the editor offers {announced.model or 'an engine of its own'}"
        if announced.local:
            return Availability(True, f"{name}, on this machine")
        if (reason := self.refusal()) is not None:
            return Availability(False, f"{name}, on another machine; {reason}")
        if self.wrap is None:
            return Availability(False, f"{name}, on another machine; nothing takes secrets out of prompts")
        if not redaction.is_installed():
            return Availability(False, f"{name}, on another machine; {redaction.INSTALL_HINT}")
        return Availability(True, f"{name}, on another machine")

    def create_engine(self, on_status: Callable[[EngineStatus], None]) -> Engine:
        """A `ClientHostedEngine`, wrapped where prompts leave the machine."""
        announced = self._announced()
        away = self.wrap is not None and announced is not None and not announced.local
        # Made for an engine that is here, it asks none that is elsewhere: it would not be wrapped.
        engine = ClientHostedEngine(self.port or ClientPort(), self.refusal if away else stays_here)
        engine.on_status = on_status
        return self.wrap(engine) if away and self.wrap is not None else engine

    def _announced(self) -> Announcement | None:
        return self.port.announced if self.port is not None else None

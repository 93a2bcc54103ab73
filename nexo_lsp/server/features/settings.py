"""Settings from the editor: at the start, by pull (`workspace/configuration`), by push."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, cast

from lsprotocol import types
from pygls.exceptions import JsonRpcException

from nexo_lsp.settings import PREFIX, Layer, Problem

if TYPE_CHECKING:
    from nexo_lsp.server.language_server import NexoServer

log = logging.getLogger(__name__)

# A client that announces `workspace/configuration` and never answers must not keep everything waiting.
_PULL_S: Final = 3.0
_USERS_OWN: Final = "userSettings"
"""The key under which a client puts what the user, and no workspace, has set."""


class EditorSettings:
    """What the editor set. Nothing is asked of a model before the first pull was answered.

    Otherwise a file opened in the first moments would be asked about although `nexo.enable` is false.
    """

    def __init__(self, server: NexoServer) -> None:
        self._server = server
        self._initial: Mapping[str, Any] = {}
        self._editor: Mapping[str, Any] = {}
        self._origin = "workspace/configuration"
        self._problems: tuple[Problem, ...] = ()
        self._named: set[tuple[str, str]] = set()
        self._ready = asyncio.Event()
        self._pulls = 0

    def begin(self, options: Mapping[str, Any]) -> None:
        """The content of `initializationOptions`."""
        self._initial = options
        self._configure()

    def start(self) -> None:
        """After `initialized`: name what was wrong so far, subscribe, pull."""
        self._name_problems()
        if self._server.client.registers_configuration:
            self._server.spawn(self._register(), "registration of settings")
        if self._server.client.configuration:
            self.pull()
        else:
            self._ready.set()
            self._applied()

    async def ready(self) -> None:
        """Wait until the editor's settings are known, or long enough."""
        if not self._ready.is_set():
            try:
                await asyncio.wait_for(self._ready.wait(), _PULL_S)
            except TimeoutError:
                log.warning("the client did not answer workspace/configuration; going on without")
                self._ready.set()

    def pull(self) -> None:
        """Ask the client for its settings."""
        self._pulls += 1
        self._server.spawn(self._pull(self._pulls), "settings")

    async def _pull(self, number: int) -> None:
        params = types.ConfigurationParams(items=[types.ConfigurationItem(section=PREFIX)])
        try:
            answer = await self._server.workspace_configuration_async(params)
        except JsonRpcException as error:
            log.warning("the client could not give its settings: %s", error)
            answer = []
        if number == self._pulls:
            values = cast("Sequence[object]", answer)
            self._take(values[0] if values else None, "workspace/configuration")
        self._ready.set()

    def push(self, value: object) -> None:
        """The content of the section as a client pushed it; it counts more than a pull on its way."""
        self._pulls += 1
        self._take(value, "workspace/didChangeConfiguration")
        self._ready.set()

    def _take(self, value: object, origin: str) -> None:
        self._editor = cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else {}
        self._origin = origin
        self._configure()
        self._name_problems()
        self._applied()

    def _configure(self) -> None:
        own = self._initial.get(_USERS_OWN)
        layers = (
            Layer("initializationOptions", self._initial, users_own=False),
            Layer(self._origin, self._editor, users_own=False),
            Layer(
                f"{_USERS_OWN} of initializationOptions",
                cast("Mapping[str, Any]", own) if isinstance(own, Mapping) else {},
            ),
        )
        self._problems = self._server.app.configure(layers)
        self._server.failures.forget()

    def _applied(self) -> None:
        from nexo_lsp.server.features import completion

        completion.settings_changed(self._server)

    def _name_problems(self) -> None:
        """Name what is newly wrong in one message. The same mistake from two places is one mistake."""
        known, self._named = self._named, {_mistake(problem) for problem in self._problems}
        new = {_mistake(problem): problem for problem in reversed(self._problems)}
        lines = [str(problem) for mistake, problem in reversed(new.items()) if mistake not in known]
        for line in lines:
            log.warning("wrong setting: %s", line)
        if lines:
            text = lines[0] if len(lines) == 1 else "".join(f"\n- {line}" for line in lines)
            self._server.show(f"nexo-lsp settings: {text}", types.MessageType.Warning)

    async def _register(self) -> None:
        registration = types.Registration(
            id="nexo-settings",
            method=types.WORKSPACE_DID_CHANGE_CONFIGURATION,
            register_options={"section": PREFIX},
        )
        await register(self._server, registration)


def _mistake(problem: Problem) -> tuple[str, str]:
    return problem.name, problem.message.rpartition(" (from ")[0]


async def register(server: NexoServer, registration: types.Registration) -> bool:
    """Register something dynamically; a client that refuses goes without it."""
    try:
        await server.client_register_capability_async(types.RegistrationParams(registrations=[registration]))
    except JsonRpcException as error:
        log.warning("the client refused to register %s: %s", registration.method, error)
        return False
    return True


def changed(server: NexoServer, params: types.DidChangeConfigurationParams) -> None:
    """`workspace/didChangeConfiguration`: the settings themselves, or only word that they changed."""
    pushed: object = params.settings
    if isinstance(pushed, Mapping) and PREFIX in pushed:
        server.settings.push(cast("Mapping[str, Any]", pushed)[PREFIX])
    elif server.client.configuration:
        server.settings.pull()

"""The server of one connection: what it holds, and the table of what it answers."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from cattrs import Converter
from lsprotocol import types
from pygls.lsp.server import LanguageServer
from pygls.protocol import default_converter

from nexo_lsp import __version__
from nexo_lsp.app import App, Host, create_app
from nexo_lsp.server import custom_messages, engine_messages, lifecycle, progress
from nexo_lsp.server.client_features import ClientFeatures
from nexo_lsp.server.failures import Failures
from nexo_lsp.server.features import (
    client_engine,
    code_actions,
    commands,
    completion,
    diagnostics,
    hover,
    inline_completion,
    settings,
    status,
    sync,
)
from nexo_lsp.server.host import EditorHost
from nexo_lsp.server.jobs import Jobs
from nexo_lsp.server.proposals import Proposals, accept, discard
from nexo_lsp.server.protocol import NexoProtocol
from nexo_lsp.text import PositionEncoding

log = logging.getLogger(__name__)
T = TypeVar("T")


class AppFactory(Protocol):
    """Makes the app of a server."""

    def __call__(self, environ: Mapping[str, str], host: Host, /, *, lasting: bool) -> App:
        """An app that asks `host` for what it needs from the editor."""
        ...


# Every message that the server takes, apart from `initialize`, `exit` and `$/cancelRequest`, which
# `protocol.py` handles itself. Notifications have synchronous handlers: they are handled in their order.
HANDLERS: Final[Mapping[str, Callable[..., Any]]] = {
    types.INITIALIZED: lifecycle.initialized,
    types.SHUTDOWN: lifecycle.shutdown,
    types.SET_TRACE: lifecycle.set_trace,
    types.WORKSPACE_DID_CHANGE_WORKSPACE_FOLDERS: lifecycle.folders_changed,
    types.WORKSPACE_DID_CHANGE_CONFIGURATION: settings.changed,
    types.WINDOW_WORK_DONE_PROGRESS_CANCEL: progress.cancelled_by_client,
    types.TEXT_DOCUMENT_DID_OPEN: sync.opened,
    types.TEXT_DOCUMENT_DID_CHANGE: sync.changed,
    types.TEXT_DOCUMENT_DID_SAVE: sync.saved,
    types.TEXT_DOCUMENT_DID_CLOSE: sync.closed,
    types.TEXT_DOCUMENT_HOVER: hover.hover,
    types.TEXT_DOCUMENT_CODE_ACTION: code_actions.code_actions,
    types.TEXT_DOCUMENT_INLINE_COMPLETION: inline_completion.inline_completion,
    types.TEXT_DOCUMENT_COMPLETION: completion.completion,
    types.WORKSPACE_EXECUTE_COMMAND: commands.execute,
    custom_messages.REVIEW: diagnostics.review,
    custom_messages.STATUS: status.status,
    custom_messages.PROPOSAL_ACCEPT: accept,
    custom_messages.PROPOSAL_DISCARD: discard,
    engine_messages.ENGINE_ANNOUNCE: client_engine.announced,
    engine_messages.ENGINE_PIECE: client_engine.piece,
    engine_messages.ENGINE_END: client_engine.ended,
}


def _converter() -> Converter:
    return custom_messages.register_hooks(default_converter())


class NexoServer(LanguageServer):
    """One connection's server. Everything it knows of the client and of running work hangs here."""

    protocol: NexoProtocol  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(
        self, environ: Mapping[str, str], app_factory: AppFactory = create_app, log_file: Path | None = None
    ) -> None:
        super().__init__(  # pyright: ignore[reportUnknownMemberType] - pygls leaves *args untyped
            "nexo-lsp", __version__, protocol_cls=NexoProtocol, converter_factory=_converter
        )
        self.environ = environ
        self.client = ClientFeatures()
        self.failures = Failures(self.show, log_file)
        self.progress_cancels: dict[types.ProgressToken, Callable[[], None]] = {}
        self.left = asyncio.Event()
        """Set when the client said `exit` or went away."""
        self._tasks: set[asyncio.Task[Any]] = set()
        self.jobs = Jobs(self)
        self.host = EditorHost(self)
        self.app = app_factory(environ, self.host, lasting=True)
        self.app.hovers.on_failure = self.failures.tell_once
        self.settings = settings.EditorSettings(self)
        self.reviews = diagnostics.ReviewTriggers(self)
        self.status_feed = status.StatusFeed(self)
        self.proposals = Proposals(self)
        self.folders: dict[str, Path] = {}
        self.trusted = False
        self.completion_registered = False
        self._closing: asyncio.Task[None] | None = None
        for method, handler in HANDLERS.items():
            self.feature(method)(functools.partial(handler, self))

    @property
    def encoding(self) -> PositionEncoding:
        """The unit of this client's columns."""
        return self.client.encoding

    def begin(self, params: Mapping[str, Any]) -> None:
        """Take in `initialize`: cheap, since the client waits."""
        lifecycle.begin(self, params)

    def spawn(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Run `work` beside the handlers; an error that nobody awaits is shown once."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.failures.tell_once(error)

    def show(self, message: str, level: types.MessageType) -> None:
        """Show the user a message."""
        self.window_show_message(types.ShowMessageParams(type=level, message=message))

    def structure(self, value: object, cls: type[T]) -> T:
        """A JSON value as one of our message classes. Raises what cattrs raises."""
        return self.protocol._converter.structure(value, cls)  # pyright: ignore[reportPrivateUsage]

    def plain(self, value: object) -> Any:
        """One of our message classes as the JSON data that arguments are made of."""
        return self.protocol._converter.unstructure(value)  # pyright: ignore[reportPrivateUsage]

    def report_server_error(self, error: Exception, source: object) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """pygls's own errors go to the log; it would show them, with their internals, to the user."""
        log.error("protocol error in %s", source, exc_info=error)

    def leave(self) -> None:
        """The client is gone, or said that it goes."""
        self.left.set()

    async def aclose(self) -> None:
        """Stop all work and let go of everything; a second call waits for the first."""
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        self.jobs.stop_all()
        self.reviews.close()
        self.status_feed.close()
        self.host.close()
        for task in list(self._tasks):
            task.cancel()
        self.app.client_port.disconnect()
        await self.app.close()


def create_server(
    environ: Mapping[str, str], app_factory: AppFactory = create_app, log_file: Path | None = None
) -> NexoServer:
    """A server for one connection, not connected yet. Must be called with an event loop running."""
    return NexoServer(environ, app_factory, log_file)

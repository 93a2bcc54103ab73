"""From `initialize` to `shutdown`, and noticing that the client is gone without a word."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from lsprotocol import types
from pygls.uris import to_fs_path

from nexo_lsp.offload import in_thread
from nexo_lsp.server.capabilities import section
from nexo_lsp.server.client_features import ClientFeatures
from nexo_lsp.server.features import client_engine

if TYPE_CHECKING:
    from nexo_lsp.server.language_server import NexoServer

log = logging.getLogger(__name__)

_PARENT_POLL_S: Final = 2.0
# A client waits for the answer to `shutdown` (VS Code: 2 s) before it kills us; closing goes on after it.
_SHUTDOWN_S: Final = 1.5


def begin(server: NexoServer, params: Mapping[str, Any]) -> None:
    """Take in the params of `initialize`: the client, its folders, its first settings."""
    server.client = ClientFeatures.of(params)
    log.info("client: %s, %s", server.client.name, server.encoding)
    server.app.documents.encoding = server.client.encoding
    options = section(params.get("initializationOptions"))
    server.trusted = options.get("trusted") is True
    for uri in _first_folders(params):
        _add_folder(server, uri)
    _tell_folders(server)
    client_engine.begin(server, params)
    server.settings.begin(options)


def _first_folders(params: Mapping[str, Any]) -> list[str]:
    folders = params.get("workspaceFolders")
    if isinstance(folders, list) and folders:
        return [str(folder["uri"]) for folder in cast("list[Mapping[str, Any]]", folders)]
    root = params.get("rootUri")
    if isinstance(root, str):
        return [root]
    path = params.get("rootPath")
    return [Path(path).as_uri()] if isinstance(path, str) and Path(path).is_absolute() else []


def _add_folder(server: NexoServer, uri: str) -> None:
    path = to_fs_path(uri) if uri.startswith("file:") else None
    if path:
        server.folders[uri] = Path(path)
    else:
        log.info("the folder %s is not on this machine's disk", uri)


def _tell_folders(server: NexoServer) -> None:
    server.app.set_workspace(tuple(server.folders.values()), trusted=server.trusted)


def folders_changed(server: NexoServer, params: types.DidChangeWorkspaceFoldersParams) -> None:
    """`workspace/didChangeWorkspaceFolders`."""
    _remove(server, params.event.removed)
    for folder in params.event.added:
        _add_folder(server, folder.uri)
    _tell_folders(server)


def _remove(server: NexoServer, folders: Sequence[types.WorkspaceFolder]) -> None:
    for folder in folders:
        server.folders.pop(folder.uri, None)


def initialized(server: NexoServer, params: types.InitializedParams) -> None:
    """`initialized`: from here on the server may ask the client things."""
    server.settings.start()


def set_trace(server: NexoServer, params: types.SetTraceParams) -> None:
    """`$/setTrace`: there is nothing beyond the log to trace."""


async def shutdown(server: NexoServer, params: object) -> None:
    """`shutdown`: no work after this, and no answers but this one."""
    server.protocol.shutting_down = True
    server.protocol.cancel_pending()
    closing = asyncio.ensure_future(server.aclose())
    await asyncio.wait({closing}, timeout=_SHUTDOWN_S)


async def watch_parent(server: NexoServer, pid: int) -> None:
    """End the connection when the process `pid` is gone.

    A pid that is not alive at first is left alone: it counts in another name space (a container, another
    machine).
    """
    import psutil

    try:
        parent = await in_thread(lambda: psutil.Process(pid))
    except psutil.NoSuchProcess:
        log.info("the client's process %d is not on this machine", pid)
        return
    while await in_thread(parent.is_running):
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(server.left.wait(), _PARENT_POLL_S)
            return
    log.warning("the client's process %d is gone", pid)
    server.leave()

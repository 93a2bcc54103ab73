"""Documents as they are opened, changed, saved and closed: synchronous, in the order in which they come."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lsprotocol import types

from nexo_lsp.server.convert import changes_of

if TYPE_CHECKING:
    from nexo_lsp.server.language_server import NexoServer


def opened(server: NexoServer, params: types.DidOpenTextDocumentParams) -> None:
    """`textDocument/didOpen`."""
    item = params.text_document
    snapshot = server.app.documents.open(item.uri, item.language_id, item.version, item.text)
    server.app.opened(snapshot)
    server.reviews.opened(item.uri)


def changed(server: NexoServer, params: types.DidChangeTextDocumentParams) -> None:
    """`textDocument/didChange`: the changes are applied one by one, each to what the last one left."""
    document = params.text_document
    changes = changes_of(params.content_changes)
    snapshot, edits = server.app.documents.change(document.uri, document.version, changes)
    server.app.changed(snapshot, edits)
    server.reviews.changed(document.uri)


def saved(server: NexoServer, params: types.DidSaveTextDocumentParams) -> None:
    """`textDocument/didSave`."""
    server.reviews.saved(params.text_document.uri)


def closed(server: NexoServer, params: types.DidCloseTextDocumentParams) -> None:
    """`textDocument/didClose`: what was shown for the document is taken away."""
    uri = params.text_document.uri
    snapshot = server.app.documents.find(uri)
    server.app.documents.close(uri)
    if snapshot is not None:
        server.app.closed(snapshot)
    server.reviews.closed(uri)
    server.proposals.closed(uri)

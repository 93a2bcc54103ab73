"""Proposals to the editor: one edit, for a version that is checked on both sides."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from lsprotocol import types
from pygls.exceptions import JsonRpcException

from nexo_lsp.errors import DocumentNotOpen, EditRefused
from nexo_lsp.server.convert import to_text_edits

if TYPE_CHECKING:
    from nexo_lsp.documents import Snapshot
    from nexo_lsp.pipeline.actions import NewFile, Proposal
    from nexo_lsp.server.language_server import NexoServer

log = logging.getLogger(__name__)

_START = types.Range(types.Position(0, 0), types.Position(0, 0))
_DocumentChange = types.TextDocumentEdit | types.CreateFile | types.RenameFile | types.DeleteFile


async def apply_proposal(server: NexoServer, proposal: Proposal) -> None:
    """Send a proposal's edit by `workspace/applyEdit`.

    Between the check of the version and the sending nothing else runs. A client that refuses because it has
    moved on meanwhile gets the edit once more, for its new version. Raises `EditRefused` with the client's
    reason, `StaleDocument` when the code changed in the same place.
    """
    reason: str | None = None
    for _ in range(2):
        proposal = server.app.actions.settle(proposal)
        reason = await _send(server, proposal)
        if reason is None:
            return
        document = server.app.documents.find(proposal.uri)
        if document is None or document.version == proposal.version:
            break
        log.info(
            "the client refused the edit for version %d and is at %d", proposal.version, document.version
        )
    raise EditRefused(f"The editor did not apply “{proposal.title}”: {reason}")


async def _send(server: NexoServer, proposal: Proposal) -> str | None:
    """Send the edit; None if it was applied, else why not."""
    params = types.ApplyWorkspaceEditParams(edit=workspace_edit(server, proposal), label=proposal.title)
    try:
        answer = await server.workspace_apply_edit_async(params)
    except JsonRpcException as error:
        return error.message
    return None if answer.applied else answer.failure_reason or "it gave no reason"


def workspace_edit(server: NexoServer, proposal: Proposal) -> types.WorkspaceEdit:
    """The edit of a proposal that was just settled."""
    edits: list[types.TextEdit] = []
    if proposal.edits:
        snapshot = _snapshot(server, proposal)
        edits = to_text_edits(snapshot.lines, proposal.edits, server.encoding)
    client = server.client
    if not client.document_changes:
        changes = {file.uri: [types.TextEdit(_START, file.text)] for file in proposal.new_files}
        return types.WorkspaceEdit(changes={**({proposal.uri: edits} if edits else {}), **changes})
    document_changes: list[_DocumentChange] = []
    for file in proposal.new_files:
        document_changes += _creation(file, client.create_files)
    if edits:
        document_changes.append(_text_edit(proposal.uri, proposal.version, edits))
    return types.WorkspaceEdit(document_changes=document_changes)


def _snapshot(server: NexoServer, proposal: Proposal) -> Snapshot:
    snapshot = server.app.documents.find(proposal.uri)
    if snapshot is None:
        raise DocumentNotOpen(f"“{proposal.title}” was not applied: its document is not open any more")
    return snapshot


def _creation(file: NewFile, can_create: bool) -> list[_DocumentChange]:
    text = _text_edit(file.uri, None, [types.TextEdit(_START, file.text)])
    # Never over a file that exists: the client then refuses the whole edit.
    creation = types.CreateFile(
        uri=file.uri, options=types.CreateFileOptions(overwrite=False, ignore_if_exists=False)
    )
    return [creation, text] if can_create else [text]


def _text_edit(uri: str, version: int | None, edits: list[types.TextEdit]) -> types.TextDocumentEdit:
    return types.TextDocumentEdit(
        types.OptionalVersionedTextDocumentIdentifier(uri=uri, version=version), edits
    )

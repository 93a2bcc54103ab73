"""Inline completion (ghost text)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lsprotocol import types

from nexo_lsp.errors import NexoError
from nexo_lsp.pipeline.complete import Selected
from nexo_lsp.server.capabilities import ACCEPTED_COMMAND
from nexo_lsp.server.convert import position_of, range_of, to_range

if TYPE_CHECKING:
    from nexo_lsp.documents import Snapshot
    from nexo_lsp.pipeline.complete import Completion
    from nexo_lsp.server.language_server import NexoServer


async def inline_completion(
    server: NexoServer, params: types.InlineCompletionParams
) -> list[types.InlineCompletionItem] | None:
    """`textDocument/inlineCompletion`; null when there is nothing to offer or a newer request came."""
    explicit = params.context.trigger_kind is types.InlineCompletionTriggerKind.Invoked
    info = params.context.selected_completion_info
    found = await complete(server, params.text_document.uri, params.position, explicit=explicit, info=info)
    if found is None:
        return None
    snapshot, completion = found
    return [
        types.InlineCompletionItem(
            insert_text=completion.text,
            # Without a range VS Code replaces the current word, and then draws nothing.
            range=to_range(snapshot.lines, completion.span, server.encoding),
            command=accepted_command(completion),
        )
    ]


async def complete(
    server: NexoServer,
    uri: str,
    position: types.Position,
    *,
    explicit: bool,
    info: types.SelectedCompletionInfo | None = None,
) -> tuple[Snapshot, Completion] | None:
    """Ask the pipeline. Errors are shown once: this is asked at each keystroke."""
    await server.settings.ready()
    app = server.app
    snapshot = app.documents.find(uri)
    if snapshot is None:
        return None
    offset = snapshot.lines.offset(position_of(position), server.encoding)
    selected = None
    if info is not None:
        selected = Selected(snapshot.lines.span(range_of(info.range), server.encoding), info.text)
    try:
        completion = await app.completions.complete(uri, offset, explicit=explicit, selected=selected)
    except NexoError as error:
        server.failures.tell_once(error)
        return None
    # What was typed meanwhile may be what is suggested; the client asks anew for what it has now.
    moved = app.documents.find(uri) is not snapshot
    return None if completion is None or moved else (snapshot, completion)


def accepted_command(completion: Completion) -> types.Command:
    """The command that the client runs when the user takes a completion."""
    return types.Command(title="Completion accepted", command=ACCEPTED_COMMAND, arguments=[completion.id])

"""Docs as hover."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lsprotocol import types

from nexo_lsp.errors import NexoError
from nexo_lsp.server.convert import fenced, position_of, to_range
from nexo_lsp.text import shift_span

if TYPE_CHECKING:
    from nexo_lsp.pipeline.hover import HoverAnswer
    from nexo_lsp.server.language_server import NexoServer

PENDING: Final = "An explanation is coming; hover again in a moment."


async def hover(server: NexoServer, params: types.HoverParams) -> types.Hover | None:
    """`textDocument/hover`. Errors are shown once and answered with null, hovers being frequent."""
    await server.settings.ready()
    app = server.app
    snapshot = app.documents.find(params.text_document.uri)
    if snapshot is None or not app.settings.hover.enabled:
        return None
    offset = snapshot.lines.offset(position_of(params.position), server.encoding)
    try:
        answer = await app.hovers.hover(snapshot.uri, offset)
    except NexoError as error:
        server.failures.tell_once(error)
        return None
    if answer is None:
        return None
    edits = app.documents.edits_after(answer.snapshot)
    place = None if edits is None else shift_span(answer.span, edits)
    markdown = server.client.hover_markdown
    return types.Hover(
        contents=types.MarkupContent(
            kind=types.MarkupKind.Markdown if markdown else types.MarkupKind.PlainText,
            value=render(answer, markdown=markdown),
        ),
        range=None
        if place is None
        else to_range(app.documents.get(snapshot.uri).lines, place, server.encoding),
    )


def render(answer: HoverAnswer, *, markdown: bool) -> str:
    """The hover's text: signature, doc, then the explanation or what is known of it."""
    parts = [fenced(answer.signature, answer.language_id) if markdown else answer.signature, answer.doc]
    if answer.explanation:
        parts.append(f"---\n\n{answer.explanation}" if markdown else answer.explanation)
    elif answer.pending:
        parts.append(f"*{PENDING}*" if markdown else PENDING)
    elif answer.note:
        parts.append(f"*{answer.note}*" if markdown else answer.note)
    return "\n\n".join(part for part in parts if part)

"""Code actions: the list is made at once, without the model; each action carries a command."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from lsprotocol import types

from nexo_lsp.pipeline.actions import ActionKind, Offer, offers
from nexo_lsp.server.capabilities import (
    ACTION_COMMAND,
    DISMISS_COMMAND,
    DISMISS_KIND,
    QUICKFIX_KIND,
    REWRITE_KIND,
)
from nexo_lsp.server.convert import range_of, to_diagnostic
from nexo_lsp.server.custom_messages import FindingArguments, TargetArguments
from nexo_lsp.text import shift_span

if TYPE_CHECKING:
    from nexo_lsp.documents import Snapshot
    from nexo_lsp.pipeline.findings import Finding
    from nexo_lsp.server.language_server import NexoServer

_SHOWN: Final = 60
"""How many characters of a finding's message a menu entry has room for."""


async def code_actions(
    server: NexoServer, params: types.CodeActionParams
) -> list[types.CodeAction | types.Command] | None:
    """`textDocument/codeAction`. Findings are matched by range: not every client sends its diagnostics."""
    await server.settings.ready()
    app = server.app
    asked = app.documents.find(params.text_document.uri)
    if asked is None:
        return None
    span = asked.lines.span(range_of(params.range), server.encoding)
    snapshot = await app.documents.parsed(params.text_document.uri)
    edits = app.documents.edits_after(asked)
    span = None if edits is None else shift_span(span, edits)
    if span is None or app.permitted(snapshot) is not None:
        return None
    findings = [finding for finding in app.reviews.findings(snapshot.uri) if finding.span.overlaps(span)]
    known = {finding.id: finding for finding in findings}
    actions = [_action(server, snapshot, offer, known) for offer in offers(snapshot, span, findings)]
    actions += [_dismissal(server, snapshot, finding) for finding in findings]
    wanted = [action for action in actions if _wanted(str(action.kind), params.context.only)]
    if server.client.action_literals:
        return list(wanted)
    return [action.command for action in wanted if action.command is not None]


def kind_of(kind: ActionKind) -> str:
    """The LSP kind of an action."""
    return QUICKFIX_KIND if kind is ActionKind.FIX else f"{REWRITE_KIND}.{kind.value}"


def _wanted(kind: str, only: Sequence[types.CodeActionKind | str] | None) -> bool:
    """Kinds are a hierarchy: `refactor` asks for `refactor.rewrite.nexo.tests` too."""
    if not only:
        return True
    words = [word.value if isinstance(word, types.CodeActionKind) else word for word in only]
    return any(not word or kind == word or kind.startswith(f"{word}.") for word in words)


def _action(
    server: NexoServer, snapshot: Snapshot, offer: Offer, findings: dict[str, Finding]
) -> types.CodeAction:
    arguments = TargetArguments(
        uri=snapshot.uri,
        version=snapshot.version,
        kind=offer.kind.value,
        title=offer.title,
        start=offer.span.start,
        end=offer.span.end,
        finding_id=offer.finding_id,
    )
    finding = findings.get(offer.finding_id or "")
    return types.CodeAction(
        title=offer.title,
        kind=kind_of(offer.kind),
        diagnostics=[to_diagnostic(snapshot.lines, finding, server.encoding)] if finding else None,
        command=types.Command(title=offer.title, command=ACTION_COMMAND, arguments=[server.plain(arguments)]),
    )


def _dismissal(server: NexoServer, snapshot: Snapshot, finding: Finding) -> types.CodeAction:
    message = finding.message if len(finding.message) <= _SHOWN else f"{finding.message[: _SHOWN - 1]}…"
    title = f"Dismiss: {message}"
    arguments = FindingArguments(uri=snapshot.uri, finding_id=finding.id)
    return types.CodeAction(
        title=title,
        kind=DISMISS_KIND,
        diagnostics=[to_diagnostic(snapshot.lines, finding, server.encoding)],
        command=types.Command(title=title, command=DISMISS_COMMAND, arguments=[server.plain(arguments)]),
    )

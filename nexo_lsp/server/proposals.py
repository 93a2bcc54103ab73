"""`nexo/proposal`: generated code shown by the client while it is made, applied when the user accepts it."""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import TYPE_CHECKING, Final

from nexo_lsp.errors import NexoError, UsageError
from nexo_lsp.server.apply import apply_proposal
from nexo_lsp.server.convert import to_range
from nexo_lsp.server.custom_messages import (
    PROPOSAL,
    AcceptResult,
    ProposalId,
    ProposalParams,
    TargetArguments,
)
from nexo_lsp.text import Span, shift_span

if TYPE_CHECKING:
    from nexo_lsp.pipeline.actions import Offer, Proposal
    from nexo_lsp.server.language_server import NexoServer

_INTERVAL_S: Final = 0.05
_KEPT: Final = 32
"""How many proposals wait for the user at the most; the oldest goes first."""


class Preview:
    """One proposal on its way to the client."""

    def __init__(self, server: NexoServer, identity: str, target: TargetArguments, offer: Offer) -> None:
        self._server = server
        self._id = identity
        self._uri = target.uri
        self._version = target.version
        self._span = offer.span
        self._title = offer.title
        self._text = ""
        self._last = 0.0

    def streamed(self, text: str) -> None:
        """The new code as far as it is made."""
        self._text = text
        now = time.monotonic()
        if now - self._last >= _INTERVAL_S:
            self._last = now
            self._send(self._span, done=False)

    def complete(self, proposal: Proposal) -> None:
        """The code is made and checked; it waits for the user."""
        # More tests may go into another open document than the one that they are for.
        self._uri, self._text, self._version = proposal.uri, proposal.text, proposal.version
        self._server.proposals.keep(self._id, proposal)
        self._send(proposal.span, done=True)

    def failed(self, error: BaseException) -> None:
        """There will be no code."""
        known = isinstance(error, NexoError)
        stopped = isinstance(error, asyncio.CancelledError)
        self._send(self._span, done=True, error=str(error) if known else "stopped" if stopped else "failed")

    def _send(self, span: Span, *, done: bool, error: str | None = None) -> None:
        documents = self._server.app.documents
        snapshot, edits = documents.find(self._uri), documents.edits_since(self._uri, self._version)
        place = None if edits is None else shift_span(span, edits)
        if snapshot is None or (place is None and not done):
            return
        params = ProposalParams(
            id=self._id,
            uri=self._uri,
            version=snapshot.version,
            range=to_range(snapshot.lines, place or Span(0, 0), self._server.encoding),
            title=self._title,
            text=self._text,
            done=done,
            error=error,
        )
        self._server.protocol.notify(PROPOSAL, params)


class Proposals:
    """The proposals that wait for the user's word."""

    def __init__(self, server: NexoServer) -> None:
        self._server = server
        self._numbers = itertools.count(1)
        self._waiting: dict[str, Proposal] = {}

    def preview(self, target: TargetArguments, offer: Offer) -> Preview:
        """A new proposal, of which nothing is made yet."""
        return Preview(self._server, f"proposal-{next(self._numbers)}", target, offer)

    def keep(self, identity: str, proposal: Proposal) -> None:
        """Keep a complete proposal until it is accepted or discarded."""
        self._waiting[identity] = proposal
        while len(self._waiting) > _KEPT:
            del self._waiting[next(iter(self._waiting))]

    def take(self, identity: str) -> Proposal:
        """Take a proposal out. Raises `UsageError` when there is none of that name."""
        proposal = self._waiting.pop(identity, None)
        if proposal is None:
            raise UsageError(f"There is no proposal {identity!r} any more")
        return proposal

    def closed(self, uri: str) -> None:
        """Its document was closed."""
        self._waiting = {key: value for key, value in self._waiting.items() if value.uri != uri}


async def accept(server: NexoServer, params: ProposalId) -> AcceptResult:
    """`nexo/proposal/accept`: apply it, re-anchored to what the document is now."""
    try:
        await apply_proposal(server, server.proposals.take(params.id))
    except UsageError:
        raise
    except NexoError as error:
        return AcceptResult(applied=False, reason=str(error))
    return AcceptResult(applied=True)


async def discard(server: NexoServer, params: ProposalId) -> None:
    """`nexo/proposal/discard`."""
    server.proposals.take(params.id)

"""Code actions: what is offered at a place, and the services that carry it out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from nexo_lsp.context.gather import is_understood, outline_of
from nexo_lsp.documents import Snapshot
from nexo_lsp.errors import StaleDocument, UsageError
from nexo_lsp.pipeline.findings import Finding
from nexo_lsp.pipeline.lines import comment_at, lines_around, whole_lines
from nexo_lsp.pipeline.step import Workbench
from nexo_lsp.syntax.outline import Symbol, SymbolKind
from nexo_lsp.text import Edit, Span, shift_span

_TITLE_LENGTH = 72


class ActionKind(StrEnum):
    """What an action does."""

    GENERATE = "generate"
    OPTIMIZE = "optimize"
    DOCUMENT = "document"
    TESTS = "tests"
    EXPLAIN = "explain"
    FIX = "fix"


@dataclass(frozen=True, slots=True)
class Offer:
    """An action that makes sense at some place."""

    kind: ActionKind
    title: str
    span: Span
    """The code that it is about: a definition, a comment, a selection."""
    finding_id: str | None = None


@dataclass(frozen=True, slots=True)
class ActionProgress:
    """How far an action is: tokens made, and the new code so far."""

    tokens: int
    text: str


Listener = Callable[[ActionProgress], None]


@dataclass(frozen=True, slots=True)
class NewFile:
    """A file to be made."""

    uri: str
    text: str


@dataclass(frozen=True, slots=True)
class Proposal:
    """An edit with what it replaces, checked and ready to be applied."""

    uri: str
    version: int
    title: str
    span: Span
    """What the action is about; the edits lie inside it or at its edges."""
    text: str
    """What stands at `span` afterwards, for a preview; of a new file all that it holds."""
    edits: tuple[Edit, ...] = ()
    """Minimal edits of `uri`, by offsets of `version`."""
    new_files: tuple[NewFile, ...] = ()


@dataclass(frozen=True, slots=True)
class Explanation:
    """Something to be read, in Markdown."""

    uri: str
    title: str
    markdown: str


@dataclass(frozen=True, slots=True)
class Task:
    """An action at the moment when it starts, its place found again in the present text."""

    snapshot: Snapshot
    offer: Offer
    span: Span
    symbol: Symbol | None
    """The definition that `span` is or lies in."""
    finding: Finding | None = None


Worker = Callable[[Task, Listener], Awaitable[Proposal | Explanation]]


def offers(snapshot: Snapshot, span: Span, findings: Sequence[Finding]) -> tuple[Offer, ...]:
    """What can be done at `span`; asks no model and takes well under a millisecond on usual files."""
    outline = outline_of(snapshot)
    symbol = outline.enclosing(span.start)
    function = outline.enclosing(span.start, SymbolKind.FUNCTION, SymbolKind.METHOD)
    out = [
        Offer(ActionKind.FIX, _short(f"Fix: {finding.message}"), finding.span, finding.id)
        for finding in findings
        if finding.span.overlaps(span)
    ]
    if snapshot.read_only:
        return _explain(snapshot, function or symbol, span)
    if function is not None and function.stub:
        out.append(Offer(ActionKind.GENERATE, f"Implement '{function.name}'", function.span))
    comment = outline.comment_at(span.start) if is_understood(snapshot) else comment_at(snapshot, span.start)
    if comment is not None and not _is_doc(outline.symbols, comment):
        out.append(Offer(ActionKind.GENERATE, "Write the code for this comment", comment))
    if function is not None and not function.stub and function.body is not None:
        out.append(Offer(ActionKind.OPTIMIZE, f"Optimise '{function.name}'", function.span))
    chosen = whole_lines(snapshot, span) if function is None and span.end > span.start else None
    if chosen is not None:
        out.append(Offer(ActionKind.OPTIMIZE, "Optimise the selected code", chosen))
    if symbol is not None:
        verb = "Rewrite the documentation of" if symbol.doc else "Document"
        out.append(Offer(ActionKind.DOCUMENT, f"{verb} '{symbol.name}'", symbol.span))
    if function is not None and not function.stub:
        out.append(Offer(ActionKind.TESTS, f"Write tests for '{function.name}'", function.span))
    return (*out, *_explain(snapshot, function or symbol, span))


def _explain(snapshot: Snapshot, symbol: Symbol | None, span: Span) -> tuple[Offer, ...]:
    if span.end > span.start and (symbol is None or span != symbol.span):
        return (Offer(ActionKind.EXPLAIN, "Explain the selected code", span),)
    if symbol is not None:
        return (Offer(ActionKind.EXPLAIN, f"Explain '{symbol.name}'", symbol.span),)
    lines = None if is_understood(snapshot) else lines_around(snapshot, span)
    return () if lines is None else (Offer(ActionKind.EXPLAIN, "Explain these lines", lines),)


def _is_doc(symbols: Sequence[Symbol], comment: Span) -> bool:
    return any(symbol.doc_span is not None and symbol.doc_span.overlaps(comment) for symbol in symbols)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _TITLE_LENGTH else text[: _TITLE_LENGTH - 1].rstrip() + "…"


class ActionService:
    """Carries actions out. It writes nothing itself: what comes out is a proposal."""

    def __init__(
        self,
        bench: Workbench,
        workers: dict[ActionKind, Worker],
        findings: Callable[[str], tuple[Finding, ...]],
    ) -> None:
        self._bench = bench
        self._workers = workers
        self._findings = findings

    async def run(self, uri: str, version: int, offer: Offer, progress: Listener) -> Proposal | Explanation:
        """Do what `offer`, whose span refers to `version`, says; cancelling ends the engine's work.

        Raises `StaleDocument` if the code at the place has changed since, and the kinds of `NexoError`.
        """
        # Before the first wait: the edits since `version` are those up to this moment.
        edits = self._bench.documents.edits_since(uri, version)
        span = None if edits is None else shift_span(offer.span, edits)
        held = self._bench.documents.get(uri)
        if span is None:
            raise StaleDocument("The code has changed meanwhile; ask for the action again.")
        await self._bench.refresh(*self._bench.documents.all())
        snapshot = await self._bench.documents.parsed(uri)
        edits = self._bench.documents.edits_after(held)
        span = None if edits is None else shift_span(span, edits)
        if span is None:
            raise StaleDocument("The code has changed meanwhile; ask for the action again.")
        self._bench.require(snapshot)
        finding = next((item for item in self._findings(uri) if item.id == offer.finding_id), None)
        if offer.kind is ActionKind.FIX and finding is None:
            raise UsageError("This finding is gone: its code was changed or it was dismissed.")
        symbol = _symbol_at(snapshot, span)
        return await self._workers[offer.kind](Task(snapshot, offer, span, symbol, finding), progress)

    def settle(self, proposal: Proposal) -> Proposal:
        """The proposal as it must be applied to the document as it is now.

        Raises `StaleDocument` if the code that it is about was touched.
        """
        current = self._bench.documents.get(proposal.uri)
        edits = self._bench.documents.edits_since(proposal.uri, proposal.version)
        span = None if edits is None else shift_span(proposal.span, edits)
        if span is None:
            raise StaleDocument(
                "The code was changed while the answer was being made, so nothing was applied. Ask again."
            )
        by = span.start - proposal.span.start
        moved = tuple(Edit(Span(e.span.start + by, e.span.end + by), e.text) for e in proposal.edits)
        return replace(proposal, version=current.version, span=span, edits=moved)


def _symbol_at(snapshot: Snapshot, span: Span) -> Symbol | None:
    outline = outline_of(snapshot)
    exact = next((symbol for symbol in outline.symbols if symbol.span == span), None)
    return exact or outline.enclosing(span.start, SymbolKind.FUNCTION, SymbolKind.METHOD)

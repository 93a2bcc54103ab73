"""Collecting what helps to understand one place in the code."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from nexo_lsp.context.budget import Part, choose, estimate_tokens, first_lines, last_lines
from nexo_lsp.context.index import DefinitionIndex
from nexo_lsp.documents import Snapshot
from nexo_lsp.syntax.outline import Outline, Symbol, SymbolKind
from nexo_lsp.text import Span

_EMPTY = Outline()
_CONSTRUCTORS = frozenset({"__init__", "constructor", "initialize", "__construct", "init"})
_MOST_CONSTRUCTOR = 600


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What is known about the code around a place, each part ready to be shown (and possibly empty)."""

    imports: str
    enclosing: str
    """The heads of the classes around the place with the signatures of their other members; of a language
    without a grammar the lines before and after the place."""
    related: str
    """Signatures, with the first line of their docs, of what the place uses and others define."""

    def text(self) -> str:
        """All parts, separated by blank lines."""
        return "\n\n".join(part for part in (self.imports, self.enclosing, self.related) if part)


class Gatherer:
    """Collects surroundings from the open documents."""

    def __init__(self) -> None:
        self._index = DefinitionIndex()

    def surroundings(
        self, snapshot: Snapshot, span: Span, others: Sequence[Snapshot], budget: int
    ) -> Surroundings:
        """What helps to understand `span`, in at most `budget` tokens.

        `others` are other open documents that may be shown. What is used most often inside `span` is
        thought the most useful, then the class around it, then the imports.
        """
        if not is_understood(snapshot):
            return Surroundings("", _lines_around(snapshot, span, budget), "")
        outline = outline_of(snapshot)
        related = self._related(snapshot, outline, span, others)
        enclosing = _enclosing(snapshot, outline, span)
        imports = [
            Part(snapshot.text[s.start : s.end], _import_use(snapshot, s, span)) for s in outline.imports
        ]
        chosen = choose([*imports, *enclosing, *related], budget)
        kept = {id(part) for part in chosen}

        def join(parts: Sequence[Part]) -> str:
            return "\n".join(part.text for part in parts if id(part) in kept)

        return Surroundings(join(imports), join(enclosing), join(related))

    def _related(
        self, snapshot: Snapshot, outline: Outline, span: Span, others: Sequence[Snapshot]
    ) -> list[Part]:
        uses: dict[str, int] = {}
        for call in outline.calls_in(span):
            uses[call.name] = uses.get(call.name, 0) + 1
        parts: list[Part] = []
        for name, count in uses.items():
            for found in self._index.find(name, (snapshot, *others))[:2]:
                inside = found.snapshot is snapshot and span.overlaps(found.symbol.span)
                if not inside:
                    parts.append(Part(head_of(found.symbol), 10 + count))
        return parts


def outline_of(snapshot: Snapshot) -> Outline:
    """The document's outline; an empty one for languages without a grammar."""
    return snapshot.tree.outline() if snapshot.tree is not None else _EMPTY


def is_understood(snapshot: Snapshot) -> bool:
    """Whether the document's outline is known; without it everything goes by lines."""
    language = snapshot.language
    return language is not None and bool(language.query) and snapshot.tree is not None


def head_of(symbol: Symbol) -> str:
    """A symbol's signature, with the first line of its docs behind it."""
    doc = (symbol.doc or "").strip().split("\n", 1)[0]
    signature = textwrap.dedent(symbol.signature)
    return f"{signature}  # {doc}" if doc else signature


def around(snapshot: Snapshot, offset: int, before: int, after: int) -> tuple[str, str]:
    """The text before and after `offset`, cut to whole lines within so many tokens each."""
    return last_lines(snapshot.text[:offset], before), first_lines(snapshot.text[offset:], after)


def _lines_around(snapshot: Snapshot, span: Span, budget: int) -> str:
    """The lines before and after `span`; what comes before says more."""
    lines = snapshot.lines
    before = snapshot.text[: lines.start_of(lines.line_of(span.start))].rstrip()
    after = snapshot.text[lines.end_of(lines.line_of(span.end)) :].strip("\r\n")
    parts = (last_lines(before, budget * 2 // 3), first_lines(after, budget // 3))
    kept = [part for part in parts if part.strip() and estimate_tokens(part) <= budget]
    return "\n...\n".join(kept).replace("\r\n", "\n").replace("\r", "\n")


def _enclosing(snapshot: Snapshot, outline: Outline, span: Span) -> list[Part]:
    owner = outline.enclosing(span.start, SymbolKind.CLASS)
    if owner is None or owner.span == span:
        return []
    index = outline.symbols.index(owner)
    parts = [Part(textwrap.dedent(owner.signature), 30)]
    for symbol in outline.symbols:
        if symbol.parent == index and not symbol.span.overlaps(span):
            parts.append(Part(textwrap.indent(_member(snapshot, symbol), "    "), 8))
    return parts


def _member(snapshot: Snapshot, symbol: Symbol) -> str:
    """A member's signature; a short constructor whole, because it says what an object consists of."""
    start, end = symbol.span
    if symbol.name in _CONSTRUCTORS and end - start <= _MOST_CONSTRUCTOR:
        line_start = snapshot.lines.start_of(snapshot.lines.line_of(start))
        return textwrap.dedent(snapshot.text[line_start:end])
    return textwrap.dedent(symbol.signature)


def _import_use(snapshot: Snapshot, statement: Span, span: Span) -> float:
    """An import is more useful where one of its words is used inside `span`."""
    code = snapshot.text[span.start : span.end]
    words = snapshot.text[statement.start : statement.end].replace(",", " ").replace(".", " ").split()
    return 9.0 if any(len(word) > 1 and word in code for word in words if word.isidentifier()) else 2.0

"""What the project knows about the code of one file: plain values, without the parser behind them.

All offsets are code points from the start of the text.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from enum import StrEnum

from nexo_lsp.text import Span


class SymbolKind(StrEnum):
    """What a symbol is."""

    FUNCTION = "function"
    METHOD = "method"
    CLASS = "class"
    """Classes, structs, enums, interfaces, traits, impls, modules: whatever holds members."""


class CodeKind(StrEnum):
    """What stands at a place."""

    CODE = "code"
    COMMENT = "comment"
    STRING = "string"


@dataclass(frozen=True, slots=True)
class Symbol:
    """A definition."""

    kind: SymbolKind
    name: str
    span: Span
    """The whole definition, with its decorators or annotations, without a doc comment above it."""
    name_span: Span
    signature: str
    """The head without the body, as written, right-stripped, without decorators: `def f(a: int) -> str:`."""
    body: Span | None
    """The body's span: statements for Python and Ruby, from `{` to `}` for brace languages; None if none."""
    doc: str | None
    """The doc comment's or docstring's text with its markers taken off."""
    doc_span: Span | None
    """Where the doc comment (above) or docstring (inside) is written, markers included."""
    parent: int | None
    """The index in `Outline.symbols` of the symbol that holds it."""
    stub: bool
    """Whether the body does nothing yet: `pass`, `...`, `raise NotImplementedError`, `todo!()`, an empty
    body, or nothing but a TODO comment (a docstring beside it does not matter)."""


@dataclass(frozen=True, slots=True)
class Reference:
    """A name that is called or imported, and where."""

    name: str
    span: Span


@dataclass(frozen=True, slots=True)
class Outline:
    """The definitions, imports, calls and comments of one text, each in the order of the text."""

    symbols: tuple[Symbol, ...] = ()
    imports: tuple[Span, ...] = ()
    """Whole import statements."""
    calls: tuple[Reference, ...] = ()
    comments: tuple[Span, ...] = ()
    """Comments as the grammar has them; line comments that follow each other are one span each."""

    def enclosing(self, offset: int, *kinds: SymbolKind) -> Symbol | None:
        """The innermost symbol around `offset`, of one of `kinds` if any are given."""
        best: Symbol | None = None
        for symbol in self.symbols:
            if symbol.span.start > offset:
                break
            if symbol.span.contains(offset) and (not kinds or symbol.kind in kinds):
                best = symbol
        return best

    def parent_of(self, symbol: Symbol) -> Symbol | None:
        """The symbol that holds `symbol`."""
        return None if symbol.parent is None else self.symbols[symbol.parent]

    def functions(self) -> tuple[Symbol, ...]:
        """Functions and methods that are not inside another function: the units of review."""
        callables = (SymbolKind.FUNCTION, SymbolKind.METHOD)
        out: list[Symbol] = []
        for symbol in self.symbols:
            parent = self.parent_of(symbol)
            while parent is not None and parent.kind is SymbolKind.CLASS:
                parent = self.parent_of(parent)
            if symbol.kind in callables and parent is None:
                out.append(symbol)
        return tuple(out)

    def calls_in(self, span: Span) -> tuple[Reference, ...]:
        """The calls inside `span`."""
        first = bisect_right(self.calls, span.start - 1, key=lambda call: call.span.start)
        end = bisect_left(self.calls, span.end, lo=first, key=lambda call: call.span.start)
        return self.calls[first : max(first, end)]

    def comment_at(self, offset: int) -> Span | None:
        """The comment that holds `offset`."""
        return next((span for span in self.comments if span.contains(offset)), None)

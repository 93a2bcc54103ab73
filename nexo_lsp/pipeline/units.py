"""What is reviewed at a time: a function, or a stretch of lines where functions are not known."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

from nexo_lsp.context.budget import estimate_tokens
from nexo_lsp.context.gather import is_understood, outline_of
from nexo_lsp.documents import Snapshot
from nexo_lsp.text import Span

# A unit of more tokens is cut: a small model loses the thread, and the prompt's fixed part needs room too.
_UNIT_TOKENS = 1200
_LONGEST_TOKENS = 2 * _UNIT_TOKENS
# LSP language ids (and Vim's file types) of prose and data, where a review for defects has nothing to find.
_NOT_CODE = frozenset({
    "asciidoc", "bibtex", "csv", "diff", "git-commit", "git-rebase", "gitcommit", "gitignore",
    "gitrebase", "help", "html", "ignore", "ini", "json", "json5", "jsonc", "jsonl", "latex", "log",
    "mail", "markdown", "plaintext", "properties", "restructuredtext", "rst", "svg", "tex", "text",
    "toml", "tsv", "xml", "yaml",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Unit:
    """A piece of a document that is reviewed by itself."""

    symbol: str
    span: Span
    code: str
    """The text at `span`, dedented, with line feeds: what the model sees and what answers are keyed by."""


def review_units(snapshot: Snapshot) -> tuple[Unit, ...]:
    """The document's functions and methods with something in them; without a grammar, stretches of lines.

    Prose and data have none.
    """
    if snapshot.language_id in _NOT_CODE:
        return ()
    if not is_understood(snapshot):
        return _stretches(snapshot, Span(0, len(snapshot.text)), "")
    units: list[Unit] = []
    for symbol in outline_of(snapshot).functions():
        if symbol.body is not None and not symbol.stub:
            units += _stretches(snapshot, symbol.span, symbol.name)
    return tuple(units)


def dedented(snapshot: Snapshot, span: Span) -> str:
    """The text at `span` as it would stand at the left margin, with line feeds as line ends."""
    start = snapshot.lines.start_of(snapshot.lines.line_of(span.start))
    lead = snapshot.text[start : span.start]
    head = lead if not lead.strip() else ""
    text = head + snapshot.text[span.start : span.end]
    return textwrap.dedent(text.replace("\r\n", "\n").replace("\r", "\n")).strip("\n")


def _stretches(snapshot: Snapshot, span: Span, symbol: str) -> tuple[Unit, ...]:
    """`span` as one unit, or as several of whole lines if it is too long for one.

    Lines that are too long for any are left out.
    """
    whole = dedented(snapshot, span)
    if not whole.strip():
        return ()
    if estimate_tokens(whole) <= _UNIT_TOKENS:
        return (Unit(symbol, span, whole),)
    units: list[Unit] = []
    lines = snapshot.lines
    start, cost = span.start, 0
    for line in range(lines.line_of(span.start), lines.line_of(span.end) + 1):
        cost += estimate_tokens(lines.line(line))
        end = min(lines.start_of(line + 1), span.end)
        if cost > _UNIT_TOKENS or end == span.end:
            piece = Span(start, end)
            code = dedented(snapshot, piece)
            # A single line of this length (minified code, data) can only be left out.
            if code.strip() and estimate_tokens(code) <= _LONGEST_TOKENS:
                units.append(Unit(symbol, piece, code))
            start, cost = end, 0
    return tuple(units)

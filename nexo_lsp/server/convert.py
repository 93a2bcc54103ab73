"""LSP's types to ours and back: the one place where columns are counted in the client's units."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from lsprotocol import types

from nexo_lsp.pipeline.findings import Finding
from nexo_lsp.settings import PREFIX, Severity
from nexo_lsp.text import Change, Edit, LineIndex, Position, PositionEncoding, Range, Span

_SEVERITIES: Final[dict[Severity, types.DiagnosticSeverity]] = {
    "error": types.DiagnosticSeverity.Error,
    "warning": types.DiagnosticSeverity.Warning,
    "information": types.DiagnosticSeverity.Information,
    "hint": types.DiagnosticSeverity.Hint,
}


def position_of(position: types.Position) -> Position:
    """A wire position as ours."""
    return Position(position.line, position.character)


def range_of(range_: types.Range) -> Range:
    """A wire range as ours."""
    return Range(position_of(range_.start), position_of(range_.end))


def to_range(lines: LineIndex, span: Span, encoding: PositionEncoding) -> types.Range:
    """A span of a text as a wire range."""
    (line, character), (end_line, end_character) = lines.range(span, encoding)
    return types.Range(types.Position(line, character), types.Position(end_line, end_character))


def changes_of(events: Iterable[types.TextDocumentContentChangeEvent]) -> tuple[Change, ...]:
    """The content changes of one `didChange`, in their order."""
    return tuple(
        Change(
            range_of(event.range) if isinstance(event, types.TextDocumentContentChangePartial) else None,
            event.text,
        )
        for event in events
    )


def to_text_edits(
    lines: LineIndex, edits: Iterable[Edit], encoding: PositionEncoding
) -> list[types.TextEdit]:
    """Edits of one text as wire edits, which all refer to that text."""
    return [types.TextEdit(to_range(lines, edit.span, encoding), edit.text) for edit in edits]


def to_diagnostic(lines: LineIndex, finding: Finding, encoding: PositionEncoding) -> types.Diagnostic:
    """A finding as editors show it."""
    message = finding.message
    if finding.suggestion:
        message = f"{message}\nSuggestion: {finding.suggestion}"
    return types.Diagnostic(
        range=to_range(lines, finding.span, encoding),
        severity=_SEVERITIES[finding.severity],
        code=finding.category,
        source=PREFIX,
        message=message,
        data={"id": finding.id, "suggestion": finding.suggestion},
    )


def fenced(code: str, language_id: str) -> str:
    """A Markdown code block whose fence is longer than any run of backticks inside."""
    longest = run = 0
    for char in code:
        run = run + 1 if char == "`" else 0
        longest = max(longest, run)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language_id}\n{code}\n{fence}"

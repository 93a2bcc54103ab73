"""Findings of a review, and how they follow the code while it is edited."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from nexo_lsp.documents import Snapshot
from nexo_lsp.memory.answers import answer_key
from nexo_lsp.settings import Severity
from nexo_lsp.text import Edit, Span, shift_span

SEVERITIES: tuple[Severity, ...] = ("hint", "information", "warning", "error")
"""From the mildest to the gravest."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One review remark on one quoted piece of code."""

    id: str
    """A hash of the quoted code, its category and its symbol: the same remark has the same id tomorrow."""
    span: Span
    quote: str
    category: str
    severity: Severity
    message: str
    suggestion: str | None
    symbol: str
    """The function that was reviewed; empty for code outside of functions."""
    whole_line: bool = False
    """Whether the quote is all that its lines hold, apart from indentation."""


def finding_id(quote: str, category: str, symbol: str) -> str:
    """The stable identity of a finding."""
    return answer_key("finding", " ".join(quote.split()), category, symbol)[:16]


def capped(severity: str, highest: Severity) -> Severity:
    """`severity`, or `highest` if it is graver than that; an unknown word counts as information."""
    rank = next((index for index, word in enumerate(SEVERITIES) if word == severity), 1)
    return SEVERITIES[min(rank, SEVERITIES.index(highest))]


class Overlaps:
    """Spans that do not overlap each other, in their order, to be searched quickly."""

    def __init__(self, spans: Sequence[Span]) -> None:
        self._spans = spans

    def with_span(self, span: Span) -> bool:
        """Whether `span` overlaps one of them."""
        index = bisect_right(self._spans, span.start, key=lambda one: one.start)
        return any(one.overlaps(span) for one in self._spans[max(0, index - 1) : index + 1])


def located(finding: Finding, text: str, within: Span) -> Finding | None:
    """The finding at its quote inside `within`: at lines that hold nothing else, if there are such."""
    first: Span | None = None
    at = text.find(finding.quote, within.start, within.end)
    while at >= 0:
        span = Span(at, at + len(finding.quote))
        if _is_whole(text, span):
            return replace(finding, span=span, whole_line=True)
        first = first or span
        at = text.find(finding.quote, at + 1, within.end)
    return None if first is None else replace(finding, span=first)


def moved(findings: Iterable[Finding], edits: Iterable[Edit], snapshot: Snapshot) -> tuple[Finding, ...]:
    """The findings after `edits`: those below have moved, those whose quoted code was touched are gone.

    What was written before or behind the quote on its line changed the code too.
    """
    edits = tuple(edits)
    text = snapshot.text
    out: list[Finding] = []
    for finding in findings:
        span = shift_span(finding.span, edits)
        if span is None or text[span.start : span.end] != finding.quote:
            continue
        if finding.whole_line and not _is_whole(text, span):
            continue
        out.append(replace(finding, span=span))
    return tuple(out)


def _is_whole(text: str, span: Span) -> bool:
    start, end = span
    while start > 0 and text[start - 1] in " \t\f":
        start -= 1
    while end < len(text) and text[end] in " \t\f":
        end += 1
    return (start == 0 or text[start - 1] in "\r\n") and (end == len(text) or text[end] in "\r\n")

"""Findings of a review, and how they follow the code while it is edited."""

from __future__ import annotations

from collections.abc import Iterable
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


def finding_id(quote: str, category: str, symbol: str) -> str:
    """The stable identity of a finding."""
    return answer_key("finding", " ".join(quote.split()), category, symbol)[:16]


def capped(severity: str, highest: Severity) -> Severity:
    """`severity`, or `highest` if it is graver than that; an unknown word counts as information."""
    rank = next((index for index, word in enumerate(SEVERITIES) if word == severity), 1)
    return SEVERITIES[min(rank, SEVERITIES.index(highest))]


def moved(findings: Iterable[Finding], edits: Iterable[Edit], snapshot: Snapshot) -> tuple[Finding, ...]:
    """The findings after `edits`: those below have moved, those whose quoted code was touched are gone."""
    edits = tuple(edits)
    out: list[Finding] = []
    for finding in findings:
        span = shift_span(finding.span, edits)
        if span is not None and snapshot.text[span.start : span.end] == finding.quote:
            out.append(replace(finding, span=span))
    return tuple(out)

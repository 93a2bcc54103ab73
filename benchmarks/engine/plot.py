"""The results as a picture: a bar for each competitor's time beside ours. SVG, written by hand."""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

from benchmarks.engine.competitors import OURS
from benchmarks.engine.report import Row, Section

_WIDTH, _LABEL, _NUMBER = 860, 250, 130
_BAR, _GAP, _HEAD = 16, 6, 34
_OURS, _BEST, _OTHER = "#2563eb", "#d97706", "#a8a29e"
_STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#44403c}.t{font-weight:600}.n{font-size:12px}"
    "@media(prefers-color-scheme:dark){text{fill:#d6d3d1}}"
)


def svg(sections: Sequence[Section], caption: str) -> str:
    """Each workload has a scale of its own, from nothing to the slowest."""
    parts: list[str] = []
    top = 30
    for section in sections:
        rows = [row for row in section.rows if row.figure is not None]
        if not rows:
            continue
        parts.append(
            f'<text class="t" x="10" y="{top + 16}">{escape(f"{section.id}: {section.title}")}</text>'
        )
        top += _HEAD
        most = max(row.figure or 0.0 for row in rows) or 1.0
        for row in rows:
            parts.append(_bar(row, top, most, section.figure_name))
            top += _BAR + _GAP
        top += _GAP
    height = top + 10
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" '
        f'height="{height}"><style>{_STYLE}</style>'
        f'<text class="n" x="10" y="18">{escape(caption)}</text>{"".join(parts)}</svg>\n'
    )


def _bar(row: Row, top: int, most: float, unit: str) -> str:
    figure = row.figure or 0.0
    width = max(1.0, figure / most * (_WIDTH - _LABEL - _NUMBER - 20))
    colour = _OURS if row.competitor == OURS else _BEST if row.best else _OTHER
    ratio = "" if row.ratio is None else f"  ({row.ratio:.2f})"
    base = top + _BAR - 4
    short = unit.rpartition(" ")[2]
    return (
        f'<text x="{_LABEL - 8}" y="{base}" text-anchor="end">{escape(row.competitor)}</text>'
        f'<rect x="{_LABEL}" y="{top}" width="{width:.1f}" height="{_BAR}" rx="2" fill="{colour}"/>'
        f'<text class="n" x="{_LABEL + width + 6:.1f}" y="{base}">{figure:.3g} {short}{ratio}</text>'
    )

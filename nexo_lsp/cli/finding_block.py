"""How one finding looks on a terminal: a headline, the place, the code with carets, the suggestion."""

from __future__ import annotations

from collections.abc import Iterator

from rich.cells import cell_len
from rich.text import Text

from nexo_lsp.cli.terminal import visible
from nexo_lsp.pipeline.findings import Finding
from nexo_lsp.settings import Severity
from nexo_lsp.text import LineIndex

STYLES: dict[Severity, str] = {
    "error": "bold red",
    "warning": "bold yellow",
    "information": "bold blue",
    "hint": "bold cyan",
}

_GUTTER = "blue"
_MAX_LINES = 6
_TAB = "    "
# Characters of one line that are looked at: generated files have lines of megabytes.
_LONGEST = 2_000


def finding_block(finding: Finding, lines: LineIndex, path: str, width: int | None) -> Iterator[Text]:
    """The lines of one finding. With `width` (cells) long source lines are cut around the quote."""
    style = STYLES[finding.severity]
    headline = Text()
    headline.append(finding.severity, style)
    headline.append(f"[{visible(finding.category)}]", style)
    headline.append(f": {_one_line(finding.message)}", "bold")
    yield headline
    first = lines.line_of(finding.span.start)
    last = lines.line_of(max(finding.span.start, finding.span.end - 1))
    shown = range(first, min(last, first + _MAX_LINES - 1) + 1)
    gutter = len(str(shown[-1] + 1))
    column = finding.span.start - lines.start_of(first) + 1
    place = Text()
    place.append(" " * gutter + "--> ", _GUTTER)
    place.append(f"{visible(path)}:{first + 1}:{column}")
    if finding.symbol:
        place.append(f" in {visible(finding.symbol)}", "dim")
    yield place
    room = None if width is None else max(20, width - gutter - 3)
    yield _margin("", gutter)
    for line in shown:
        source, caret, length = _marked(finding, lines, line, room)
        yield _margin(str(line + 1), gutter).append(" " + source)
        yield _margin("", gutter).append(" " * (caret + 1)).append("^" * length, style)
    if last > shown[-1]:
        yield _margin("", gutter).append(f" … {last - shown[-1]} more lines", "dim")
    if finding.suggestion:
        help_ = Text(" " * gutter + " ")
        help_.append("= ", _GUTTER)
        help_.append("help: ", "bold green")
        help_.append(_one_line(finding.suggestion))
        yield help_
    yield Text()


def _marked(finding: Finding, lines: LineIndex, line: int, room: int | None) -> tuple[str, int, int]:
    """A source line as it is printed, and the cells at which its carets start and how many there are."""
    start_of, end_of = lines.start_of(line), lines.end_of(line)
    content = lines.text[start_of : min(end_of, start_of + _LONGEST)]
    # The indentation is nothing to point at.
    start = min(max(finding.span.start - start_of, len(content) - len(content.lstrip())), len(content))
    end = min(max(finding.span.end - start_of, start), len(content))
    before, marked, after = (
        _printable(part) for part in (content[:start], content[start:end], content[end:])
    )
    if room is not None and cell_len(before + marked + after) > room:
        if cell_len(before) > room // 3:
            before = "…" + _last_cells(before, room // 3 - 1)
        whole = before + marked + after
        if cell_len(whole) > room:
            whole = _first_cells(whole, room - 1) + "…"
        length = min(cell_len(marked), room - cell_len(before) - 1)
        return whole, cell_len(before), max(1, length)
    return before + marked + after, cell_len(before), max(1, cell_len(marked))


def _printable(text: str) -> str:
    return visible(text.replace("\t", _TAB))


def _one_line(text: str) -> str:
    return visible(" ".join(text.split()))


def _margin(number: str, gutter: int) -> Text:
    return Text().append(f"{number:>{gutter}} |", _GUTTER)


def _first_cells(text: str, cells: int) -> str:
    cut = len(text)
    while cell_len(text[:cut]) > cells:
        cut -= max(1, (cell_len(text[:cut]) - cells) // 2)
    return text[:cut]


def _last_cells(text: str, cells: int) -> str:
    cut = 0
    while cell_len(text[cut:]) > cells:
        cut += max(1, (cell_len(text[cut:]) - cells) // 2)
    return text[cut:]

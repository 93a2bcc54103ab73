"""Checks of generated code, and edits that touch only what changed."""

from __future__ import annotations

import difflib

from nexo_lsp.documents import Snapshot
from nexo_lsp.errors import EditRefused
from nexo_lsp.offload import Offload
from nexo_lsp.syntax.parsing import parse
from nexo_lsp.text import Edit, Span, apply_edits


async def check_syntax(snapshot: Snapshot, edits: tuple[Edit, ...], offload: Offload) -> None:
    """Raise `EditRefused` if `edits` would give the document more syntax errors than it has.

    Documents without a grammar pass: there is nothing to compare with. Large ones are parsed off the loop.
    """
    language = snapshot.language
    if language is None or snapshot.tree is None:
        return
    text = apply_edits(snapshot.text, edits)
    if snapshot.is_large:
        after = await offload(lambda: parse(language, text, in_thread=True))
    else:
        after = parse(language, text)
    if after is not None and after.error_count() > snapshot.tree.error_count():
        raise EditRefused(
            "The generated code does not parse, so nothing was changed. Try again, or try a larger model."
        )


def minimal_edits(old: str, new: str, start: int) -> tuple[Edit, ...]:
    """Edits of whole lines that turn `old`, which stands at offset `start`, into `new`.

    Line ends of `new` are made those of `old` first, and lines that differ in white space at their end only
    count as equal, so that an untouched line stays untouched to the byte.
    """
    new = with_line_ends(new, line_end(old))
    old_lines, new_lines = _lines(old), _lines(new)
    starts = [start]
    for line in old_lines:
        starts.append(starts[-1] + len(line))
    matcher = difflib.SequenceMatcher(a=_compared(old_lines), b=_compared(new_lines), autojunk=False)
    edits: list[Edit] = []
    for tag, old_from, old_to, new_from, new_to in matcher.get_opcodes():
        if tag != "equal":
            edits.append(Edit(Span(starts[old_from], starts[old_to]), "".join(new_lines[new_from:new_to])))
    return tuple(edits)


def _compared(lines: list[str]) -> list[tuple[str, bool]]:
    # A last line without an end is another line than one that something may follow.
    return [(line.rstrip(), line.endswith(("\n", "\r"))) for line in lines]


def line_end(text: str) -> str:
    """The line end that `text` uses most; a line feed where it has none."""
    crlf = text.count("\r\n")
    counts = {"\r\n": crlf, "\n": text.count("\n") - crlf, "\r": text.count("\r") - crlf}
    best = max(counts, key=lambda end: counts[end])
    return best if counts[best] else "\n"


def with_line_ends(text: str, end: str) -> str:
    """`text` with every line end made `end`."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text if end == "\n" else text.replace("\n", end)


def _lines(text: str) -> list[str]:
    """Lines with their ends; only the three line ends of LSP count."""
    lines: list[str] = []
    at = 0
    while at < len(text):
        ends = [text.find(mark, at) for mark in ("\n", "\r")]
        found = min((end for end in ends if end >= 0), default=len(text) - 1)
        if text[found : found + 2] == "\r\n":
            found += 1
        lines.append(text[at : found + 1])
        at = found + 1
    return lines

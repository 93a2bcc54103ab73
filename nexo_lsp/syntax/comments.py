"""Comments and documentation as text: what belongs together, and what it says without its markers."""

from __future__ import annotations

import inspect
import re
import textwrap
from bisect import bisect_right
from collections.abc import Iterable, Sequence

from nexo_lsp.text import Span

_LINE_MARKER = re.compile(r"(?://[/!]?<?|#(?!!)#*|---?(?!\[=*\[)|%)")
_BLOCK = re.compile(r"(?:/\*[*!]?<?|--\[=*\[)(.*?)(?:\*/|\]=*\]|\Z)", re.DOTALL)
_RUBY_BLOCK = re.compile(r"=begin[^\n]*\n(.*?)^=end", re.DOTALL | re.MULTILINE)
_STAR = re.compile(r"^[ \t]*\*(?!\*)[ \t]?", re.MULTILINE)
_NEXT_LINE = re.compile(r"[ \t]*(?:\r\n|\n|\r)?[ \t]*")
_DOCSTRING = re.compile(r"(?i)^[rbfu]*(\"{3}|'{3}|\"|')(.*?)\1?$", re.DOTALL)
_TODO = re.compile(r"\b(?:TODO|FIXME|XXX|implement|stub|unimplemented|not implemented)\b", re.IGNORECASE)


def merge_comments(text: str, spans: Iterable[Span]) -> tuple[Span, ...]:
    """The comments in order, with line comments on lines that follow each other joined into one span."""
    merged: list[Span] = []
    open_run = False  # whether the last span may still grow
    for span in sorted(spans):
        end = span.start + len(text[span.start : span.end].rstrip("\r\n"))
        alone = stands_alone(text, span.start) and _is_line_comment(text, span.start)
        if open_run and alone and _NEXT_LINE.fullmatch(text, merged[-1].end, span.start):
            merged[-1] = Span(merged[-1].start, end)
        elif not merged or span.start >= merged[-1].end:
            merged.append(Span(span.start, end))
        open_run = alone
    return tuple(merged)


def comment_above(text: str, comments: Sequence[Span], starts: Sequence[int], offset: int) -> Span | None:
    """The comment that ends on the line above what starts at `offset` (or on its line, before it)."""
    index = bisect_right(starts, offset - 1) - 1
    if index < 0:
        return None
    span = comments[index]
    if span.end > offset or not _NEXT_LINE.fullmatch(text, span.end, offset):
        return None
    return span if stands_alone(text, span.start) else None


def stands_alone(text: str, start: int) -> bool:
    """Whether nothing but blanks comes before `start` on its line."""
    at = start
    while at and text[at - 1] in " \t\f":
        at -= 1
    return at == 0 or text[at - 1] in "\r\n"


def comment_text(comment: str) -> str:
    """What a comment says, without its markers and common indentation."""
    block = _BLOCK.fullmatch(comment.strip()) or _RUBY_BLOCK.fullmatch(comment.strip())
    if block is not None:
        return inspect.cleandoc(_STAR.sub("", block.group(1))).strip()
    lines = [_LINE_MARKER.sub("", line.strip(), count=1) for line in comment.splitlines()]
    return textwrap.dedent("\n".join(line.rstrip() for line in lines)).strip()


def docstring_text(literal: str) -> str:
    """What a Python docstring says, without its quotes and indentation."""
    match = _DOCSTRING.match(literal)
    return inspect.cleandoc(match.group(2)).strip() if match else literal


def says_todo(comment: str) -> bool:
    """Whether a comment says that something is still to be written."""
    return _TODO.search(comment) is not None


def _is_line_comment(text: str, start: int) -> bool:
    if text.startswith("#!", start):
        return False
    return text.startswith(("//", "#", "--"), start) and not text.startswith(("--[[", "--[="), start)

"""Positions, spans and edits: the words in which the project talks about places in a text.

Inside the project a place is an *offset*: a count of code points from the start of the text (an index into
the Python string). Lines and wire columns (UTF-8, UTF-16 or UTF-32 code units, as the client negotiated)
exist at the edges only; `LineIndex` translates.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

# LSP knows these three line ends and no others (form feed, U+2028 and the like do not end a line).
_LINE_END = re.compile(r"\r\n|\n|\r")


class PositionEncoding(StrEnum):
    """The unit in which a client counts columns (LSP `PositionEncodingKind`)."""

    UTF8 = "utf-8"
    UTF16 = "utf-16"
    UTF32 = "utf-32"


class Position(NamedTuple):
    """A place on the wire: zero-based line, and column in the units of some `PositionEncoding`."""

    line: int
    character: int


class Range(NamedTuple):
    """Two wire positions, the end exclusive."""

    start: Position
    end: Position


class Span(NamedTuple):
    """A piece of a text by code-point offsets, the end exclusive."""

    start: int
    end: int

    def contains(self, offset: int) -> bool:
        """Whether `offset` lies in the span or at its end (a cursor stands between characters)."""
        return self.start <= offset <= self.end

    def overlaps(self, other: Span) -> bool:
        """Whether the two share a character, or touch where one of them is empty."""
        if self.start == self.end or other.start == other.end:
            return self.start <= other.end and other.start <= self.end
        return self.start < other.end and other.start < self.end


@dataclass(frozen=True, slots=True)
class Edit:
    """Replace the text at `span` by `text`."""

    span: Span
    text: str

    @property
    def delta(self) -> int:
        """How much longer the text gets, in code points."""
        return len(self.text) - (self.span.end - self.span.start)


@dataclass(frozen=True, slots=True)
class Change:
    """One content change as a client sends it; without a range it replaces the whole text."""

    range: Range | None
    text: str


def apply_edits(text: str, edits: Iterable[Edit]) -> str:
    """The text after `edits`, whose spans all refer to `text` and do not overlap.

    Raises `ValueError` when they overlap.
    """
    out: list[str] = []
    at = 0
    for edit in sorted(edits, key=lambda e: (e.span.start, e.span.end)):
        if edit.span.start < at:
            raise ValueError(f"edits overlap at offset {edit.span.start}")
        out += (text[at : edit.span.start], edit.text)
        at = edit.span.end
    out.append(text[at:])
    return "".join(out)


def shift_span(span: Span, edits: Iterable[Edit]) -> Span | None:
    """Where `span` lies after `edits` were applied one after the other, or None if one of them touched it.

    An insertion exactly at either edge does not count as touching: it moves the span or leaves it.
    """
    for edit in edits:
        start, end = edit.span
        if end <= span.start and (start, end) != (span.start, span.end):
            span = Span(span.start + edit.delta, span.end + edit.delta)
        elif start >= span.end:
            continue
        else:
            return None
    return span


def _units(char: str, encoding: PositionEncoding) -> int:
    code = ord(char)
    if encoding is PositionEncoding.UTF16:
        return 2 if code > 0xFFFF else 1
    return 1 if code < 0x80 else 2 if code < 0x800 else 3 if code < 0x10000 else 4


def _length(text: str, encoding: PositionEncoding) -> int:
    if encoding is PositionEncoding.UTF32 or text.isascii():
        return len(text)
    if encoding is PositionEncoding.UTF16:
        return len(text) + sum(char > "\uffff" for char in text)
    return sum(_units(char, encoding) for char in text)


class LineIndex:
    """Where the lines of one text start, and the translation between offsets and wire positions."""

    __slots__ = ("_starts", "text")

    def __init__(self, text: str, starts: Sequence[int] | None = None) -> None:
        self.text = text
        self._starts = starts if starts is not None else _line_starts(text)

    @property
    def line_count(self) -> int:
        """How many lines there are; an empty text has one."""
        return len(self._starts)

    def line_of(self, offset: int) -> int:
        """The zero-based line that holds `offset`."""
        return bisect_right(self._starts, offset) - 1

    def start_of(self, line: int) -> int:
        """The offset at which `line` starts (clamped to the text's end)."""
        return self._starts[line] if line < len(self._starts) else len(self.text)

    def end_of(self, line: int) -> int:
        """The offset at which the content of `line` ends, before its line end."""
        end = self.start_of(line + 1) if line + 1 < len(self._starts) else len(self.text)
        start = self.start_of(line)
        if end > start and self.text[end - 1] == "\n":
            end -= 1
        if end > start and self.text[end - 1] == "\r" and line + 1 < len(self._starts):
            end -= 1
        return end

    def line(self, line: int) -> str:
        """The content of `line` without its line end."""
        return self.text[self.start_of(line) : self.end_of(line)]

    def offset(self, position: Position, encoding: PositionEncoding) -> int:
        """The offset of a wire position; positions beyond a line or the text are clamped, as LSP asks.

        A position inside a character (between two UTF-16 halves) is taken as that character's start.
        """
        if position.line >= len(self._starts):
            return len(self.text)
        start, end = self.start_of(position.line), self.end_of(position.line)
        wanted = position.character
        if encoding is PositionEncoding.UTF32:
            return min(start + wanted, end)
        content = self.text[start:end]
        if content.isascii():
            return min(start + wanted, end)
        for index, char in enumerate(content):
            width = _units(char, encoding)
            if wanted < width:
                return start + index
            wanted -= width
        return end

    def position(self, offset: int, encoding: PositionEncoding) -> Position:
        """The wire position of an offset."""
        offset = max(0, min(offset, len(self.text)))
        line = self.line_of(offset)
        return Position(line, _length(self.text[self.start_of(line) : offset], encoding))

    def span(self, range_: Range, encoding: PositionEncoding) -> Span:
        """The span of a wire range; a range whose end comes before its start is taken the other way round."""
        start, end = self.offset(range_.start, encoding), self.offset(range_.end, encoding)
        return Span(min(start, end), max(start, end))

    def range(self, span: Span, encoding: PositionEncoding) -> Range:
        """The wire range of a span."""
        return Range(self.position(span.start, encoding), self.position(span.end, encoding))


def _line_starts(text: str) -> list[int]:
    if "\r" in text:
        return [0, *(match.end() for match in _LINE_END.finditer(text))]
    starts = [0]
    at = 0
    for line in text.split("\n")[:-1]:
        at += len(line) + 1
        starts.append(at)
    return starts

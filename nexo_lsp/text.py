"""Positions, spans and edits: the words in which the project talks about places in a text.

Inside the project a place is an *offset*: a count of code points from the start of the text (an index into
the Python string). Lines and wire columns (UTF-8, UTF-16 or UTF-32 code units, as the client negotiated)
exist at the edges only; `LineIndex` translates.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate
from typing import NamedTuple

# LSP knows these three line ends and no others (form feed, U+2028 and the like do not end a line).
_LINE_END = re.compile(r"\r\n|\n|\r")
# How many lines an index keeps in one piece: what an edit computes anew.
_PIECE = 512


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


def _length(text: str, encoding: PositionEncoding) -> int:
    if encoding is PositionEncoding.UTF32 or text.isascii():
        return len(text)
    if encoding is PositionEncoding.UTF16:
        return len(text.encode("utf-16-le", "surrogatepass")) // 2
    return len(text.encode("utf-8", "surrogatepass"))


def _index(content: str, column: int, encoding: PositionEncoding) -> int:
    """The index in `content` of a column in code units; inside a character, that character's start."""
    if encoding is PositionEncoding.UTF32 or content.isascii():
        return min(column, len(content))
    # A character has at least one unit, so that nothing behind this many characters matters.
    content = content[:column]
    if _length(content, encoding) <= column:
        return len(content)
    low, high = 0, len(content)
    while low < high:
        middle = (low + high + 1) // 2
        # Only the halves are measured: the whole search costs about two passes over the line.
        width = _length(content[low:middle], encoding)
        if width <= column:
            low, column = middle, column - width
        else:
            high = middle - 1
    return low


class LineIndex:
    """Where the lines of one text start, and the translation between offsets and wire positions.

    Line starts are kept in pieces of some hundred lines, relative to the piece, so that the index of an
    edited text shares all pieces but those that the edit touched.
    """

    __slots__ = ("_lines", "_offsets", "_pieces", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self._set(_pieces(_line_starts(text)), len(text))

    def _set(self, pieces: list[tuple[tuple[int, ...], int]], length: int) -> None:
        """Take over `pieces`: relative line starts, and the piece's length (the last one's is mended)."""
        self._pieces = pieces
        self._offsets = [0, *accumulate(size for _, size in pieces[:-1])]
        self._lines = [0, *accumulate(len(starts) for starts, _ in pieces[:-1])]
        last, _ = pieces[-1]
        pieces[-1] = (last, length - self._offsets[-1])

    def edited(self, edit: Edit, text: str) -> LineIndex:
        """The index of `text`, which is this index's text after `edit`."""
        # The character before the edit may be a "\r" to which the edit adds or from which it takes a "\n".
        first = bisect_right(self._offsets, max(0, edit.span.start - 1)) - 1
        last = bisect_right(self._offsets, edit.span.end) - 1
        start = self._offsets[first]
        at_end = last + 1 == len(self._pieces)
        end = len(text) if at_end else self._offsets[last + 1] + edit.delta
        starts = _line_starts(text[start:end])
        if not at_end:
            starts.pop()  # the first line of the next piece
        new = _pieces(starts, end - start)
        index = LineIndex.__new__(LineIndex)
        index.text = text
        index._set([*self._pieces[:first], *new, *self._pieces[last + 1 :]], len(text))
        return index

    @property
    def line_count(self) -> int:
        """How many lines there are; an empty text has one."""
        return self._lines[-1] + len(self._pieces[-1][0])

    def line_of(self, offset: int) -> int:
        """The zero-based line that holds `offset`."""
        piece = max(0, bisect_right(self._offsets, offset) - 1)
        within = bisect_right(self._pieces[piece][0], offset - self._offsets[piece]) - 1
        return self._lines[piece] + max(0, within)

    def start_of(self, line: int) -> int:
        """The offset at which `line` starts (clamped to the text's end)."""
        if line >= self.line_count:
            return len(self.text)
        piece = bisect_right(self._lines, line) - 1
        return self._offsets[piece] + self._pieces[piece][0][line - self._lines[piece]]

    def end_of(self, line: int) -> int:
        """The offset at which the content of `line` ends, before its line end."""
        start, end = self.start_of(line), self.start_of(line + 1)
        if line + 1 >= self.line_count:
            return end
        if end > start and self.text[end - 1] == "\n":
            end -= 1
        if end > start and self.text[end - 1] == "\r":
            end -= 1
        return end

    def line(self, line: int) -> str:
        """The content of `line` without its line end."""
        return self.text[self.start_of(line) : self.end_of(line)]

    def offset(self, position: Position, encoding: PositionEncoding) -> int:
        """The offset of a wire position; positions beyond a line or the text are clamped, as LSP asks.

        A position inside a character (between two UTF-16 halves) is taken as that character's start.
        """
        if position.line >= self.line_count:
            return len(self.text)
        start, end = self.start_of(position.line), self.end_of(position.line)
        return start + _index(self.text[start:end], position.character, encoding)

    def position(self, offset: int, encoding: PositionEncoding) -> Position:
        """The wire position of an offset; inside a line end ("\r\n") it is the end of that line."""
        offset = max(0, min(offset, len(self.text)))
        line = self.line_of(offset)
        offset = min(offset, self.end_of(line))
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
    starts = [0, *accumulate([len(line) + 1 for line in text.split("\n")])]
    starts.pop()  # the last line has no line end
    return starts


def _pieces(starts: list[int], length: int = 0) -> list[tuple[tuple[int, ...], int]]:
    """Absolute line starts as pieces of at most `_PIECE` lines, with the length of each."""
    pieces: list[tuple[tuple[int, ...], int]] = []
    for at in range(0, len(starts), _PIECE):
        part = starts[at : at + _PIECE]
        end = starts[at + _PIECE] if at + _PIECE < len(starts) else length
        pieces.append((tuple([start - part[0] for start in part]), end - part[0]))
    return pieces

"""Positions, spans, edits and line indexes."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from nexo_lsp.text import (
    Edit,
    LineIndex,
    Position,
    PositionEncoding,
    Range,
    Span,
    apply_edits,
    shift_span,
)

UTF8, UTF16, UTF32 = PositionEncoding.UTF8, PositionEncoding.UTF16, PositionEncoding.UTF32


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", [""]),
        ("a", ["a"]),
        ("a\n", ["a", ""]),
        ("a\nb", ["a", "b"]),
        ("a\r\nb", ["a", "b"]),
        ("a\rb", ["a", "b"]),
        ("a\n\rb", ["a", "", "b"]),
        ("\r\r\n\n", ["", "", "", ""]),
        ("a\fb\vc\x1cd\x85e\u2028f\u2029g", ["a\fb\vc\x1cd\x85e\u2028f\u2029g"]),
        ("é\r", ["é", ""]),
    ],
)
def test_lines_end_where_lsp_says(text: str, lines: list[str]) -> None:
    index = LineIndex(text)
    assert index.line_count == len(lines)
    assert [index.line(number) for number in range(index.line_count)] == lines


@pytest.mark.parametrize(
    ("encoding", "columns"),
    [(UTF8, [0, 1, 3, 6, 10, 11]), (UTF16, [0, 1, 2, 3, 5, 6]), (UTF32, [0, 1, 2, 3, 4, 5])],
)
def test_columns_are_counted_in_the_agreed_units(encoding: PositionEncoding, columns: list[int]) -> None:
    index = LineIndex("x\naé漢😀b\r\nz")
    assert [index.position(2 + n, encoding) for n in range(6)] == [Position(1, c) for c in columns]
    assert [index.offset(Position(1, c), encoding) for c in columns] == [2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(
    ("position", "offset"),
    [
        (Position(0, 99), 2),  # behind the line: its end, before the line end
        (Position(0, 2**31 - 1), 2),
        (Position(1, 1), 4),  # between the two halves of a character: its start
        (Position(1, 2), 5),
        (Position(2, 0), 6),
        (Position(3, 0), 6),  # behind the text
        (Position(2**31 - 1, 7), 6),
    ],
)
def test_positions_out_of_bounds_are_clamped(position: Position, offset: int) -> None:
    assert LineIndex("ab\r\n😀\r"[:6]).offset(position, UTF16) == offset


def test_a_position_between_carriage_return_and_line_feed_is_the_end_of_the_line() -> None:
    index = LineIndex("ab\r\ncd")
    assert [index.position(n, UTF16) for n in (2, 3, 4)] == [(0, 2), (0, 2), (1, 0)]
    assert index.position(-5, UTF16) == (0, 0)
    assert index.position(99, UTF16) == (1, 2)


def test_a_range_the_wrong_way_round_is_turned() -> None:
    index = LineIndex("abc\ndef")
    assert index.span(Range(Position(1, 1), Position(0, 1)), UTF16) == Span(1, 5)
    assert index.range(Span(1, 5), UTF16) == Range(Position(0, 1), Position(1, 1))


def test_lone_surrogates_have_a_width_in_every_encoding() -> None:
    index = LineIndex("é\ud83dx")
    assert [index.position(3, encoding).character for encoding in (UTF8, UTF16, UTF32)] == [6, 3, 3]
    assert [index.offset(Position(0, c), UTF16) for c in range(4)] == [0, 1, 2, 3]


pieces = st.sampled_from(["\n", "\r", "\r\n", "a", "bc", "é", "😀", "\u2028", "\x0c", "\ud83d", "\ude00"])
texts = st.lists(pieces, max_size=14).map("".join)


@settings(deadline=None, derandomize=True)
@given(texts, st.sampled_from(PositionEncoding))
def test_every_offset_survives_the_way_to_the_wire_and_back(text: str, encoding: PositionEncoding) -> None:
    index = LineIndex(text)
    for offset in range(len(text) + 1):
        inside_line_end = text[offset - 1 : offset + 1] == "\r\n" and offset > 0
        back = index.offset(index.position(offset, encoding), encoding)
        assert back == (offset - 1 if inside_line_end else offset)


@settings(deadline=None, derandomize=True)
@given(
    # Long enough for several pieces of an index, so that edits join and split pieces too.
    st.lists(texts, max_size=4).map(lambda parts: ("".join(parts) + "\nx\r") * 300),
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), texts), max_size=4),
)
def test_an_edited_index_is_what_a_new_one_would_be(text: str, edits: list[tuple[float, float, str]]) -> None:
    index = LineIndex(text)
    for one, other, inserted in edits:
        start, end = sorted((round(one * len(text)), round(other * len(text))))
        edit = Edit(Span(start, end), inserted)
        text = apply_edits(text, [edit])
        index = index.edited(edit, text)
        fresh = LineIndex(text)
        assert index.line_count == fresh.line_count
        lines = range(fresh.line_count + 1)
        assert [index.start_of(n) for n in lines] == [fresh.start_of(n) for n in lines]
        assert [index.line_of(n) for n in range(0, len(text) + 1, 7)] == [
            fresh.line_of(n) for n in range(0, len(text) + 1, 7)
        ]


def test_an_edit_leaves_the_old_index_as_it_was() -> None:
    text = "a\nb\n" * 2000
    index = LineIndex(text)
    index.edited(Edit(Span(0, 4000), ""), text[4000:])
    assert index.line_count == 4001
    assert index.start_of(3999) == 7998


def test_edits_are_applied_to_the_text_they_refer_to() -> None:
    edits = [Edit(Span(4, 5), "E"), Edit(Span(0, 1), ""), Edit(Span(2, 2), "x"), Edit(Span(2, 2), "y")]
    assert apply_edits("abcdef", edits) == "bxycdEf"
    assert apply_edits("", [Edit(Span(0, 0), "new")]) == "new"
    assert apply_edits("abc", []) == "abc"


def test_an_insertion_at_the_start_of_a_replacement_comes_before_it() -> None:
    assert apply_edits("abc", [Edit(Span(1, 2), "X"), Edit(Span(1, 1), "i")]) == "aiXc"
    assert apply_edits("abc", [Edit(Span(2, 2), "i"), Edit(Span(1, 2), "X")]) == "aXic"


def test_edits_that_overlap_are_refused() -> None:
    with pytest.raises(ValueError, match="overlap at offset 2"):
        apply_edits("abcdef", [Edit(Span(1, 3), ""), Edit(Span(2, 4), "")])


@pytest.mark.parametrize(
    ("span", "edits", "moved"),
    [
        (Span(5, 8), [Edit(Span(0, 0), "xy")], Span(7, 10)),
        (Span(5, 8), [Edit(Span(0, 3), "")], Span(2, 5)),
        (Span(5, 8), [Edit(Span(8, 9), "")], Span(5, 8)),
        (Span(5, 8), [Edit(Span(5, 5), "x")], Span(6, 9)),
        (Span(5, 8), [Edit(Span(8, 8), "x")], Span(5, 8)),
        (Span(5, 8), [Edit(Span(3, 5), "x")], Span(4, 7)),
        (Span(5, 8), [Edit(Span(6, 6), "x")], None),
        (Span(5, 8), [Edit(Span(5, 8), "x")], None),
        (Span(5, 8), [Edit(Span(4, 6), "")], None),
        (Span(5, 8), [Edit(Span(7, 9), "")], None),
        (Span(5, 8), [Edit(Span(0, 20), "")], None),
        (Span(5, 5), [Edit(Span(5, 5), "x")], Span(5, 5)),
        (Span(5, 5), [Edit(Span(3, 5), "")], Span(3, 3)),
        (Span(5, 5), [Edit(Span(5, 7), "")], Span(5, 5)),
        (Span(5, 5), [Edit(Span(4, 6), "")], None),
        # One after the other, each in the text that the one before it left.
        (Span(5, 8), [Edit(Span(0, 0), "xxx"), Edit(Span(6, 7), "")], Span(7, 10)),
        (Span(5, 8), [Edit(Span(0, 0), "xxx"), Edit(Span(8, 9), "")], None),
        (Span(5, 8), [], Span(5, 8)),
    ],
)
def test_spans_move_with_edits_and_vanish_when_touched(
    span: Span, edits: list[Edit], moved: Span | None
) -> None:
    assert shift_span(span, edits) == moved


@settings(deadline=None, derandomize=True)
@given(st.text("abc", min_size=1, max_size=12), st.data())
def test_a_moved_span_holds_the_same_text(text: str, data: st.DataObject) -> None:
    def some_span(length: int) -> Span:
        start = data.draw(st.integers(0, length))
        return Span(start, data.draw(st.integers(start, length)))

    span = some_span(len(text))
    edit = Edit(some_span(len(text)), data.draw(st.text("xyz", max_size=3)))
    moved = shift_span(span, [edit])
    after = apply_edits(text, [edit])
    assert moved is None or after[moved.start : moved.end] == text[span.start : span.end]


@pytest.mark.parametrize(
    ("one", "other", "answer"),
    [
        (Span(1, 3), Span(2, 4), True),
        (Span(1, 3), Span(3, 4), False),
        (Span(1, 3), Span(3, 3), True),
        (Span(3, 3), Span(3, 3), True),
        (Span(1, 3), Span(4, 4), False),
    ],
)
def test_overlap(one: Span, other: Span, answer: bool) -> None:
    assert one.overlaps(other) is answer
    assert other.overlaps(one) is answer

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nexo_lsp.context.budget import Part, choose, estimate_tokens, first_lines, last_lines


def test_the_most_useful_parts_are_kept_in_their_order() -> None:
    parts = (Part("a" * 30, 1), Part("b" * 30, 3), Part("c" * 30, 2))
    assert choose(parts, 22) == (parts[1], parts[2])


def test_a_part_that_is_too_long_makes_room_for_others() -> None:
    parts = (Part("a" * 3000, 9), Part("b", 1))
    assert choose(parts, 10) == (parts[1],)


@given(st.text(), st.integers(0, 200))
def test_cutting_keeps_whole_lines_next_to_the_cursor(text: str, budget: int) -> None:
    head, tail = first_lines(text, budget), last_lines(text, budget)
    assert text.startswith(head)
    assert text.endswith(tail)
    assert head == text or text[len(head)] == "\n"
    assert tail == text or text[-len(tail) - 1] == "\n"
    assert "\n" not in head or estimate_tokens(head) <= budget + head.count("\n") + 1


def test_other_scripts_cost_more() -> None:
    assert estimate_tokens("日本語のコメント") >= 8
    assert estimate_tokens("x" * 300) <= 110

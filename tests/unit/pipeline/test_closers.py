from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexo_lsp.pipeline.closers import closers_behind, until_closed


@pytest.mark.parametrize(
    ("after", "closers"),
    [
        (")\nx", ")"),
        ('") ]\n', '") ]'),
        ("});", "});"),
        ("):\n    pass", "):"),
        (") + 1\n", ""),
        ("\n)", ""),
        ("", ""),
        ("  \n", ""),
        ("(", ""),
    ],
)
def test_closers_are_a_rest_of_line_that_only_closes(after: str, closers: str) -> None:
    assert closers_behind(after) == closers


@pytest.mark.parametrize(
    ("text", "closers", "kept"),
    [
        ("values)", ")", "values"),
        ("values) / 2", ")", "values"),
        ("f(a)[0], b) + c", ")", "f(a)[0], b"),
        ("values", ")", "values"),
        ("')', x)", ")", "')', x"),
        (r"'\')', x)", ")", r"'\')', x"),
        ("hello)", '")', "hello)"),
        ('hello")', '")', "hello"),
        (r'a \"b\" c", d', '")', r"a \"b\" c"),
        ("x = 1;", ";", "x = 1"),
        ("x = 1", ";", "x = 1"),
        ("'open", ")", "'open"),
        ("open\\", '"', "open\\"),
        ("a]", ")", "a"),
    ],
)
def test_an_answer_ends_where_it_closes_what_is_open(text: str, closers: str, kept: str) -> None:
    assert until_closed(text, closers) == kept


@given(st.text("ab()[]\"'\\;, "), st.sampled_from([")", '"', "'", "]);", ";", ","]))
def test_it_only_ever_cuts(text: str, closers: str) -> None:
    kept = until_closed(text, closers)
    assert text.startswith(kept)
    assert until_closed(kept, closers) == kept or closers[0] in ";,"

"""The points of a provider, question by question."""

from __future__ import annotations

import pytest

from nexo_lsp.generation import Operation
from nexo_lsp.runtime.environment import Environment, Platform
from nexo_lsp.runtime.needs import NEEDS, Needs
from nexo_lsp.runtime.providers.provider import Traits
from nexo_lsp.runtime.scoring import score

LAPTOP = Environment(Platform.LINUX, "x86_64", total_bytes=16_000_000_000, free_bytes=1_000_000_000)
EASY = Needs(Operation.ACTION)
HARD = Needs(Operation.REVIEW, tokens_per_s=10, parameters=3)
HOME, ELSEWHERE = frozenset({Platform.LINUX}), frozenset({Platform.WEB})


@pytest.mark.parametrize(
    ("traits", "needs", "points", "reason"),
    [
        (Traits(), EASY, 200, "works on any platform, so on linux (100)"),
        (Traits(platforms=HOME), EASY, 200, "at home on linux (100)"),
        (Traits(platforms=ELSEWHERE), EASY, 100, "not made for linux (0)"),
        (Traits(), EASY, 200, "action asks for nothing special (50)"),
        (Traits(tokens_per_s=10, parameters=3), HARD, 200, "10 tokens/s, 10 wanted, 3 billion parameters, 3 wanted (50)"),
        (Traits(tokens_per_s=9.9, parameters=3), HARD, 150, "9.9 tokens/s, 10 wanted"),
        (Traits(tokens_per_s=99, parameters=1.5), HARD, 150, "1.5 billion parameters, 3 wanted (0)"),
        (Traits(), HARD, 190, "tokens/s unknown, 10 wanted, billion parameters unknown, 3 wanted (40)"),
        (Traits(parameters=3), HARD, 190, "tokens/s unknown, 10 wanted"),
        (Traits(parameters=0.5), HARD, 150, "0.5 billion parameters, 3 wanted (0)"),
        (Traits(memory_bytes=800_000_000), EASY, 200, "wants 800 MB of 1,000 MB (30)"),
        (Traits(memory_bytes=900_000_000), EASY, 185, "which is tight (15)"),
        (Traits(), EASY, 200, "takes nothing of this machine (30)"),
        (Traits(network=True), EASY, 180, "needs a network (0)"),
        (Traits(), EASY, 200, "needs no network (20)"),
    ],
)  # fmt: skip
def test_each_question_has_its_points(traits: Traits, needs: Needs, points: int, reason: str) -> None:
    found = score(traits, LAPTOP, needs)
    assert found.points == points, found.reasons
    assert any(reason in said for said in found.reasons), found.reasons


def test_what_is_free_may_be_unknown() -> None:
    found = score(Traits(memory_bytes=900_000_000), Environment(Platform.LINUX, "x86_64"), EASY)
    assert found.points == 194
    assert "wants 900 MB; what is free is not known (24)" in found.reasons


def test_what_was_measured_is_kept_for_ties() -> None:
    assert score(Traits(tokens_per_s=12), LAPTOP, EASY).tokens_per_s == 12
    assert score(Traits(), LAPTOP, EASY).tokens_per_s == 0


def test_the_needs_differ_as_the_operations_do() -> None:
    completion, action, review = (NEEDS[operation] for operation in Operation)
    assert completion.infill
    assert not action.infill
    assert completion.tokens_per_s > action.tokens_per_s > review.tokens_per_s > 0
    assert review.parameters > completion.parameters == action.parameters == 0

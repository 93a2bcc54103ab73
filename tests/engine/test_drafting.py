"""Guessing from a known text, and how much of it is worth guessing."""

from __future__ import annotations

from nexo_lsp.engines.llama.drafting import DraftLength, Lookup, Source

KNOWN = list(range(100, 140))


def test_an_answer_is_expected_to_begin_like_the_known_text() -> None:
    lookup = Lookup(KNOWN)
    assert list(lookup.guess(3)) == [100, 101, 102]
    assert lookup.take(100) is True
    assert list(lookup.guess(2)) == [101, 102]
    assert lookup.run == 1


def test_an_inserted_passage_is_left_behind_and_the_place_found_again() -> None:
    lookup = Lookup(KNOWN)
    for token in [100, 101, 102, 7, 8, 9]:
        lookup.take(token)
    assert not lookup.guess(5)
    for token in KNOWN[3:6]:
        lookup.take(token)
    assert list(lookup.guess(3)) == KNOWN[6:9]


def test_a_left_out_passage_is_skipped() -> None:
    lookup = Lookup(KNOWN)
    for token in [*KNOWN[:3], *KNOWN[20:23]]:
        lookup.take(token)
    assert list(lookup.guess(2)) == KNOWN[23:25]


def test_of_several_places_the_next_one_is_taken() -> None:
    again = [1, 2, 3, 4, 1, 2, 3, 5, 1, 2, 3, 6]
    lookup = Lookup(again)
    for token in [1, 2, 3, 4, 9, 1, 2, 3]:
        lookup.take(token)
    assert list(lookup.guess(1)) == [5]


def test_behind_the_end_there_is_nothing_to_guess() -> None:
    lookup = Lookup([1, 2])
    assert [lookup.take(1), lookup.take(2), lookup.take(3)] == [True, True, None]
    assert not lookup.guess(4)
    assert not Lookup([]).guess(4)


def test_without_a_prediction_the_prompt_is_searched_for_the_last_tokens() -> None:
    prompt = [1, 2, 3, 4, 5, 6, 9, 9, 2, 3, 4]
    lookup = Lookup((), prompt)
    assert list(lookup.guess(3)) == [5, 6, 9]
    assert lookup.source is Source.PROMPT
    lookup.take(7)
    assert not lookup.guess(3)
    for token in [1, 2, 3]:
        lookup.take(token)
    assert list(lookup.guess(2)) == [4, 5]


def test_a_prediction_counts_more_than_the_prompt() -> None:
    lookup = Lookup([7, 1, 2, 3, 8], [1, 2, 3, 4, 5])
    for token in [0, 1, 2, 3]:
        lookup.take(token)
    assert list(lookup.guess(1)) == [8]


def measured(extra: float, rate: bool, times: int = 200) -> DraftLength:
    lengths = DraftLength()
    for _ in range(times):
        lengths.costs.single(0.02)
        for size in (2, 4, 8, 16, 32, 48):
            lengths.costs.several(size, 0.02 + (size - 1) * extra)
        for run in (0, 5, 10, 20):
            lengths.judged(Source.PREDICTION, run, rate)
    return lengths


def test_more_is_guessed_the_cheaper_and_the_surer_it_is() -> None:
    assert measured(0.0001, rate=True).best(Source.PREDICTION, 20, 40) == 40
    cheap, dear = (
        measured(0.004, rate=True).best(Source.PREDICTION, 20, 40),
        measured(0.03, rate=True).best(Source.PREDICTION, 20, 40),
    )
    assert cheap > dear == 0, "a guess that costs more than a step is never worth it"
    assert measured(0.004, rate=False).best(Source.PREDICTION, 20, 40) == 0


def test_guesses_that_are_not_made_are_judged_too_so_that_it_comes_back() -> None:
    lengths = measured(0.004, rate=False)
    for _ in range(60):
        lengths.judged(Source.PREDICTION, 20, True)
    assert lengths.best(Source.PREDICTION, 20, 40) > 0

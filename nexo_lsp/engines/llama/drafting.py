"""Guessing the next tokens of an answer that repeats a known text, so that one step verifies several.

Verifying is exact: each token is sampled as it would be without the guess, and the first wrong guess ends the
step. So a guess never changes an answer, it only costs time: as much as a prompt's tokens do, and the
vocabulary's head for each. How many are guessed is therefore chosen from what guesses were worth so far and
from what steps were measured to cost.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from enum import IntEnum

from nexo_lsp.engines.llama.step_costs import StepCosts

_GRAM = 3
"""So many tokens in a row must agree before a place of the known text is taken up again."""
_AVERAGE = 0.1
_HOPE = 0.1
_FIRST_RATES = ((0.6, 0.9, 0.93, 0.96), (0.4, 0.6, 0.8, 0.9), (0.6, 0.7, 0.8, 0.85))
"""What share of guesses is right at first, by source and by how many were right in a row; then measured."""
_RUNS = (0, 1, 3, 8)
_ROWS = 4
"""Batches of whole fours are the cheapest: a row left over costs as much as a token alone (`chunks.py`)."""


class Source(IntEnum):
    """Where a guess comes from; each is right more or less often."""

    PREDICTION = 0
    """What the request says that its answer will repeat."""
    PROMPT = 1
    """What the prompt goes on with where it holds the last tokens already: code repeats itself."""
    MODEL = 2
    """What a second, smaller model would write."""


class Lookup:
    """Where in the known texts the answer is, and what comes next there."""

    def __init__(self, known: Sequence[int], prompt: Sequence[int] = ()) -> None:
        """`known`: what the answer probably repeats, from its beginning on; `prompt`: what it follows."""
        self._texts = (tuple(known), tuple(prompt))
        self._places = tuple(_places(text) for text in self._texts)
        self.source = Source.PREDICTION
        # The answer is expected to begin where the known text begins.
        self._next: int | None = 0
        self._last = 0
        self._recent = self._texts[Source.PROMPT][-_GRAM:]
        self.run = 0
        """How many tokens in a row were what the text says."""
        if not known:
            self._find()

    def guess(self, most: int) -> Sequence[int]:
        """At most so many tokens that may come next; none if the place is not known."""
        return () if self._next is None else self._texts[self.source][self._next : self._next + most]

    def take(self, token: int) -> bool | None:
        """The answer goes on with `token`; whether that was the guess, None if there was none."""
        guess = self.guess(1)
        right = bool(guess) and guess[0] == token
        self._recent = (*self._recent, token)[-_GRAM:]
        if right and self._next is not None:
            self.run += 1
            self._next += 1
            if self.source is Source.PREDICTION:
                self._last = self._next
        else:
            self.run = 0
            self._find()
        return right if guess else None

    def _find(self) -> None:
        """Look for the last tokens: in the known text from where the answer was, then in the prompt."""
        places = self._places[Source.PREDICTION].get(self._recent, ())
        self._next = next((place for place in places if place > self._last), places[-1] if places else None)
        self.source = Source.PREDICTION
        if self._next is None:
            # The end of the prompt itself is where the answer is, not what comes behind it.
            end = len(self._texts[Source.PROMPT])
            places = [place for place in self._places[Source.PROMPT].get(self._recent, ()) if place < end]
            self._next = places[-1] if places else None
            self.source = Source.PROMPT


def _places(text: Sequence[int]) -> dict[tuple[int, ...], list[int]]:
    places: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for end in range(_GRAM, len(text) + 1):
        places[tuple(text[end - _GRAM : end])].append(end)
    return places


class DraftLength:
    """How many tokens are worth guessing, learnt from all answers of one model."""

    def __init__(self) -> None:
        self._rates = [list(rates) for rates in _FIRST_RATES]
        self.costs = StepCosts()
        self.guess_s = 0.0
        """What a guess of the draft model costs, before it is verified."""

    def best(self, source: Source, run: int, most: int) -> int:
        """The number of guesses, up to `most`, with the least time for each token that is expected from it.

        With a share p of right guesses, k of them give 1 + p + … + p^k tokens on average, because the first
        wrong one ends them, for the time of one step.
        """
        return self._best(source, run, most)[0]

    def saved_s(self, source: Source, run: int, most: int) -> float:
        """How much time guesses are expected to save for each token of the answer."""
        return self.costs.step_s - self._best(source, run, most)[1]

    def _best(self, source: Source, run: int, most: int) -> tuple[int, float]:
        """The best number of guesses, and the time for each token with them."""
        guess_s = self.guess_s if source is Source.MODEL else 0.0
        best, least = 0, self.costs.step_s
        expected, chance = 1.0, 1.0
        for count in range(1, most + 1):
            chance *= self._rates[source][_bucket(run + count - 1)]
            expected += chance
            if (1 + count) % _ROWS and count < most:
                continue
            cost = (self.costs.seconds(1 + count) + count * guess_s) / expected
            if cost < least:
                best, least = count, cost
        return best, least

    def judged(self, source: Source, run: int, right: bool) -> None:
        """A guess after `run` right ones in a row was right or wrong; told whether it was verified or not."""
        rates, index = self._rates[source], _bucket(run)
        rates[index] += _AVERAGE * (right - rates[index])

    def guessed(self, count: int, seconds: float) -> None:
        """The draft model took this long for so many guesses."""
        self.guess_s += _AVERAGE * (seconds / count - self.guess_s)

    def hope(self, source: Source) -> None:
        """Go some way back to what was expected at first: who no longer guesses is no longer judged."""
        rates = self._rates[source]
        for index, first in enumerate(_FIRST_RATES[source]):
            rates[index] += _HOPE * (first - rates[index])


def _bucket(run: int) -> int:
    return sum(run >= bound for bound in _RUNS) - 1

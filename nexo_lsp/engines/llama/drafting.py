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

_GRAM = 3
"""So many tokens in a row must agree before a place of the known text is taken up again."""
_AVERAGE = 0.1
_HOPE = 0.1
_FIRST_RATES = ((0.5, 0.7, 0.85, 0.95), (0.4, 0.6, 0.8, 0.9), (0.6, 0.7, 0.8, 0.85))
"""What share of guesses is right at first, by source and by how many were right in a row; then measured."""
_RUNS = (0, 3, 8, 16)
_HEAD = 1.4
"""A guess costs about so many tokens of a prompt: the head alone is 28 % of the 0.5B model's weights."""
_FIRST_STEP_S, _FIRST_EXTRA_S = 0.025, 0.01


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
        self._step_s = _FIRST_STEP_S
        self._extra_s = _FIRST_EXTRA_S
        self._guess_s = 0.0
        """What a guess of the draft model costs, before it is verified."""

    def best(self, source: Source, run: int, most: int) -> int:
        """The number of guesses, up to `most`, with the least time for each token that is expected from it.

        With a share p of right guesses, k of them give 1 + p + … + p^k tokens on average, because the first
        wrong one ends them, for the time of a step and of k further tokens.
        """
        extra = self._extra_s + (self._guess_s if source is Source.MODEL else 0.0)
        best, least = 0, self._step_s
        expected, chance = 1.0, 1.0
        for count in range(1, most + 1):
            chance *= self._rates[source][_bucket(run + count - 1)]
            expected += chance
            cost = (self._step_s + count * extra) / expected
            if cost < least:
                best, least = count, cost
        return best

    def judged(self, source: Source, run: int, right: bool) -> None:
        """A guess after `run` right ones in a row was right or wrong; told whether it was verified or not."""
        rates, index = self._rates[source], _bucket(run)
        rates[index] += _AVERAGE * (right - rates[index])

    def single(self, seconds: float) -> None:
        """A step without guesses took this long."""
        self._step_s += _AVERAGE * (seconds - self._step_s)

    def drafted(self, count: int, seconds: float) -> None:
        """A step with `count` guesses took this long."""
        self._extra_s += _AVERAGE * (max(0.0, seconds - self._step_s) / count - self._extra_s)

    def prompt(self, tokens: int, seconds: float) -> None:
        """So many tokens of a prompt took this long: what a guess costs, before one was made."""
        self._extra_s += _AVERAGE * (_HEAD * seconds / tokens - self._extra_s)

    def guessed(self, count: int, seconds: float) -> None:
        """The draft model took this long for so many guesses."""
        self._guess_s += _AVERAGE * (seconds / count - self._guess_s)

    def hope(self, source: Source) -> None:
        """Go some way back to what was expected at first: who no longer guesses is no longer judged."""
        rates = self._rates[source]
        for index, first in enumerate(_FIRST_RATES[source]):
            rates[index] += _HOPE * (first - rates[index])


def _bucket(run: int) -> int:
    return sum(run >= bound for bound in _RUNS) - 1

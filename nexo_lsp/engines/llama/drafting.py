"""Guessing the next tokens of an answer that repeats a known text, so that one step verifies several.

Verifying is exact: each token is sampled as it would be without the guess, and the first wrong guess ends the
step. So a guess never changes an answer, it only costs time: as much as a prompt's tokens do, and the
vocabulary's head for each. How many are guessed is therefore chosen from what guesses were worth so far and
from what steps were measured to cost.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

_GRAM = 3
"""So many tokens in a row must agree before a place of the known text is taken up again."""
_AVERAGE = 0.1
_FIRST_RATES = (0.5, 0.7, 0.85, 0.95)
"""What share of guesses is right at first, by how many were right in a row before; then measured."""
_RUNS = (0, 3, 8, 16)
_HEAD = 1.4
"""A guess costs about so many tokens of a prompt: the head alone is 28 % of the 0.5B model's weights."""
_FIRST_STEP_S, _FIRST_EXTRA_S = 0.025, 0.01


class Lookup:
    """Where in the known text the answer is, and what comes next there."""

    def __init__(self, known: Sequence[int]) -> None:
        self._known = tuple(known)
        self._places: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for end in range(_GRAM, len(self._known) + 1):
            self._places[self._known[end - _GRAM : end]].append(end)
        # The answer is expected to begin where the known text begins.
        self._next: int | None = 0
        self._last = 0
        self._recent: tuple[int, ...] = ()
        self.run = 0
        """How many tokens in a row were what the known text says."""

    def guess(self, most: int) -> Sequence[int]:
        """At most so many tokens that may come next; none if the place is not known."""
        return () if self._next is None else self._known[self._next : self._next + most]

    def take(self, token: int) -> bool | None:
        """The answer goes on with `token`; whether that was the guess, None if there was none."""
        at = self._next
        guessed = at is not None and at < len(self._known)
        right = guessed and at is not None and self._known[at] == token
        self._recent = (*self._recent, token)[-_GRAM:]
        if right and at is not None:
            self.run += 1
            self._next = self._last = at + 1
        else:
            self.run = 0
            self._next = self._find()
        return right if guessed else None

    def _find(self) -> int | None:
        """The place behind the last tokens: the first one after where the answer was, else any."""
        places = self._places.get(self._recent, [])
        return next((place for place in places if place > self._last), places[-1] if places else None)


class DraftLength:
    """How many tokens are worth guessing, learnt from all answers of one model."""

    def __init__(self) -> None:
        self._rates = list(_FIRST_RATES)
        self._step_s = _FIRST_STEP_S
        self._extra_s = _FIRST_EXTRA_S

    def best(self, run: int, most: int) -> int:
        """The number of guesses, up to `most`, with the least time for each token that is expected from it.

        With a share p of right guesses, k of them give 1 + p + … + p^k tokens on average, because the first
        wrong one ends them, for the time of a step and of k further tokens.
        """
        best, least = 0, self._step_s
        expected, chance = 1.0, 1.0
        for count in range(1, most + 1):
            chance *= self._rate(run + count - 1)
            expected += chance
            cost = (self._step_s + count * self._extra_s) / expected
            if cost < least:
                best, least = count, cost
        return best

    def judged(self, run: int, right: bool) -> None:
        """A guess after `run` right ones in a row was right or wrong; told whether it was verified or not."""
        index = _bucket(run)
        self._rates[index] += _AVERAGE * (right - self._rates[index])

    def single(self, seconds: float) -> None:
        """A step without guesses took this long."""
        self._step_s += _AVERAGE * (seconds - self._step_s)

    def drafted(self, count: int, seconds: float) -> None:
        """A step with `count` guesses took this long."""
        self._extra_s += _AVERAGE * (max(0.0, seconds - self._step_s) / count - self._extra_s)

    def prompt(self, tokens: int, seconds: float) -> None:
        """So many tokens of a prompt took this long: what a guess costs, before one was made."""
        self._extra_s += _AVERAGE * (_HEAD * seconds / tokens - self._extra_s)

    def _rate(self, run: int) -> float:
        return self._rates[_bucket(run)]


def _bucket(run: int) -> int:
    return sum(run >= bound for bound in _RUNS) - 1

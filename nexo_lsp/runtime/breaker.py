"""A circuit breaker: what fails is left alone for a while, and then tried again."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

FIRST_REST_S, LONGEST_REST_S = 30.0, 600.0


class Breaker:
    """Counts the failures of one engine.

    Closed: it is used. Open: it rests. Half open: one request tries it.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures = self._silences = 0
        self._rests_until = 0.0
        self._trying = False

    @property
    def failed(self) -> bool:
        """Whether it failed the last time that it was used."""
        return self._failures > 0

    @property
    def seconds_left(self) -> float:
        """How long it rests from now; 0 while it is used."""
        return max(0.0, self._rests_until - self._clock()) if self._failures else 0.0

    def enter(self) -> Literal["used", "trial"] | None:
        """Whether a request may go there now, and as what. After a rest only one may, until it succeeded."""
        if not self._failures:
            return "used"
        if self._trying or self.seconds_left:
            return None
        self._trying = True
        return "trial"

    def succeeded(self) -> bool:
        """It answered; gives whether that is news."""
        news = self.failed
        self._failures = self._silences = 0
        self._trying = False
        return news

    def left(self) -> None:
        """The trial was given up before it showed whether it works."""
        self._trying = False

    def silent(self) -> bool:
        """It said nothing until the request's time was over; gives whether that is news.

        Once may be a model that is being loaded, twice in a row counts as a failure.
        """
        self._silences += 1
        return self._silences > 1 and self.fail()

    def fail(self) -> bool:
        """It failed; each time in a row it rests twice as long. Gives whether that is news.

        What fails while it rests already had begun before, and is the same failure.
        """
        news = not self.failed
        self._trying = False
        if self.seconds_left:
            return False
        self._failures += 1
        self._silences = 0
        rest = min(LONGEST_REST_S, FIRST_REST_S * 2.0 ** min(self._failures - 1, 10))
        self._rests_until = self._clock() + rest
        return news

"""How far a pull is: measured, smoothed, and told at a bearable rate."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Phase = Literal["download", "verify"]

_EVERY_S = 0.1
_WINDOW_S = 3.0


@dataclass(frozen=True, slots=True)
class PullProgress:
    """A pull at one moment."""

    source: str
    """Where the bytes come from; empty before a source is tried."""
    done_bytes: int
    total_bytes: int
    bytes_per_s: float
    """Over the last seconds; 0 while unknown."""
    phase: Phase
    note: str
    """What there is to say besides (a source failed and why, somebody else fetches); holds until changed."""

    @property
    def seconds_left(self) -> float | None:
        """How long the rest takes at this speed, or None while the speed is unknown."""
        if self.bytes_per_s <= 0:
            return None
        return max(0, self.total_bytes - self.done_bytes) / self.bytes_per_s


ProgressReport = Callable[[PullProgress], None]
"""Called from the thread that pulls, about ten times a second at the most, and once for every new note."""


def ignore_progress(_: PullProgress) -> None:
    """For callers that have nobody to tell."""


class Meter:
    """Turns byte counts into `PullProgress`."""

    def __init__(self, report: ProgressReport, total: int) -> None:
        self._report = report
        self._total = total
        self._source = ""
        self._note = ""
        self._phase: Phase = "download"
        self._told_at = float("-inf")
        self._samples: deque[tuple[float, int]] = deque()

    def begin(self, source: str, done: int) -> None:
        """A source starts to deliver; what is there already does not count for its speed."""
        self._source = source
        self._enter("download")
        self.downloaded(done)
        # The first bytes are told at once: they show that the source works, also if it then stalls.
        self._told_at = float("-inf")

    def downloaded(self, done: int, note: str = "") -> None:
        """So many bytes are there; a note, if any, is told at once."""
        self._enter("download")
        self._tell(done, note)

    def verified(self, done: int) -> None:
        """So many bytes have been read for the digest."""
        self._enter("verify")
        self._tell(done, "")

    def _enter(self, phase: Phase) -> None:
        if phase != self._phase:
            self._phase = phase
            self._note = ""
            self._told_at = float("-inf")
            self._samples.clear()

    def _tell(self, done: int, note: str) -> None:
        now = time.monotonic()
        if self._samples and done < self._samples[-1][1]:
            self._samples.clear()
        self._samples.append((now, done))
        while now - self._samples[0][0] > _WINDOW_S and len(self._samples) > 2:
            self._samples.popleft()
        news = bool(note) and note != self._note
        if not news and now - self._told_at < _EVERY_S and done < self._total:
            return
        self._note = note or self._note
        self._told_at = now
        (first_at, first), span = self._samples[0], now - self._samples[0][0]
        rate = (done - first) / span if now > first_at else 0.0
        self._report(PullProgress(self._source, done, self._total, rate, self._phase, self._note))

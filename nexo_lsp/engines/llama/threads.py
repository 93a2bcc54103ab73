"""How many threads decode: what is quickest now, which is not what is quickest on a quiet machine.

Every operation of a step ends with all threads waiting for the slowest. As soon as other programs want the
same cores, one of the threads is often not running at all, and two threads become slower than one (measured
with 0.5B on 2 cores: 2.3 tokens/s with two threads under heavy load, 10.7 with one). So fewer threads are
tried from time to time, and kept where they pay.
"""

from __future__ import annotations

_PROBE_FIRST, _PROBE_RAREST = 16, 128
"""Steps between two probes; they get rarer while nothing changes."""
_WORTH_IT = 0.85
"""Another count is taken if its step takes less than this share of the present one's."""
_SLOWED = 1.5
"""A step that got this much slower than when it was last compared calls for a new comparison."""
_AVERAGE = 0.25


class ThreadTuner:
    """Chooses the thread count for the next decode step from the times of the last ones."""

    def __init__(self, most: int) -> None:
        self.threads = most
        """What the next step should use."""
        self._best = most
        self._candidates = sorted({1, max(1, most // 2), most})
        self._step_s: float | None = None
        self._compared_s: float | None = None
        self._interval = _PROBE_FIRST
        self._until_probe = _PROBE_FIRST
        self._probed = 0
        self._warming = False

    def observe(self, seconds: float) -> None:
        """A decode step with `threads` took this long."""
        if len(self._candidates) == 1:
            return
        if self._warming:
            # The first step after a change pays for the change.
            self._warming = False
        elif self.threads != self._best:
            self._judge(seconds)
        else:
            self._watch(seconds)

    def _watch(self, seconds: float) -> None:
        before = self._step_s
        self._step_s = seconds if before is None else before + _AVERAGE * (seconds - before)
        if self._compared_s is not None and self._step_s > _SLOWED * self._compared_s:
            self._interval = _PROBE_FIRST
            self._until_probe = 0
        self._until_probe -= 1
        if self._until_probe <= 0:
            others = [count for count in self._candidates if count != self._best]
            self._use(others[self._probed % len(others)])
            self._probed += 1

    def _judge(self, seconds: float) -> None:
        present = self._step_s or seconds
        if seconds < _WORTH_IT * present:
            self._best = self.threads
            self._step_s = seconds
            self._interval = _PROBE_FIRST
        else:
            self._interval = min(_PROBE_RAREST, 2 * self._interval)
            self._use(self._best)
        self._compared_s = self._step_s
        self._until_probe = self._interval

    def _use(self, count: int) -> None:
        self.threads = count
        self._warming = True

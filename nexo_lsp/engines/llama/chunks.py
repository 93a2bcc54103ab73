"""How much of a prompt is evaluated in one step."""

from __future__ import annotations

# How long a chunk should take: alone, or while somebody watches an answer that is being written beside it.
# What is urgent interrupts a step, so the long ones hold nobody up; and chunks of 256 tokens are 10 % faster
# than those of 64 (0.5B, 2 cores of an AMD EPYC: 215 and 196 tokens/s; 230 with 512).
_CHUNK_S, _WATCHED_S = 1.5, 0.12
_LEAST = 16
_ROWS = 16
"""A batch of whole sixteens is the quickest: what is left over of four rows is evaluated one by one (ggml's
repacked kernels), each at the price of a single token."""


class Chunks:
    """Chooses sizes from the measured speed; small ones after an interruption, until one gets through."""

    def __init__(self, most: int) -> None:
        """`most`: tokens that a batch may hold."""
        self._limit = self._most = most

    def size(self, speed: float | None, rows: int, *, watched: bool) -> int:
        """Tokens of a prompt to evaluate together with so many other `rows`; `speed` in tokens a second."""
        seconds = _WATCHED_S if watched else _CHUNK_S
        wanted = 4 * _LEAST if speed is None else int(speed * seconds)
        whole = max(_LEAST, min(wanted, self._most) // _ROWS * _ROWS)
        # The chunk fills the last sixteen that the other rows have begun.
        begun = -rows % _ROWS
        size = whole if not begun or whole == _ROWS else whole - _ROWS
        return min(size + begun, self._limit - rows)

    def interrupted(self, speed: float | None) -> None:
        """A step was given up: or a prompt would never end beside a quick typist."""
        self._most = max(_LEAST, min(self._most, self.size(speed, 0, watched=False)) // 2)

    def passed(self) -> None:
        """A step was done."""
        self._most = min(self._limit, 2 * self._most)

"""What a step costs that evaluates several tokens and wants all their logits: learnt, from a likely shape."""

from __future__ import annotations

from bisect import bisect_left

# Measured with the 0.5B (Q4_K_M) on 2 cores of an AMD EPYC, load 1.6: 24 ms for one token, 44 for 2, 60 for
# 4, 100 for 8, 160 for 16, 300 for 32, 450 for 48. The second token is dear because other kernels do the work
# from there on. What is measured on this machine takes the place of it, size by size.
_SIZES = (1, 2, 4, 8, 16, 32, 48)
_SHAPE = (1.0, 1.8, 2.5, 4.1, 6.7, 12.5, 18.8)
_FIRST_STEP_S = 0.025
_AVERAGE_STEP, _AVERAGE_SHAPE = 0.1, 0.2


class StepCosts:
    """Times of steps by their size; relative to a single token's, so that a busier machine changes all."""

    def __init__(self) -> None:
        self.step_s = _FIRST_STEP_S
        """What a step for a single token takes."""
        self._shape = list(_SHAPE)

    def single(self, seconds: float) -> None:
        """A step for one token took this long."""
        self.step_s += _AVERAGE_STEP * (seconds - self.step_s)

    def several(self, tokens: int, seconds: float) -> None:
        """A step for so many tokens (at least two) took this long."""
        nearest = min(range(1, len(_SIZES)), key=lambda index: abs(_SIZES[index] - tokens))
        seen = seconds / self.step_s * self._shape[nearest] / self._relative(tokens)
        self._shape[nearest] += _AVERAGE_SHAPE * (seen - self._shape[nearest])

    def seconds(self, tokens: int) -> float:
        """What a step for so many tokens is expected to take."""
        return self.step_s * self._relative(tokens)

    def _relative(self, tokens: int) -> float:
        above = min(max(1, bisect_left(_SIZES, tokens)), len(_SIZES) - 1)
        low, high = _SIZES[above - 1], _SIZES[above]
        share = (tokens - low) / (high - low)
        return self._shape[above - 1] + share * (self._shape[above] - self._shape[above - 1])

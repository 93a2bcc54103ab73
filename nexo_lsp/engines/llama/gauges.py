"""What the scheduler counts and measures, for people and for its own choices."""

from __future__ import annotations

from nexo_lsp.engines.llama.messages import Metrics

_AVERAGE = 0.3
"""The weight of the newest measurement in a moving average."""


class Average:
    """A moving average; None before the first measurement."""

    def __init__(self) -> None:
        self.value: float | None = None

    def add(self, now: float) -> None:
        """One more measurement."""
        self.value = now if self.value is None else self.value + _AVERAGE * (now - self.value)


class Gauges:
    """Speeds as moving averages, and sums since the model was loaded."""

    def __init__(self) -> None:
        self.prompt_speed = Average()
        """Tokens a second."""
        self.decode_speed = Average()
        """Tokens a second, of all answers that are written together."""
        self.fill = Average()
        self.cancel_ms = Average()
        self.drafted = self.accepted = self.overtaken = 0
        self._prompt_tokens = self._cached_tokens = 0

    def begun(self, prompt_tokens: int, cached_tokens: int) -> None:
        """A request got its sequence, with so many of its tokens evaluated already."""
        self._prompt_tokens += prompt_tokens
        self._cached_tokens += cached_tokens

    def metrics(self) -> Metrics:
        """The part of the metrics that is known here."""
        return Metrics(
            batch_fill=self.fill.value,
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self._cached_tokens,
            drafted_tokens=self.drafted,
            accepted_tokens=self.accepted,
            overtaken=self.overtaken,
            cancel_ms=self.cancel_ms.value,
        )

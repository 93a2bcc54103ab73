"""Answers as they come: from a server's events to text, the reason for the end, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nexo_lsp.engines.remote.shapes import as_count, as_list, as_object, as_text
from nexo_lsp.generation import FinishReason, Usage


@dataclass(frozen=True, slots=True)
class Part:
    """What one event says."""

    text: str = ""
    finish: FinishReason | None = None


class Account:
    """Counts tokens as they come, and takes over what the server says at the end."""

    def __init__(self) -> None:
        self.tokens = 0
        """Events with text until the server tells the number."""
        self._prompt = self._cached = 0
        self._prompt_s = self._decode_s = 0.0

    def read(self, event: Mapping[str, Any]) -> Part:
        """Read one event of `/chat/completions`, `/completions` or `/infill`."""
        self._note(event)
        choices = event.get("choices")
        part = _choice(as_object(next(iter(as_list(choices)), None))) if choices is not None else _own(event)
        if part.text and not ("usage" in event or "timings" in event):
            self.tokens += 1
        return part

    def usage(self, queue_s: float) -> Usage:
        """What it cost, as far as the server said."""
        return Usage(self._prompt, self._cached, self.tokens, queue_s, self._prompt_s, self._decode_s)

    def _note(self, event: Mapping[str, Any]) -> None:
        usage, timings = as_object(event.get("usage")), as_object(event.get("timings"))
        if usage:
            self._prompt = _count(usage, "prompt_tokens", self._prompt)
            self.tokens = _count(usage, "completion_tokens", self.tokens)
            details = as_object(usage.get("prompt_tokens_details"))
            self._cached = _count(details, "cached_tokens", self._cached)
        if timings:
            self.tokens = _count(timings, "predicted_n", self.tokens)
            self._cached = _count(timings, "cache_n", self._cached)
            self._prompt = max(self._prompt, _count(timings, "prompt_n", 0) + self._cached)
            self._prompt_s = _seconds(timings, "prompt_ms")
            self._decode_s = _seconds(timings, "predicted_ms")


def _choice(choice: Mapping[str, Any]) -> Part:
    # `message` comes from servers that do not stream, `text` from `/completions`.
    said = as_object(choice.get("delta") or choice.get("message"))
    reason = as_text(choice.get("finish_reason"))
    finish = None
    if reason:
        finish = FinishReason.LENGTH if reason == "length" else FinishReason.STOP
    return Part(as_text(said.get("content", choice.get("text"))), finish)


def _own(event: Mapping[str, Any]) -> Part:
    """llama-server's own form."""
    finish = None
    if event.get("stop") is True:
        finish = FinishReason.LENGTH if event.get("stop_type") == "limit" else FinishReason.STOP
    return Part(as_text(event.get("content")), finish)


def _count(values: Mapping[str, Any], name: str, before: int) -> int:
    count = as_count(values.get(name))
    return before if count is None else count


def _seconds(values: Mapping[str, Any], name: str) -> float:
    value: object = values.get(name)
    return value / 1000 if isinstance(value, (int, float)) else 0.0

"""What is asked of an engine, and what comes back: plain values that every layer may know."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Any


class Priority(IntEnum):
    """Who goes first; a smaller number overtakes a larger one at the next engine step."""

    INTERACTIVE = 0
    """Inline completion: somebody is typing."""
    FOREGROUND = 1
    """Code actions, chat, a hover's explanation: somebody is waiting."""
    BACKGROUND = 2
    """Review of what was opened or saved, warm-up."""


class Operation(StrEnum):
    """What an answer is for: what it needs of an engine and of a model follows from it."""

    COMPLETION = "completion"
    """Inline completion: latency counts, and fill-in-the-middle is needed."""
    ACTION = "action"
    """Code actions, explanations, chat."""
    REVIEW = "review"
    """Review: quality counts, and nobody waits."""


class Role(StrEnum):
    """Who speaks in a chat message."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"


@dataclass(frozen=True, slots=True)
class Message:
    """One chat message. Its content is data: special tokens inside it are never interpreted."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A conversation; `answer_prefix` is text that the answer is made to begin with (not sent back)."""

    messages: tuple[Message, ...]
    answer_prefix: str = ""
    static_messages: int = 0
    """How many of the first messages are the same in every request of this kind and hold nothing of the
    user's: what an engine may keep, evaluated, between two runs."""


@dataclass(frozen=True, slots=True)
class InfillTemplate:
    """How a model family wants fill-in-the-middle prompts.

    `parts` alternate between special tokens of the model and the slots `"{prefix}"` and `"{suffix}"`, for
    example `("<|fim_prefix|>", "{prefix}", "<|fim_suffix|>", "{suffix}", "<|fim_middle|>")`. `stop` are the
    special tokens at which an answer ends.
    """

    parts: tuple[str, ...]
    stop: tuple[str, ...] = ()
    heal: bool = False
    """Whether the last token of a prefix that ends the prompt is written again together with what follows it
    (token healing)."""


@dataclass(frozen=True, slots=True)
class InfillPrompt:
    """Code before and after a gap that the model is to fill."""

    prefix: str
    suffix: str
    template: InfillTemplate


@dataclass(frozen=True, slots=True)
class Request:
    """One generation. Immutable; cancelled by closing the stream that it makes."""

    prompt: ChatPrompt | InfillPrompt
    max_tokens: int = 512
    """The answer's bound, in tokens."""
    session: str = ""
    """What it may share a prompt cache with (same key: same kind of prompt); a hint, never an identity."""
    stop: tuple[str, ...] = ()
    """The answer ends before the first of these; the stop string itself is not sent."""
    temperature: float = 0.0
    """0 is greedy and deterministic."""
    seed: int = 0
    json_schema: str | None = None
    """A JSON schema (as JSON text, so that the request stays hashable) that the answer is constrained to."""
    logit_bias: tuple[tuple[str, float], ...] = ()
    """Texts of one token each, and what is added to their logits; a text of several tokens is left alone."""
    prediction: str = ""
    """Text that the answer probably repeats in parts (the code that is rewritten), or is. An engine may guess
    from it and verify several tokens at once; the answer stays what it would be without."""
    priority: Priority = Priority.FOREGROUND
    deadline_s: float | None = None
    """Seconds from the moment the request is made until it ends with `FinishReason.DEADLINE`."""

    @staticmethod
    def schema(schema: Mapping[str, Any]) -> str:
        """A JSON schema as the text that `json_schema` wants."""
        return json.dumps(schema, separators=(",", ":"))


class FinishReason(StrEnum):
    """Why a stream ended by itself."""

    STOP = "stop"
    """The model ended its answer, or a stop string was met."""
    LENGTH = "length"
    """`max_tokens` or the context's end was reached."""
    DEADLINE = "deadline"
    """The request's deadline passed; what was made so far has been sent."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What one request cost."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Of the prompt's tokens, those that came from the cache."""
    completion_tokens: int = 0
    queue_s: float = 0.0
    prompt_s: float = 0.0
    decode_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an answer. The last one of a stream has `finish` and `usage` (its text may be empty)."""

    text: str
    tokens: int = 0
    """Tokens made so far for this request."""
    finish: FinishReason | None = None
    usage: Usage | None = None
    stand_in: bool = False
    """Of the last piece: whether another engine than the one that was chosen made the answer."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine can do, once it is known (before the model is loaded: what its provider promises)."""

    chat: bool = True
    infill: bool = False
    json_schema: bool = False
    context_tokens: int = 4096
    parallel: int = 1
    """How many requests it works at at the same time; what is beyond that waits."""
    local: bool = True
    """Whether everything stays on this machine."""


class EngineState(StrEnum):
    """Where an engine is in its life."""

    IDLE = "idle"
    """Nothing loaded; the first request loads it."""
    LOADING = "loading"
    READY = "ready"
    BUSY = "busy"
    FAILED = "failed"
    """The last start failed; the next request tries again after the back-off."""
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """A readable picture of an engine at one moment."""

    state: EngineState
    name: str
    """Which engine: `native`, `mock`, …"""
    model: str | None = None
    device: str | None = None
    queued: int = 0
    running: int = 0
    prompt_tokens_per_s: float | None = None
    decode_tokens_per_s: float | None = None
    memory_bytes: int | None = None
    detail: str = ""
    """Free text for people: why it failed, what it is doing."""
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any])

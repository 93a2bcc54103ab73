"""The messages of an engine that the client runs, typed. `docs/protocol.md` documents them."""

from __future__ import annotations

from typing import Any, Final, Literal

import attrs

ENGINE_ANNOUNCE: Final = "nexo/engine/announce"
ENGINE_GENERATE: Final = "nexo/engine/generate"
ENGINE_PIECE: Final = "nexo/engine/piece"
ENGINE_END: Final = "nexo/engine/end"
ENGINE_CANCEL: Final = "nexo/engine/cancel"
ENGINE_COUNT_TOKENS: Final = "nexo/engine/countTokens"

State = Literal["idle", "loading", "ready", "failed"]
Ending = Literal["stop", "length", "failed", "refused", "prompt-too-long"]


@attrs.frozen
class EngineAnnounceParams:
    """What the client's engine is and can do from now on; `available` false: there is none (any more)."""

    available: bool
    model: str | None = None
    device: str | None = None
    state: State = "ready"
    detail: str = ""
    context_tokens: int = 4096
    chat: bool = True
    infill: bool = False
    json_schema: bool = False
    answer_prefix: bool = False
    counts_tokens: bool = False
    parallel: int = 1
    local: bool = False


@attrs.frozen
class EngineMessage:
    """One message of a conversation."""

    role: str
    content: str


@attrs.frozen
class EngineInfill:
    """A gap to fill, and how the server's template has it: special tokens around the two slots."""

    prefix: str
    suffix: str
    parts: list[str]
    stop: list[str]


@attrs.frozen
class EngineBias:
    """What is added to the logit of the one token that `text` is."""

    text: str
    bias: float


@attrs.frozen
class EngineGenerateParams:
    """Make an answer: to `messages`, or in the gap of `infill`."""

    id: int
    priority: str
    session: str
    messages: list[EngineMessage] | None
    answer_prefix: str
    infill: EngineInfill | None
    max_tokens: int
    stop: list[str]
    temperature: float
    seed: int
    json_schema: Any
    logit_bias: list[EngineBias]


@attrs.frozen
class EnginePieceParams:
    """More of an answer: `sequence` counts from 0; `tokens` is how many were made so far, if known."""

    id: int
    sequence: int
    text: str
    tokens: int = 0


@attrs.frozen
class EngineEndParams:
    """The last word on an answer. `sequence` is the number of pieces that were sent."""

    id: int
    finish: Ending
    sequence: int = 0
    message: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0


@attrs.frozen
class EngineCancelParams:
    """Nothing more is wanted of this answer."""

    id: int


@attrs.frozen
class EngineCountParams:
    """How many tokens is `text`?"""

    text: str


@attrs.frozen
class EngineCountResult:
    """So many."""

    tokens: int


FROM_CLIENT: Final = (EngineAnnounceParams, EnginePieceParams, EngineEndParams)
"""What a client sends by itself. It is taken only if its values have exactly the types that stand here: left
alone, cattrs would make a true `local` of the text "false"."""
ENGINE_CLASSES: Final = (
    *FROM_CLIENT,
    EngineMessage,
    EngineInfill,
    EngineBias,
    EngineGenerateParams,
    EngineCancelParams,
    EngineCountParams,
    EngineCountResult,
)

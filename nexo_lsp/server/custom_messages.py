"""The few messages beyond LSP, typed. `docs/protocol.md` documents them; a test keeps the two equal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import NoneType
from typing import Any, Final, Literal, cast, get_type_hints

import attrs
from cattrs import Converter
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn, override
from lsprotocol import types

from nexo_lsp.server import engine_messages as engine

REVIEW: Final = "nexo/review"
STATUS: Final = "nexo/status"
PROPOSAL: Final = "nexo/proposal"
PROPOSAL_ACCEPT: Final = "nexo/proposal/accept"
PROPOSAL_DISCARD: Final = "nexo/proposal/discard"


@attrs.frozen
class ReviewParams:
    """Review this document at its present version."""

    text_document: types.TextDocumentIdentifier


@attrs.frozen
class ReviewResult:
    """The review of `version` is complete (or was stopped: `complete` is false)."""

    findings: int
    version: int
    complete: bool


@attrs.frozen
class MetricsParams:
    """How the engine does; sums count since the model was loaded. `llama.messages.Metrics` explains each."""

    waiting: int
    batch_fill: float | None
    prompt_tokens: int
    cached_tokens: int
    drafted_tokens: int
    accepted_tokens: int
    overtaken: int
    cancel_ms: float | None
    cells: int
    swapped_bytes: int
    threads: int


@attrs.frozen
class StatusParams:
    """The engine and the model, at one moment."""

    enabled: bool
    engine: str
    state: str
    model: str | None
    device: str | None
    queued: int
    running: int
    prompt_tokens_per_second: float | None
    decode_tokens_per_second: float | None
    memory_bytes: int | None
    detail: str
    reasons: list[str]
    metrics: MetricsParams | None = None


@attrs.frozen
class ProposalParams:
    """Generated code on its way, or (`done`) complete, or failed (`error`)."""

    id: str
    uri: str
    version: int
    range: types.Range
    title: str
    text: str
    done: bool
    error: str | None = None


@attrs.frozen
class ProposalId:
    """Which proposal is accepted or discarded."""

    id: str


@attrs.frozen
class AcceptResult:
    """Whether the client applied the edit of an accepted proposal, and why not."""

    applied: bool
    reason: str | None = None


@attrs.frozen
class TargetArguments:
    """The argument of `nexo.action`: what was offered, and where (code points) in which version."""

    uri: str
    version: int
    kind: str
    title: str
    start: int
    end: int
    finding_id: str | None = None


@attrs.frozen
class FindingArguments:
    """The argument of `nexo.dismiss`."""

    uri: str
    finding_id: str


@attrs.frozen
class DocumentArguments:
    """The argument of `nexo.review`."""

    uri: str


@attrs.frozen
class JobArguments:
    """The argument of `nexo.stop`, and the answer of every command that starts a job."""

    job_id: str


@dataclass(frozen=True, slots=True)
class CustomMessage:
    """One message of ours: who sends it, and what it carries."""

    method: str
    direction: Literal["client to server", "server to client"]
    kind: Literal["request", "notification"]
    params: type[Any] | None
    result: type[Any] | None


MESSAGES: Final = (
    CustomMessage(REVIEW, "client to server", "request", ReviewParams, ReviewResult),
    CustomMessage(STATUS, "client to server", "request", None, StatusParams),
    CustomMessage(STATUS, "server to client", "notification", StatusParams, None),
    CustomMessage(PROPOSAL, "server to client", "notification", ProposalParams, None),
    CustomMessage(PROPOSAL_ACCEPT, "client to server", "request", ProposalId, AcceptResult),
    CustomMessage(PROPOSAL_DISCARD, "client to server", "request", ProposalId, None),
    CustomMessage(
        engine.ENGINE_ANNOUNCE, "client to server", "notification", engine.EngineAnnounceParams, None
    ),
    CustomMessage(
        engine.ENGINE_GENERATE, "server to client", "notification", engine.EngineGenerateParams, None
    ),
    CustomMessage(engine.ENGINE_PIECE, "client to server", "notification", engine.EnginePieceParams, None),
    CustomMessage(engine.ENGINE_END, "client to server", "notification", engine.EngineEndParams, None),
    CustomMessage(engine.ENGINE_CANCEL, "server to client", "notification", engine.EngineCancelParams, None),
    CustomMessage(
        engine.ENGINE_COUNT_TOKENS,
        "server to client",
        "request",
        engine.EngineCountParams,
        engine.EngineCountResult,
    ),
)

PARAMS: Final = {
    (message.method, message.kind): message.params
    for message in MESSAGES
    if message.direction == "client to server" and message.params is not None
}
"""What the client's messages carry."""

_CLASSES: Final = (
    ReviewParams,
    ReviewResult,
    MetricsParams,
    StatusParams,
    ProposalParams,
    ProposalId,
    AcceptResult,
    TargetArguments,
    FindingArguments,
    DocumentArguments,
    JobArguments,
    *engine.ENGINE_CLASSES,
)


_KINDS: Final[Mapping[object, tuple[type, ...]]] = {
    bool: (bool,),
    int: (int,),
    str: (str,),
    str | None: (str, NoneType),
}


def wire_name(name: str) -> str:
    """`text_document` is `textDocument` on the wire."""
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def register_hooks(converter: Converter) -> Converter:
    """Teach `converter` our classes, with their names as they are on the wire."""
    for cls in _CLASSES:
        names = {field.name: override(rename=wire_name(field.name)) for field in attrs.fields(cls)}
        converter.register_structure_hook(cls, make_dict_structure_fn(cls, converter, **names))  # pyright: ignore[reportArgumentType]
        converter.register_unstructure_hook(cls, make_dict_unstructure_fn(cls, converter, **names))  # pyright: ignore[reportArgumentType]
    for cls in engine.FROM_CLIENT:
        _be_exact(cls, converter)
    return converter


def _be_exact(cls: type[Any], converter: Converter) -> None:
    """Have values of `cls` refused (`TypeError`) that are of other types than it declares."""
    lenient = converter.get_structure_hook(cls)
    hints = get_type_hints(cls)
    kinds = {wire_name(name): _KINDS[hint] for name, hint in hints.items() if hint in _KINDS}

    def structure(value: object, kind: Any) -> Any:
        for name, given in cast("Mapping[str, object]", value if isinstance(value, dict) else {}).items():
            if name in kinds and type(given) not in kinds[name]:
                raise TypeError(f"{name} cannot be of type {type(given).__name__}")
        return lenient(value, kind)

    converter.register_structure_hook(cls, structure)

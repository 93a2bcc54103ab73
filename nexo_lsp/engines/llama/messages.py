"""What the server's side and the worker say to each other: the only module that both share.

One message is one line of JSON. Everything is a frozen dataclass with a `kind`, so that a reader can `match`
on the class. A line that is not a message raises `BadMessage` in `decode_*`; it never stops a process.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Annotated, Literal, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from nexo_lsp.errors import EngineError
from nexo_lsp.generation import FinishReason, Request, Usage


class BadMessage(EngineError):
    """A line that is no message of ours (native noise, another version, a damaged pipe)."""


class LoadFailure(StrEnum):
    """Why a model could not be loaded."""

    MISSING = "missing"
    FOREIGN = "foreign"
    DAMAGED = "damaged"
    MEMORY = "memory"
    LIBRARY = "library"


class Failure(StrEnum):
    """Why a request failed inside a healthy worker."""

    PROMPT_TOO_LONG = "prompt-too-long"
    BAD_REQUEST = "bad-request"
    INTERNAL = "internal"


@dataclass(frozen=True, slots=True)
class Load:
    """Load this model. `threads` 0, `gpu_layers` None (-1: all) and `kv_type` "" let the worker choose."""

    path: str
    context_tokens: int
    threads: int = 0
    sequences: int = 8
    gpu_layers: int | None = None
    kv_type: Literal["", "f16", "q8_0"] = ""
    memory_limit_mb: int = 0
    """What the worker may take in all, in MiB; context, sequences and cells follow from it. 0: no limit."""
    prefix_folder: str = ""
    """Where evaluated static prompt prefixes are kept between two runs; empty keeps none."""
    draft_path: str = ""
    """A smaller model of the same vocabulary that may draft; empty: none."""
    unpack_folder: str = ""
    """Where a copy of the model with its weights in whole bytes may be kept (`unpacking.py`); empty: none."""
    kind: Literal["load"] = "load"


@dataclass(frozen=True, slots=True)
class Start:
    """Begin this generation; `request.deadline_s` counts from when the worker reads this."""

    id: int
    request: Request
    client: int = 0
    """Who asks: among equally urgent requests the clients are served in turn."""
    kind: Literal["start"] = "start"


@dataclass(frozen=True, slots=True)
class Cancel:
    """Stop working on `id`; nothing more is said about it. Unknown ids are fine (it may just have ended)."""

    id: int
    kind: Literal["cancel"] = "cancel"


@dataclass(frozen=True, slots=True)
class CountTokens:
    """How many tokens is `text`?"""

    id: int
    text: str
    kind: Literal["count"] = "count"


@dataclass(frozen=True, slots=True)
class Unload:
    """Let go of the model and its memory; `Load` may follow."""

    kind: Literal["unload"] = "unload"


@dataclass(frozen=True, slots=True)
class Shutdown:
    """End the worker."""

    kind: Literal["shutdown"] = "shutdown"


@dataclass(frozen=True, slots=True)
class Ready:
    """The worker listens; nothing is loaded yet."""

    pid: int
    kind: Literal["ready"] = "ready"


@dataclass(frozen=True, slots=True)
class Loaded:
    """The model is loaded, and this is what it is."""

    description: str
    context_tokens: int
    chat: bool
    infill: bool
    device: str
    load_s: float
    sequences: int = 8
    kv_type: str = "f16"
    gpu_layers: int = 0
    notes: tuple[str, ...] = ()
    """What is less than was asked for, each with its reason; for people."""
    weights: str = ""
    """How the weights are kept, and why, where there was a choice; for people."""
    kind: Literal["loaded"] = "loaded"


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """The model could not be loaded; `message` is one sentence for the user."""

    failure: LoadFailure
    message: str
    kind: Literal["load-failed"] = "load-failed"


@dataclass(frozen=True, slots=True)
class Delta:
    """More text of an answer; `tokens` made so far."""

    id: int
    text: str
    tokens: int
    kind: Literal["delta"] = "delta"


@dataclass(frozen=True, slots=True)
class Done:
    """The answer's end, with the text that was still held back."""

    id: int
    text: str
    tokens: int
    finish: FinishReason
    usage: Usage
    kind: Literal["done"] = "done"


@dataclass(frozen=True, slots=True)
class Failed:
    """The request failed; the worker goes on."""

    id: int
    failure: Failure
    message: str
    kind: Literal["failed"] = "failed"


@dataclass(frozen=True, slots=True)
class Count:
    """The answer to `CountTokens`."""

    id: int
    tokens: int
    kind: Literal["counted"] = "counted"


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Still alive and at work; `progress` from 0 to 1 while loading."""

    progress: float | None = None
    kind: Literal["heartbeat"] = "heartbeat"


@dataclass(frozen=True, slots=True)
class Metrics:
    """What a person wants to know about an engine that feels slow; sums count since the load."""

    waiting: int = 0
    """Requests that began and wait for more urgent ones."""
    batch_fill: float | None = None
    """Sequences that are written together in one step, as a moving average."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Of `prompt_tokens`, those that did not have to be evaluated."""
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    """Of `drafted_tokens`, those that the model would have written itself."""
    overtaken: int = 0
    """Steps that were given up for something more urgent."""
    cancel_ms: float | None = None
    """From reading a cancel to the next step, as a moving average."""
    cells: int = 0
    """Tokens that the cache holds, each counted once however many sequences share it."""
    swapped_bytes: int = 0
    """Cached prompts that were moved out of the engine's memory."""
    threads: int = 0
    """Threads for single tokens at this moment."""


@dataclass(frozen=True, slots=True)
class Stats:
    """How the worker is doing: jobs, speeds (moving averages), and the cache; sums count since the load."""

    queued: int
    running: int
    prompt_tokens_per_s: float | None
    decode_tokens_per_s: float | None
    cached_sequences: int
    metrics: Metrics = field(default_factory=Metrics)
    kind: Literal["stats"] = "stats"


@dataclass(frozen=True, slots=True)
class Rejected:
    """The worker was told something that it does not understand."""

    message: str
    kind: Literal["rejected"] = "rejected"


_T = TypeVar("_T")

ToWorker = Load | Start | Cancel | CountTokens | Unload | Shutdown
FromWorker = Ready | Loaded | LoadFailed | Delta | Done | Failed | Count | Heartbeat | Stats | Rejected

_to_worker: TypeAdapter[ToWorker] = TypeAdapter(Annotated[ToWorker, Field(discriminator="kind")])
_from_worker: TypeAdapter[FromWorker] = TypeAdapter(Annotated[FromWorker, Field(discriminator="kind")])


def encode(message: ToWorker | FromWorker) -> bytes:
    """The line of `message`, with its line end. ASCII only, so that lone surrogates survive as escapes."""
    return json.dumps(asdict(message), separators=(",", ":")).encode("ascii") + b"\n"


def decode_to_worker(line: bytes) -> ToWorker:
    """The message that the server's side wrote. Raises `BadMessage`."""
    return _decode(_to_worker, line)


def decode_from_worker(line: bytes) -> FromWorker:
    """The message that the worker wrote. Raises `BadMessage`."""
    return _decode(_from_worker, line)


def _decode(adapter: TypeAdapter[_T], line: bytes) -> _T:
    try:
        return adapter.validate_python(json.loads(line))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "message"
        raise BadMessage(f"not a message: {where}: {first['msg']}") from None
    except (ValueError, RecursionError) as error:
        raise BadMessage(f"not a message: {error}") from None

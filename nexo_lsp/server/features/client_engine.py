"""`nexo/engine/*`: an engine that the client runs, asked over this connection."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, cast

from cattrs import BaseValidationError, transform_error

from nexo_lsp.engines.client_port import Announcement, End
from nexo_lsp.errors import EngineError, EngineUnavailable, PromptTooLong
from nexo_lsp.generation import EngineState, FinishReason, InfillPrompt, Request
from nexo_lsp.server.capabilities import dig
from nexo_lsp.server.engine_messages import (
    ENGINE_CANCEL,
    ENGINE_COUNT_TOKENS,
    ENGINE_GENERATE,
    EngineAnnounceParams,
    EngineBias,
    EngineCancelParams,
    EngineCountParams,
    EngineEndParams,
    EngineGenerateParams,
    EngineInfill,
    EngineMessage,
    EnginePieceParams,
)

if TYPE_CHECKING:
    from nexo_lsp.server.language_server import NexoServer

log = logging.getLogger(__name__)

_COUNT_S: Final = 5.0
_MOST_PARALLEL: Final = 64
_LONGEST_TEXT: Final = 300
"""Of a client's words for people, so many characters are shown."""
_FINISH: Final = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH}
_FAILURES: Final[Mapping[str, tuple[type[EngineError], str]]] = {
    "failed": (EngineError, "The editor's engine failed"),
    "refused": (EngineUnavailable, "The editor's engine may not be used"),
    "prompt-too-long": (PromptTooLong, "The prompt is too long for the editor's engine"),
}


class EditorLink:
    """The `ClientLink` of one connection. Writing is a line in a queue, so nothing here blocks."""

    def __init__(self, server: NexoServer) -> None:
        self._server = server

    def start(self, request_id: int, request: Request) -> None:
        """`nexo/engine/generate`."""
        self._server.protocol.notify(ENGINE_GENERATE, generate_params(request_id, request))

    def cancel(self, request_id: int) -> None:
        """`nexo/engine/cancel`."""
        self._server.protocol.notify(ENGINE_CANCEL, EngineCancelParams(request_id))

    async def count_tokens(self, text: str) -> int | None:
        """`nexo/engine/countTokens`; None if the client fails at it."""
        sent = self._server.protocol.send_request_async(ENGINE_COUNT_TOKENS, EngineCountParams(text))
        answer: asyncio.Future[object] = asyncio.ensure_future(sent)
        # Not cancelled when it takes too long: pygls could not handle an answer that comes after that.
        answer.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.wait({answer}, timeout=_COUNT_S)
        if not answer.done() or answer.cancelled() or answer.exception() is not None:
            log.warning("the client's engine did not count tokens")
            return None
        tokens: object = getattr(answer.result(), "tokens", None)
        return tokens if isinstance(tokens, int) and tokens >= 0 else None


def begin(server: NexoServer, params: Mapping[str, Any]) -> None:
    """Take in `initialize`: a client may announce its engine in its capabilities already."""
    server.app.client_port.connect(EditorLink(server))
    declared = dig(params, "capabilities", "experimental", "nexo", "engine")
    if isinstance(declared, Mapping):
        try:
            announced(server, server.structure(cast("object", declared), EngineAnnounceParams))
        except (BaseValidationError, TypeError, ValueError) as error:
            log.warning("the engine in the client's capabilities: %s", "; ".join(transform_error(error)))


def announced(server: NexoServer, params: EngineAnnounceParams) -> None:
    """`nexo/engine/announce`."""
    server.app.client_port.announce(_announcement(params) if params.available else None)


def piece(server: NexoServer, params: EnginePieceParams) -> None:
    """`nexo/engine/piece`."""
    server.app.client_port.piece(params.id, params.sequence, params.text, params.tokens)


def ended(server: NexoServer, params: EngineEndParams) -> None:
    """`nexo/engine/end`."""
    port = server.app.client_port
    if (finish := _FINISH.get(params.finish)) is not None:
        counts = (params.prompt_tokens, params.cached_tokens, params.completion_tokens)
        port.ended(params.id, params.sequence, End(finish, *(max(0, count) for count in counts)))
    else:
        kind, what = _FAILURES[params.finish]
        detail = _short(params.message).rstrip(".")
        port.failed(params.id, kind(f"{what}: {detail}." if detail else f"{what}."))


def _announcement(params: EngineAnnounceParams) -> Announcement:
    return Announcement(
        model=_short(params.model) if params.model else None,
        device=_short(params.device) if params.device else None,
        state=EngineState(params.state),
        detail=_short(params.detail),
        context_tokens=max(0, params.context_tokens),
        chat=params.chat,
        infill=params.infill,
        json_schema=params.json_schema,
        answer_prefix=params.answer_prefix,
        counts_tokens=params.counts_tokens,
        parallel=min(max(1, params.parallel), _MOST_PARALLEL),
        local=params.local,
    )


def _short(text: str) -> str:
    return " ".join(text.split())[:_LONGEST_TEXT]


def generate_params(request_id: int, request: Request) -> EngineGenerateParams:
    """`request` as it goes over the wire."""
    prompt = request.prompt
    infill = isinstance(prompt, InfillPrompt)
    return EngineGenerateParams(
        id=request_id,
        priority=request.priority.name.lower(),
        session=request.session,
        messages=None if infill else [EngineMessage(m.role.value, m.content) for m in prompt.messages],
        answer_prefix="" if infill else prompt.answer_prefix,
        infill=EngineInfill(
            prompt.prefix, prompt.suffix, list(prompt.template.parts), list(prompt.template.stop)
        )
        if infill
        else None,
        max_tokens=request.max_tokens,
        stop=list(request.stop),
        temperature=request.temperature,
        seed=request.seed,
        json_schema=json.loads(request.json_schema) if request.json_schema is not None else None,
        logit_bias=[EngineBias(text, bias) for text, bias in request.logit_bias],
    )

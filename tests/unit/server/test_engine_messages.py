"""The messages of a client's engine on the wire: exact types come in, plain JSON goes out."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cattrs import BaseValidationError
from pygls.protocol import default_converter

from nexo_lsp.generation import (
    ChatPrompt,
    InfillPrompt,
    InfillTemplate,
    Message,
    Priority,
    Request,
    Role,
)
from nexo_lsp.server.custom_messages import register_hooks
from nexo_lsp.server.engine_messages import EngineAnnounceParams, EngineEndParams, EnginePieceParams
from nexo_lsp.server.features.client_engine import generate_params

CONVERTER = register_hooks(default_converter())

PIECE = {"id": 1, "sequence": 0, "text": "x"}


@pytest.mark.parametrize(
    ("cls", "value"),
    [
        (EngineAnnounceParams, {}),
        (EngineAnnounceParams, {"available": "true"}),
        (EngineAnnounceParams, {"available": 1}),
        (EngineAnnounceParams, {"available": True, "local": "false"}),
        (EngineAnnounceParams, {"available": True, "local": 1}),
        (EngineAnnounceParams, {"available": True, "local": None}),
        (EngineAnnounceParams, {"available": True, "parallel": True}),
        (EngineAnnounceParams, {"available": True, "contextTokens": "8192"}),
        (EngineAnnounceParams, {"available": True, "model": 7}),
        (EngineAnnounceParams, {"available": True, "state": "dancing"}),
        (EnginePieceParams, {**PIECE, "id": "1"}),
        (EnginePieceParams, {**PIECE, "sequence": 0.5}),
        (EnginePieceParams, {**PIECE, "text": None}),
        (EnginePieceParams, {**PIECE, "text": ["x"]}),
        (EnginePieceParams, None),
        (EnginePieceParams, "text"),
        (EngineEndParams, {"id": 1}),
        (EngineEndParams, {"id": 1, "finish": "cancelled"}),
    ],
)
def test_what_is_not_exact_is_refused(cls: type[Any], value: object) -> None:
    with pytest.raises((BaseValidationError, TypeError)):
        CONVERTER.structure(value, cls)


def test_unknown_fields_are_passed_over_and_absent_ones_promise_nothing() -> None:
    params = CONVERTER.structure({"available": True, "tomorrow": 1}, EngineAnnounceParams)
    assert params == EngineAnnounceParams(True)
    assert (params.local, params.infill, params.json_schema, params.parallel) == (False, False, False, 1)


def test_a_piece_is_read() -> None:
    assert CONVERTER.structure({**PIECE, "tokens": 3}, EnginePieceParams) == EnginePieceParams(1, 0, "x", 3)


def test_a_conversation_is_sent_as_plain_json() -> None:
    request = Request(
        ChatPrompt((Message(Role.SYSTEM, "s"), Message(Role.USER, "u \ud800")), answer_prefix="p"),
        max_tokens=9,
        session="review",
        stop=("x",),
        json_schema='{"type":"array"}',
        logit_bias=(("y", -1.5),),
        priority=Priority.BACKGROUND,
    )
    wire = CONVERTER.unstructure(generate_params(4, request))
    assert json.loads(json.dumps(wire)) == {
        "id": 4,
        "priority": "background",
        "session": "review",
        "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u \ud800"}],
        "answerPrefix": "p",
        "infill": None,
        "maxTokens": 9,
        "stop": ["x"],
        "temperature": 0.0,
        "seed": 0,
        "jsonSchema": {"type": "array"},
        "logitBias": [{"text": "y", "bias": -1.5}],
    }


def test_a_gap_is_sent_with_its_template() -> None:
    template = InfillTemplate(("<P>", "{prefix}", "<S>", "{suffix}", "<M>"), ("<E>",))
    wire = CONVERTER.unstructure(generate_params(4, Request(InfillPrompt("a", "b", template))))
    assert wire["messages"] is None
    assert wire["infill"] == {
        "prefix": "a",
        "suffix": "b",
        "parts": ["<P>", "{prefix}", "<S>", "{suffix}", "<M>"],
        "stop": ["<E>"],
    }

"""Requests that tests make, and readers for their streams."""

from __future__ import annotations

import json

from nexo_lsp.generation import (
    ChatPrompt,
    InfillPrompt,
    InfillTemplate,
    Message,
    Piece,
    Priority,
    Request,
    Role,
)

INFILL = InfillTemplate(
    ("<|fim_prefix|>", "{prefix}", "<|fim_suffix|>", "{suffix}", "<|fim_middle|>"), ("<|endoftext|>",)
)


def chat(text: str = "hello", **limits: object) -> Request:
    return Request(ChatPrompt((Message(Role.USER, text),)), **{"max_tokens": 40, **limits})


def infill(prefix: str, suffix: str, **limits: object) -> Request:
    return Request(InfillPrompt(prefix, suffix, INFILL), **{"max_tokens": 40, **limits})


def saying(text: str, **limits: object) -> Request:
    """A request that any model answers with `text` (as JSON), because nothing else is allowed."""
    return chat(json_schema=json.dumps({"const": text}), **{"max_tokens": 400, **limits})


def background(text: str, **limits: object) -> Request:
    return chat(text, priority=Priority.BACKGROUND, **limits)


async def collect(stream) -> tuple[str, Piece]:
    """The whole text of a stream, and its last piece."""
    pieces = [piece async for piece in stream]
    return "".join(piece.text for piece in pieces), pieces[-1]

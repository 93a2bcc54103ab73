"""The bodies of requests: the same question in each dialect."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from nexo_lsp.engines.remote.dialect import (
    Dialect,
    InfillWay,
    PrefillWay,
    SchemaWay,
    template_for,
)
from nexo_lsp.generation import ChatPrompt, InfillPrompt, InfillTemplate, Request, Role

_BEGIN = "Begin your answer with exactly the following text, and go on from where it ends:\n"
_SCHEMA = "Answer with JSON alone, no other words, that fits this JSON schema:\n"


@dataclass(frozen=True, slots=True)
class Manner:
    """In which of the ways of its dialect a server is asked; what it refuses is not asked of it again."""

    schema: SchemaWay
    prefill: PrefillWay
    infill: InfillWay | None
    """None: it fills no gaps."""
    plain: bool = False
    """Without what only some know: seed, usage, and `max_tokens` under its newer name."""

    @staticmethod
    def first(dialect: Dialect) -> Manner:
        """The ways that are tried first."""
        return Manner(dialect.schema[0], dialect.prefill[0], next(iter(dialect.infill), None))

    def weaker(self, dialect: Dialect, request: Request) -> Manner | None:
        """What to try when a server did not take `request` in this manner; None: there is no other."""
        if isinstance(request.prompt, InfillPrompt):
            if self.infill is None:
                return None
            ways = dialect.infill[dialect.infill.index(self.infill) + 1 :]
            return replace(self, infill=ways[0] if ways else None)
        if request.json_schema is not None and self.schema is not SchemaWay.WORDS:
            return replace(self, schema=dialect.schema[dialect.schema.index(self.schema) + 1])
        if request.prompt.answer_prefix and self.prefill is not PrefillWay.WORDS:
            return replace(self, prefill=PrefillWay.WORDS)
        return None if self.plain else replace(self, plain=True)


@dataclass(frozen=True, slots=True)
class Asked:
    """One HTTP request."""

    path: str
    at_root: bool
    """Whether the path is the server's own, or one of OpenAI's protocol."""
    body: Mapping[str, Any]


def chat(request: Request, prompt: ChatPrompt, manner: Manner, dialect: Dialect, model: str) -> Asked:
    """The request for an answer in a conversation."""
    messages = [{"role": message.role.value, "content": message.content} for message in prompt.messages]
    body = _common(request, manner, dialect, model, request.stop)
    if dialect.template_words and not manner.plain:
        body["chat_template_kwargs"] = {"enable_thinking": False}
    if request.json_schema is not None:
        _hold_to_schema(body, messages, json.loads(request.json_schema), manner.schema)
    if prompt.answer_prefix:
        if manner.prefill is PrefillWay.WORDS:
            _add_words(messages, _BEGIN + prompt.answer_prefix)
        else:
            messages.append({"role": Role.ASSISTANT.value, "content": prompt.answer_prefix})
        if manner.prefill is PrefillWay.FLAGGED:
            body |= {"continue_final_message": True, "add_generation_prompt": False}
    return Asked("/chat/completions", False, body | {"messages": messages})


def infill(
    request: Request, prompt: InfillPrompt, manner: Manner, dialect: Dialect, model: str
) -> Asked | None:
    """The request for what stands in a gap; None where the server, or its model, fills none."""
    match manner.infill:
        case None:
            return None
        case InfillWay.INFILL:
            body = _common(request, manner, dialect, model, request.stop)
            return Asked("/infill", True, _infill(body, request, prompt))
        case InfillWay.SUFFIX:
            body = _common(request, manner, dialect, model, request.stop)
            return Asked("/completions", False, body | {"prompt": prompt.prefix, "suffix": prompt.suffix})
        case InfillWay.TEMPLATE:
            template = template_for(model, prompt.template)
            if template is None:
                return None
            # Among the first: not every server takes all.
            body = _common(request, manner, dialect, model, (*request.stop, *template.stop))
            return Asked("/completions", False, body | {"prompt": _written(template, prompt)})


def _infill(body: dict[str, Any], request: Request, prompt: InfillPrompt) -> dict[str, Any]:
    own = {"input_prefix": prompt.prefix, "input_suffix": prompt.suffix, "n_predict": request.max_tokens}
    return {key: value for key, value in body.items() if key not in {"max_tokens", "stream_options"}} | own


def _written(template: InfillTemplate, prompt: InfillPrompt) -> str:
    slots = {"{prefix}": prompt.prefix, "{suffix}": prompt.suffix}
    return "".join(slots.get(part, part) for part in template.parts)


def _common(
    request: Request, manner: Manner, dialect: Dialect, model: str, stop: tuple[str, ...]
) -> dict[str, Any]:
    body: dict[str, Any] = {"stream": True, "temperature": request.temperature}
    if model:
        body["model"] = model
    if manner.plain:
        body["max_completion_tokens"] = request.max_tokens
        del body["temperature"]
    else:
        body |= {
            "max_tokens": request.max_tokens,
            "seed": request.seed,
            "stream_options": {"include_usage": True},
        }
    if stop:
        body["stop"] = list(stop[: dialect.most_stops])
    if dialect.bias_texts and request.logit_bias:
        body["logit_bias"] = [list(item) for item in request.logit_bias]
    if dialect.llama:
        body["cache_prompt"] = True
    return body


def _hold_to_schema(
    body: dict[str, Any], messages: list[dict[str, str]], schema: object, way: SchemaWay
) -> None:
    match way:
        case SchemaWay.RESPONSE_FORMAT:
            named = {"name": "answer", "schema": schema}
            body["response_format"] = {"type": "json_schema", "json_schema": named}
        case SchemaWay.JSON_OBJECT:
            body["response_format"] = {"type": "json_object", "schema": schema}
        case SchemaWay.STRUCTURED:
            body["structured_outputs"] = {"json": schema}
        case SchemaWay.GUIDED:
            body["guided_json"] = schema
        case SchemaWay.WORDS:
            _add_words(messages, _SCHEMA + json.dumps(schema, ensure_ascii=False))


def _add_words(messages: list[dict[str, str]], words: str) -> None:
    """Add `words` to what the user said last."""
    for message in reversed(messages):
        if message["role"] == Role.USER.value:
            message["content"] += f"\n\n{words}"
            return
    messages.append({"role": Role.USER.value, "content": words})

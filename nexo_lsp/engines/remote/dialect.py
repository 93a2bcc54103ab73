"""What kinds of servers there are, and how each wants to be asked for what the protocol does not settle."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from nexo_lsp.engines.remote.shapes import as_count, as_list, as_object, as_text
from nexo_lsp.generation import InfillTemplate


class Kind(StrEnum):
    """Which program answers; the words are for people."""

    LLAMA_SERVER = "llama-server"
    LLAMA_PYTHON = "llama_cpp.server"
    VLLM = "vLLM"
    SGLANG = "SGLang"
    OLLAMA = "Ollama"
    LM_STUDIO = "LM Studio"
    UNKNOWN = "OpenAI-compatible"


class SchemaWay(StrEnum):
    """How an answer is held to a JSON schema."""

    RESPONSE_FORMAT = "response_format json_schema"
    JSON_OBJECT = "response_format json_object with a schema"
    STRUCTURED = "structured_outputs"
    GUIDED = "guided_json"
    WORDS = "asked for in words"


class PrefillWay(StrEnum):
    """How an answer is made to begin with a text."""

    MESSAGE = "a last message of the assistant's"
    FLAGGED = "continue_final_message"
    WORDS = "asked for in words"


class InfillWay(StrEnum):
    """How a gap is filled."""

    INFILL = "/infill"
    SUFFIX = "/completions with a suffix"
    TEMPLATE = "/completions with the model's own tokens"


class Counting(StrEnum):
    """Where tokens are counted."""

    LLAMA_SERVER = "/tokenize of llama-server"
    VLLM = "/tokenize of vLLM"
    LLAMA_PYTHON = "/extras/tokenize/count"
    ESTIMATE = "estimated"


@dataclass(frozen=True, slots=True)
class Dialect:
    """What is tried with a kind of server; of several ways the first that it takes is kept."""

    schema: tuple[SchemaWay, ...] = (SchemaWay.RESPONSE_FORMAT, SchemaWay.JSON_OBJECT, SchemaWay.WORDS)
    prefill: tuple[PrefillWay, ...] = (PrefillWay.WORDS,)
    infill: tuple[InfillWay, ...] = (InfillWay.TEMPLATE,)
    counting: Counting = Counting.ESTIMATE
    health: str = ""
    """A path below the root that says whether it can answer; empty asks for the list of models."""
    bias_texts: bool = False
    """Whether `logit_bias` takes texts."""
    most_stops: int = 4
    """How many stop strings it takes; OpenAI's own limit is 4."""
    template_words: bool = False
    """Whether it takes words for the chat template: those that switch thinking off."""
    llama: bool = False
    """Whether it takes llama.cpp's own sampling parameters."""


_CONTINUING = (PrefillWay.FLAGGED, PrefillWay.WORDS)

DIALECTS: Mapping[Kind, Dialect] = {
    Kind.LLAMA_SERVER: Dialect(
        schema=(SchemaWay.RESPONSE_FORMAT, SchemaWay.WORDS),
        prefill=(PrefillWay.MESSAGE, PrefillWay.WORDS),
        # It ignores `suffix`, so that is never asked of it.
        infill=(InfillWay.INFILL, InfillWay.TEMPLATE),
        counting=Counting.LLAMA_SERVER,
        health="/health",
        bias_texts=True,
        most_stops=64,
        template_words=True,
        llama=True,
    ),
    Kind.LLAMA_PYTHON: Dialect(
        # It refuses `json_schema` with status 500.
        schema=(SchemaWay.JSON_OBJECT, SchemaWay.WORDS),
        # What it makes of a suffix is worse than what the models' own tokens give.
        infill=(InfillWay.TEMPLATE, InfillWay.SUFFIX),
        counting=Counting.LLAMA_PYTHON,
        most_stops=64,
    ),
    Kind.VLLM: Dialect(
        schema=(SchemaWay.RESPONSE_FORMAT, SchemaWay.STRUCTURED, SchemaWay.GUIDED, SchemaWay.WORDS),
        prefill=_CONTINUING,
        counting=Counting.VLLM,
        health="/health",
        most_stops=64,
        template_words=True,
    ),
    Kind.SGLANG: Dialect(
        schema=(SchemaWay.RESPONSE_FORMAT, SchemaWay.WORDS),
        prefill=_CONTINUING,
        health="/health",
        most_stops=64,
        template_words=True,
    ),
    Kind.OLLAMA: Dialect(
        schema=(SchemaWay.RESPONSE_FORMAT, SchemaWay.WORDS),
        # Its templates leave a last message of the assistant's open; `/completions` writes the prompt into
        # one, so that a model's own tokens would stand inside a chat.
        prefill=(PrefillWay.MESSAGE, PrefillWay.WORDS),
        infill=(InfillWay.SUFFIX,),
        most_stops=64,
    ),
    Kind.LM_STUDIO: Dialect(),
    Kind.UNKNOWN: Dialect(),
}

_OWNERS: Mapping[str, Kind] = {
    "llamacpp": Kind.LLAMA_SERVER,
    "me": Kind.LLAMA_PYTHON,
    "vllm": Kind.VLLM,
    "sglang": Kind.SGLANG,
    "library": Kind.OLLAMA,
    "organization_owner": Kind.LM_STUDIO,
    "organization-owner": Kind.LM_STUDIO,
}


def kind_of(server: str, models: object) -> Kind:
    """Which program it is, by its header `Server` and by who owns the models that it lists."""
    if server.startswith("llama.cpp"):
        return Kind.LLAMA_SERVER
    owners = [str(item["owned_by"]) for item in listed(models) if "owned_by" in item]
    return next((_OWNERS[owner] for owner in owners if owner in _OWNERS), Kind.UNKNOWN)


def listed(models: object) -> list[Mapping[str, Any]]:
    """The entries of an answer to `GET /models`, whatever else is in it."""
    entries = as_list(as_object(models).get("data", models))
    return [entry for item in entries if as_text((entry := as_object(item)).get("id"))]


def context_of(entry: Mapping[str, Any]) -> int | None:
    """How many tokens a listed model takes, where the server says it (vLLM, SGLang, llama-server)."""
    said = (entry.get("max_model_len"), as_object(entry.get("meta")).get("n_ctx"))
    return next((count for value in said if (count := as_count(value))), None)


# Which tokens the families of models that know fill-in-the-middle have for it. Told by the model's name: a
# server that is sent another family's tokens takes them for text.
_FAMILIES: tuple[tuple[re.Pattern[str], InfillTemplate], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), InfillTemplate(parts, stop))
    for pattern, parts, stop in (
        (
            "qwen.*coder|codegemma",
            ("<|fim_prefix|>", "{prefix}", "<|fim_suffix|>", "{suffix}", "<|fim_middle|>"),
            ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|file_sep|>", "<|endoftext|>"),
        ),
        (
            "starcoder|granite|smollm|stable-?code",
            ("<fim_prefix>", "{prefix}", "<fim_suffix>", "{suffix}", "<fim_middle>"),
            ("<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<file_sep>", "<|endoftext|>"),
        ),
        (
            "deepseek-?coder",
            ("<｜fim▁begin｜>", "{prefix}", "<｜fim▁hole｜>", "{suffix}", "<｜fim▁end｜>"),
            ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
        ),
        ("codellama", ("<PRE> ", "{prefix}", " <SUF>", "{suffix}", " <MID>"), ("<EOT>",)),
        ("codestral|devstral", ("[SUFFIX]", "{suffix}", "[PREFIX]", "{prefix}"), ("[SUFFIX]", "[PREFIX]")),
    )
)


def template_for(model: str, asked: InfillTemplate) -> InfillTemplate | None:
    """The fill-in-the-middle prompt of the model on the server: `asked` if it is of the same family."""
    for pattern, template in _FAMILIES:
        if pattern.search(model):
            return asked if _tokens(template) <= _tokens(asked) else template
    return None


def dialect_for(kind: Kind, model: str) -> Dialect:
    """How a server of `kind` is asked; with a model's own tokens for gaps only where those are known."""
    dialect = DIALECTS[kind]
    known = any(pattern.search(model) for pattern, _ in _FAMILIES)
    return replace(
        dialect, infill=tuple(way for way in dialect.infill if known or way is not InfillWay.TEMPLATE)
    )


def _tokens(template: InfillTemplate) -> set[str]:
    return {part for part in template.parts if part not in {"{prefix}", "{suffix}"}}

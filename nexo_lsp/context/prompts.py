"""Putting what was gathered into words. The words themselves live in `templates/`."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib import resources
from typing import Any

from nexo_lsp.errors import EngineUnavailable
from nexo_lsp.generation import ChatPrompt, InfillPrompt, InfillTemplate, Message, Request, Role
from nexo_lsp.syntax.languages import Language

_LINES_AT_LEAST = 2
"""A line of fewer characters (a closing bracket) is not worth quoting."""


_OWN_FAMILY = "qwen2.5-coder"
"""Whose tokens are taken where nothing is known: several families share them."""


class Prompts:
    """The prompts of every pipeline. Texts are read when they are first needed."""

    @cached_property
    def version(self) -> str:
        """Changes whenever a text changes, so that answers to old prompts are not taken for new ones."""
        digest = hashlib.sha256()
        for name in ("review.toml", "actions.toml"):
            digest.update(_read(name).encode())
        return digest.hexdigest()[:12]

    def review(self, language: Language | None, code: str, context: str) -> ChatPrompt:
        """A review of `code`; `context` is what is known of its surroundings (may be empty).

        The examples that are always shown come first, then the pairs that resemble the code most.
        """
        texts = self._review
        messages = [Message(Role.SYSTEM, texts["system"])]
        for example in texts["example"]:
            messages += self._example(example["language"], example["code"], example["findings"])
        static = len(messages)
        for pair in self._pairs_for(code):
            messages += self._example(pair["language"], pair["defect"], [pair["finding"]])
            messages += self._example(pair["language"], pair["cure"], [])
        fence = fence_of(language)
        shown = _fill(texts["context"], fence=fence, text=context) if context else ""
        messages.append(Message(Role.USER, _fill(texts["user"], context=shown, fence=fence, code=code)))
        return ChatPrompt(tuple(messages), static_messages=static)

    def review_schema(self, code: str, max_findings: int) -> str:
        """The JSON schema of a review: a quote can only be a line of `code`, letter by letter."""
        finding = {
            "quote": {"enum": quotable_lines(code)},
            "category": {"enum": self._review["categories"]},
            "severity": {"enum": ["error", "warning", "information"]},
            "message": {"type": "string", "maxLength": 200},
            "suggestion": {"type": "string", "maxLength": 200},
        }
        item = {"type": "object", "properties": finding, "required": list(finding)}
        findings = {"type": "array", "maxItems": max_findings, "items": item}
        return Request.schema(
            {"type": "object", "properties": {"findings": findings}, "required": ["findings"]}
        )

    def review_bias(self, code: str, parameters: float | None = None) -> tuple[tuple[str, float], ...]:
        """What makes the model believe that `code` may be fine; less so where a known sign of defects is.

        `parameters` are the model's, in billions; one whose size is not known is taken for a small one.
        """
        biases = self._review["bias"]
        fitting = [one for one in biases if one["from_parameters"] <= (parameters or 0.0)]
        name = "with_pairs" if self._pairs_for(code) else "without_pairs"
        return ((" []", float(fitting[-1][name])),)

    def _pairs_for(self, code: str) -> list[dict[str, Any]]:
        """The pairs that resemble `code`, the last in the file last, which counts most for a model."""
        found = [
            pair
            for sign, unless, pair in self._signs
            if sign.search(code) and not (unless is not None and unless.search(code))
        ]
        return found[-int(self._review["most_pairs"]) :]

    def _example(self, language: str, code: str, findings: list[Any]) -> list[Message]:
        shown = _fill(self._review["user"], context="", fence=language, code=code.lstrip("\n"))
        answer = json.dumps({"findings": findings}, ensure_ascii=False)
        return [Message(Role.USER, shown), Message(Role.ASSISTANT, answer)]

    @cached_property
    def _signs(self) -> list[tuple[re.Pattern[str], re.Pattern[str] | None, dict[str, Any]]]:
        return [
            (re.compile(pair["sign"]), re.compile(pair["unless"]) if "unless" in pair else None, pair)
            for pair in self._review["pair"]
        ]

    def action(
        self,
        name: str,
        language: Language | None,
        code: str,
        *,
        context: str = "",
        answer_prefix: str = "",
        words: Mapping[str, str] | None = None,
    ) -> ChatPrompt:
        """The prompt of one code action or hover; `name` is a section of `actions.toml`.

        `words` fill further slots of the text. The answer is made to begin with `answer_prefix`.
        """
        texts = self._actions[name]
        fence, title = fence_of(language), language.name if language else "code"
        shown = _fill(self._actions["context"]["text"], fence=fence, text=context) if context else ""
        slots = {"language": title, "fence": fence, "context": shown, "code": code, **(words or {})}
        messages = (
            Message(Role.SYSTEM, _fill(texts["system"], **slots)),
            Message(Role.USER, _fill(texts["user"], **slots)),
        )
        # What a system message says of a language is the project's; an unknown one is named by the editor.
        return ChatPrompt(messages, answer_prefix, static_messages=int(language is not None))

    def infill(
        self, prefix: str, suffix: str, family: str = "", tokens: tuple[str, str, str] | None = None
    ) -> InfillPrompt:
        """A fill-in-the-middle prompt in the order that the model family does best with.

        `tokens` are those that the model's file names (see `infill_template`). What is not known at all gets
        Qwen2.5-Coder's tokens. Raises `EngineUnavailable` for a family that cannot fill in.
        """
        template = self.infill_template(family, tokens)
        if template is None and "none" in self._infill.get(family, {}):
            raise EngineUnavailable(
                "This model cannot fill in code in the middle; name another one for completions "
                "(nexo.completion.model)."
            )
        return InfillPrompt(prefix, suffix, template or self._family_template(_OWN_FAMILY))

    @property
    def infill_families(self) -> tuple[str, ...]:
        """The families of which it is known how they fill in, or that they cannot."""
        return tuple(self._infill)

    def infill_template(
        self, family: str, tokens: tuple[str, str, str] | None = None, stop: Sequence[str] = ()
    ) -> InfillTemplate | None:
        """How a model wants a gap, by its family and by the `tokens` that its file names.

        `tokens` are those of prefix, suffix and middle (empty where there is none), `stop` others at which an
        answer ends. Where they are not the family's, the file is believed. None for a family that cannot fill
        in, and where nothing is known.
        """
        if "none" in self._infill.get(family, {}):
            return None
        known = self._family_template(family) if family in self._infill else None
        if tokens is None or (known is not None and set(_special(known)) <= set(tokens)):
            return known
        return template_of_tokens(*tokens, stop)

    def _family_template(self, family: str) -> InfillTemplate:
        texts = self._infill[family]
        return InfillTemplate(tuple(texts["parts"]), tuple(texts["stop"]), texts.get("heal", False))

    @cached_property
    def _review(self) -> dict[str, Any]:
        return _strip(tomllib.loads(_read("review.toml")))

    @cached_property
    def _actions(self) -> dict[str, Any]:
        return {name: _strip(texts) for name, texts in tomllib.loads(_read("actions.toml")).items()}

    @cached_property
    def _infill(self) -> dict[str, Any]:
        return tomllib.loads(_read("infill.toml"))


def template_of_tokens(prefix: str, suffix: str, middle: str, stop: Sequence[str] = ()) -> InfillTemplate:
    """The template of a model of which only the tokens are known.

    The order is the one that most publishers give (prefix, suffix, middle); a model without a token for the
    middle is one of Mistral's, where the prefix comes last.
    """
    if middle:
        parts = (prefix, "{prefix}", suffix, "{suffix}", middle)
    else:
        parts = (suffix, "{suffix}", prefix, "{prefix}")
    return InfillTemplate(parts, tuple(dict.fromkeys(part for part in (*parts, *stop) if part not in _SLOTS)))


_SLOTS = ("{prefix}", "{suffix}")


def _special(template: InfillTemplate) -> tuple[str, ...]:
    return tuple(part for part in template.parts if part not in _SLOTS)


def quotable_lines(code: str) -> list[str]:
    """The distinct lines of `code` without indentation, in order; brackets alone are left out."""
    stripped = (line.strip() for line in code.splitlines())
    lines = dict.fromkeys(line for line in stripped if len(line) > _LINES_AT_LEAST)
    return list(lines) or [code.strip()]


def fence_of(language: Language | None) -> str:
    """The word behind the opening backticks of a Markdown code block."""
    return language.id if language is not None else ""


def _fill(template: str, **slots: str) -> str:
    """Fill `{slots}` in one pass, so that braces inside the code are left as they are."""
    parts: Sequence[str] = template.split("{")
    out = [parts[0]]
    for part in parts[1:]:
        name, closed, rest = part.partition("}")
        out.append(slots[name] + rest if closed and name in slots else "{" + part)
    return "".join(out)


def _strip(texts: dict[str, Any]) -> dict[str, Any]:
    return {key: value.lstrip("\n") if isinstance(value, str) else value for key, value in texts.items()}


def _read(name: str) -> str:
    return resources.files("nexo_lsp.context").joinpath("templates", name).read_text(encoding="utf-8")

"""Saying in words, inside the prompt, what a client's engine cannot be told otherwise."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from nexo_lsp.engines.client_port import Announcement
from nexo_lsp.errors import EngineError
from nexo_lsp.generation import ChatPrompt, InfillPrompt, Message, Request, Role

_SCHEMA_WORDS: Final = (
    "Answer with one JSON value and nothing else: no introduction, no code fence. It has to fit this JSON "
    "schema:\n{schema}"
)
_PREFIX_WORDS: Final = (
    "Your answer has to begin with exactly the following text, and to go on behind it:\n{prefix}"
)


def fitted(request: Request, engine: Announcement) -> Request:
    """`request` as this engine can be asked it. Raises `EngineError` where it cannot at all."""
    prompt = request.prompt
    if isinstance(prompt, InfillPrompt):
        if not engine.infill:
            raise EngineError("The editor's engine cannot fill in code in the middle: it completes nothing.")
        return request
    if not engine.chat:
        raise EngineError("The editor's engine only completes code; it answers no questions.")
    words: list[str] = []
    if request.json_schema is not None and not engine.json_schema:
        words.append(_SCHEMA_WORDS.format(schema=request.json_schema))
        request = replace(request, json_schema=None)
    if prompt.answer_prefix and not engine.answer_prefix:
        words.append(_PREFIX_WORDS.format(prefix=prompt.answer_prefix))
        prompt = replace(prompt, answer_prefix="")
    return replace(request, prompt=_with_words(prompt, words)) if words else request


def _with_words(prompt: ChatPrompt, words: list[str]) -> ChatPrompt:
    *before, last = prompt.messages or (Message(Role.USER, ""),)
    told = replace(last, content="\n\n".join([last.content, *words]))
    return replace(prompt, messages=(*before, told))


class Unprefixed:
    """Takes the text that an answer was asked to begin with off it, if it does begin with it.

    Text is held back as long as it may still be that beginning.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix.lstrip()
        self._held = ""

    def feed(self, text: str) -> str:
        """Add text; gives what is sure to be shown."""
        if not self._prefix:
            return text
        self._held += text
        begun = self._held.lstrip()
        if len(begun) < len(self._prefix) and self._prefix.startswith(begun):
            return ""
        shown = begun.removeprefix(self._prefix) if begun.startswith(self._prefix) else self._held
        self._prefix = self._held = ""
        return shown

    def finish(self) -> str:
        """What was held back to the end."""
        held, self._held = self._held, ""
        return held

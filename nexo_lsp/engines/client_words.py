"""Saying in words, inside the prompt, what a client's engine cannot be told otherwise.

What its answers are then likely to begin and end with is taken off them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from nexo_lsp.engines.client_port import Announcement
from nexo_lsp.errors import EngineError
from nexo_lsp.generation import InfillPrompt, Message, Request, Role

_SCHEMA_WORDS: Final = (
    "Answer with one JSON value and nothing else: no introduction, no code fence. It has to fit this JSON "
    "schema:\n{schema}"
)
_PREFIX_WORDS: Final = (
    "Your answer has to begin with exactly the following text, and to go on behind it:\n{prefix}"
)
# Many models put JSON into a fence whatever they are told. Inside of JSON no line begins with one.
_FENCES: Final = ("```json\n", "```JSON\n", "```\n")
_FENCE_END: Final = "\n```"


@dataclass(frozen=True, slots=True)
class Fitted:
    """A request as an engine can be asked it, and what its answer is expected to begin and end with."""

    request: Request
    openings: tuple[str, ...] = ()
    """Texts of which the answer may begin with one, which is no part of it."""
    stop: tuple[str, ...] = ()
    """Where the answer ends, behind its opening."""


def fitted(request: Request, engine: Announcement) -> Fitted:
    """What to ask `engine` for `request`. Raises `EngineError` where it cannot be asked at all."""
    prompt = request.prompt
    if isinstance(prompt, InfillPrompt):
        if not engine.infill:
            raise EngineError("The editor's engine cannot fill in code in the middle: it completes nothing.")
        # An engine that shows special tokens as text shows these too.
        return Fitted(request, stop=(*request.stop, *prompt.template.stop))
    if not engine.chat:
        raise EngineError("The editor's engine only completes code; it answers no questions.")
    words: list[str] = []
    openings: tuple[str, ...] = ()
    stop = request.stop
    if request.json_schema is not None and not engine.json_schema:
        words.append(_SCHEMA_WORDS.format(schema=request.json_schema))
        request = replace(request, json_schema=None)
        openings, stop = _FENCES, (*stop, _FENCE_END)
    if (prefix := prompt.answer_prefix) and not engine.answer_prefix:
        words.append(_PREFIX_WORDS.format(prefix=prefix))
        prompt = replace(prompt, answer_prefix="")
        openings = (prefix,)
        # What stands in the opening would end the answer before it begins.
        request = replace(request, stop=tuple(text for text in request.stop if text not in prefix))
    if words:
        *before, last = prompt.messages or (Message(Role.USER, ""),)
        told = replace(last, content="\n\n".join([last.content, *words]))
        request = replace(request, prompt=replace(prompt, messages=(*before, told)))
    return Fitted(request, openings, stop)


class Opening:
    """Takes one of several texts off the beginning of an answer, if it does begin with one.

    Text is held back as long as it may still be such a beginning. White space before it is passed over.
    """

    def __init__(self, texts: tuple[str, ...]) -> None:
        self._texts = tuple(text.lstrip() for text in texts)
        self._held = ""

    def feed(self, text: str) -> str:
        """Add text; gives what is sure to be shown."""
        if not self._texts:
            return text
        self._held += text
        begun = self._held.lstrip()
        shown = next((begun.removeprefix(text) for text in self._texts if begun.startswith(text)), None)
        if shown is None and any(text.startswith(begun) for text in self._texts):
            return ""
        rest = self._held if shown is None else shown
        self._texts, self._held = (), ""
        return rest

    def finish(self) -> str:
        """What was held back to the end."""
        held, self._held = self._held, ""
        return held

"""From a prompt to tokens. The prompt's own text is markup; what the user's files say is data.

A chat template is rendered with placeholders where the contents go; then the template's text is tokenised
with special tokens read as such, and the contents without. So code that holds `<|im_end|>` stays code.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from nexo_lsp.engines.llama.healing import Healing
from nexo_lsp.generation import ChatPrompt, InfillPrompt, Message, Role

# Private-use characters: a template never writes them, and contents are not rendered at all.
_SLOT = "\ue0f0{}\ue0f1"
_SLOT_PATTERN = re.compile("\ue0f0([0-9]+)\ue0f1")

_CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


# A template is a program of the model's file: what it computes can go wrong too.
_TEMPLATE_ERRORS = (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


class Tokenizer(Protocol):
    """What of a model is needed here (`native.Model` is one)."""

    def tokenize(self, text: str, *, special: bool) -> list[int]:
        """The tokens of `text`."""
        ...

    def special(self, text: str) -> int | None:
        """The special token written `text`."""
        ...

    @property
    def bos(self) -> int | None:
        """The token that prompts start with."""
        ...

    @property
    def bos_text(self) -> str:
        """How it is written."""
        ...

    @property
    def eos_text(self) -> str:
        """How the end token is written."""
        ...

    @property
    def chat_template(self) -> str | None:
        """The file's own chat template."""
        ...


class PromptError(Exception):
    """A prompt that this model cannot be shown; the text is for the user."""


class Prompts:
    """Makes the tokens of prompts for one model."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = _raise_exception  # pyright: ignore[reportArgumentType] -- jinja2 types this dictionary by its built-in entries only
        try:
            self._template = environment.from_string(tokenizer.chat_template or _CHATML)
        except TemplateError:
            self._template = environment.from_string(_CHATML)

    def tokens(self, prompt: ChatPrompt | InfillPrompt) -> list[int]:
        """The tokens to evaluate. Raises `PromptError`."""
        tokens = self._chat(prompt) if isinstance(prompt, ChatPrompt) else self._infill(prompt)
        bos = self._tokenizer.bos
        return [bos, *tokens] if bos is not None and tokens[:1] != [bos] else tokens

    def healed(self, prompt: ChatPrompt | InfillPrompt, healing: Healing) -> tuple[list[int], bytes]:
        """The tokens to evaluate, and the bytes that the answer has to repeat first (mostly none).

        Raises `PromptError`.
        """
        tokens = self.tokens(prompt)
        if isinstance(prompt, ChatPrompt) or not prompt.template.heal:
            return tokens, b""
        if prompt.template.parts[-1:] != ("{prefix}",):
            # Something else stands between the prefix and the answer: there is no token to go on with.
            return tokens, b""
        own = len(self._tokenizer.tokenize(prompt.prefix, special=False))
        count, rest = healing.taken_back(tokens[len(tokens) - own :])
        return tokens[: len(tokens) - count], rest

    def static_tokens(self, prompt: ChatPrompt | InfillPrompt) -> int:
        """How many of the first tokens belong to the prompt's static messages, and so to no user's text."""
        if isinstance(prompt, InfillPrompt) or not 0 < prompt.static_messages < len(prompt.messages):
            return 0
        tokens = self._chat(prompt, last=prompt.static_messages - 1)
        return len(tokens) + (self._tokenizer.bos is not None and tokens[:1] != [self._tokenizer.bos])

    def end_tokens(self, prompt: ChatPrompt | InfillPrompt) -> frozenset[int]:
        """Tokens at which the answer ends, beside those that the model names itself."""
        if isinstance(prompt, ChatPrompt):
            return frozenset()
        found = (self._tokenizer.special(text) for text in prompt.template.stop)
        return frozenset(token for token in found if token is not None)

    def _chat(self, prompt: ChatPrompt, last: int | None = None) -> list[int]:
        """The tokens of a conversation; with `last` only those up to the end of that message."""
        if not prompt.messages:
            raise PromptError("A conversation without a message cannot be answered.")
        messages = prompt.messages
        try:
            rendered = self._render(messages)
        except _TEMPLATE_ERRORS:
            # Some templates refuse a system message; its words then open the first one of the user.
            messages = _without_system(messages)
            try:
                rendered = self._render(messages)
            except _TEMPLATE_ERRORS as error:
                raise PromptError(f"The model's chat template refuses this conversation: {error}.") from error
        tokens: list[int] = []
        for index, part in enumerate(_SLOT_PATTERN.split(rendered)):
            # `split` with a group gives text and slot numbers in turn.
            content = index % 2 == 1
            text = messages[int(part)].content if content else part
            tokens += self._tokenizer.tokenize(text, special=not content)
            if content and last is not None and int(part) == last:
                return tokens if messages is prompt.messages else []
        return tokens + self._tokenizer.tokenize(prompt.answer_prefix, special=False)

    def _render(self, messages: Sequence[Message]) -> str:
        return self._template.render(
            messages=[
                {"role": message.role.value, "content": _SLOT.format(index)}
                for index, message in enumerate(messages)
            ],
            add_generation_prompt=True,
            bos_token=self._tokenizer.bos_text,
            eos_token=self._tokenizer.eos_text,
        )

    def _infill(self, prompt: InfillPrompt) -> list[int]:
        tokens: list[int] = []
        for part in prompt.template.parts:
            if part == "{prefix}":
                tokens += self._tokenizer.tokenize(prompt.prefix, special=False)
            elif part == "{suffix}":
                tokens += self._tokenizer.tokenize(prompt.suffix, special=False)
            else:
                token = self._tokenizer.special(part)
                if token is None:
                    raise PromptError(f"The model has no token {part}: it cannot fill in code in the middle.")
                tokens.append(token)
        return tokens


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _without_system(messages: Sequence[Message]) -> tuple[Message, ...]:
    system = "\n\n".join(message.content for message in messages if message.role is Role.SYSTEM)
    others = [message for message in messages if message.role is not Role.SYSTEM]
    if system and others and others[0].role is Role.USER:
        others[0] = Message(Role.USER, f"{system}\n\n{others[0].content}")
    return tuple(others)

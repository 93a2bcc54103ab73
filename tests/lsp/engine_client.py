"""The client's half of `nexo/engine/*`, for tests: it announces an engine and answers with it, well or badly.

Any `Engine` of ours can do the thinking: `MockEngine` (scripted), or `LlamaEngine` (the real llama.cpp).
Without one nothing is answered by itself, and a test says what is sent.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

from lsprotocol import types

from nexo_lsp.engines.engine import Engine
from nexo_lsp.errors import EngineError, PromptTooLong
from nexo_lsp.generation import (
    ChatPrompt,
    FinishReason,
    InfillPrompt,
    InfillTemplate,
    Message,
    Priority,
    Request,
    Role,
)
from nexo_lsp.server.engine_messages import (
    ENGINE_ANNOUNCE,
    ENGINE_CANCEL,
    ENGINE_COUNT_TOKENS,
    ENGINE_END,
    ENGINE_GENERATE,
    ENGINE_PIECE,
)
from tests.lsp.editor import Editor

EVERYTHING = {
    "available": True,
    "model": "scripted",
    "contextTokens": 8192,
    "infill": True,
    "jsonSchema": True,
    "answerPrefix": True,
    "countsTokens": True,
    "parallel": 2,
    "local": True,
}
"""What a client with a llama.cpp of its own announces."""

CODE = "def add(a, b):\n    return \n"
LAST = "def last(items):\n    return items[len(items)]\n"
FINDING = {
    "quote": "return items[len(items)]",
    "category": "bug",
    "severity": "warning",
    "message": "This is one beyond the end.",
    "suggestion": "",
}
NOTHING = '{"findings": []}'
ENGINE = {"NEXO_ENGINE": "client-hosted"}
MANUAL = {"review": {"trigger": "manual"}}


class EngineClient:
    """Plays the other half on the connection of `editor`."""

    def __init__(self, editor: Editor, engine: Engine | None = None) -> None:
        self.editor = editor
        self.engine = engine
        self.asked: list[Any] = []
        """The parameters of every `generate`, in their order."""
        self.cancelled: list[int] = []
        self.most_at_once = 0
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._open: set[int] = set()
        self._news = asyncio.Event()
        for method, handler in (
            (ENGINE_GENERATE, self._generate),
            (ENGINE_CANCEL, self._cancel),
            (ENGINE_COUNT_TOKENS, self._count),
        ):
            # A wrapper, since pygls marks what it is given, and a bound method takes no marks.
            editor.client.feature(method)(functools.partial(handler))

    # What it says.

    def announce(self, **changes: Any) -> None:
        self._tell(ENGINE_ANNOUNCE, {**EVERYTHING, **changes})

    def withdraw(self) -> None:
        self._tell(ENGINE_ANNOUNCE, {"available": False})

    def piece(self, request_id: int, sequence: int, text: str, **more: Any) -> None:
        self._tell(ENGINE_PIECE, {"id": request_id, "sequence": sequence, "text": text, **more})

    def end(self, request_id: int, sequence: int, finish: str = "stop", **more: Any) -> None:
        self._open.discard(request_id)
        self._tell(ENGINE_END, {"id": request_id, "sequence": sequence, "finish": finish, **more})

    def answer(self, request_id: int, *texts: str) -> None:
        """A whole answer."""
        for sequence, text in enumerate(texts):
            self.piece(request_id, sequence, text)
        self.end(request_id, len(texts))

    def junk(self, method: str, params: Any) -> None:
        """What no well-behaved client sends."""
        self._tell(method, params)

    def _tell(self, method: str, params: Any) -> None:
        self.editor.client.protocol.notify(method, params)

    # What it hears.

    def _generate(self, params: Any) -> None:
        self.asked.append(params)
        self._open.add(params.id)
        self.most_at_once = max(self.most_at_once, len(self._open))
        if self.engine is not None:
            task = asyncio.ensure_future(self._think(self.engine, params))
            self._tasks[params.id] = task
            task.add_done_callback(lambda _done: self._tasks.pop(params.id))
        self._news.set()

    def _cancel(self, params: Any) -> None:
        self.cancelled.append(params.id)
        self._open.discard(params.id)
        if (task := self._tasks.get(params.id)) is not None:
            task.cancel()
        self._news.set()

    async def _count(self, params: Any) -> dict[str, int]:
        return {
            "tokens": len(params.text) if self.engine is None else await self.engine.count_tokens(params.text)
        }

    async def _think(self, engine: Engine, params: Any) -> None:
        sequence, counts = 0, {}
        try:
            async with aclosing(engine.stream(request_of(params))) as pieces:
                async for piece in pieces:
                    if piece.text:
                        self.piece(params.id, sequence, piece.text, tokens=piece.tokens)
                        sequence += 1
                    if piece.usage is not None:
                        counts = {
                            "promptTokens": piece.usage.prompt_tokens,
                            "completionTokens": piece.usage.completion_tokens,
                        }
                    if piece.finish is not None:
                        length = piece.finish is FinishReason.LENGTH
                        self.end(params.id, sequence, "length" if length else "stop", **counts)
        except PromptTooLong as error:
            self.end(params.id, sequence, "prompt-too-long", message=str(error))
        except EngineError as error:
            self.end(params.id, sequence, "failed", message=str(error))

    # Waiting.

    async def until(self, condition: Callable[[], Any], what: str) -> Any:
        """Wait until `condition` is true; it is looked at whenever something of the engine comes."""

        async def wait() -> Any:
            while not (value := condition()):
                self._news.clear()
                await self._news.wait()
            return value

        try:
            return await asyncio.wait_for(wait(), self.editor.patience_s)
        except TimeoutError:
            raise AssertionError(
                f"never happened: {what}; asked: {[params.id for params in self.asked]}, "
                f"cancelled: {self.cancelled}, messages: {self.editor.messages()}"
            ) from None

    async def until_asked(self, count: int = 1) -> Any:
        """Wait for so many requests in all; gives the last of these."""
        await self.until(lambda: len(self.asked) >= count, f"{count} requests")
        return self.asked[count - 1]

    async def until_cancelled(self, request_id: int) -> None:
        await self.until(lambda: request_id in self.cancelled, f"the cancel of {request_id}")

    async def close(self) -> None:
        for task in list(self._tasks.values()):
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        if self.engine is not None:
            await self.engine.close()


def request_of(params: Any) -> Request:
    """What `generate` asks, as our own engines want it. Raises what a message that is no good deserves."""
    if params.infill is not None:
        assert params.messages is None
        template = InfillTemplate(tuple(params.infill.parts), tuple(params.infill.stop))
        prompt: ChatPrompt | InfillPrompt = InfillPrompt(params.infill.prefix, params.infill.suffix, template)
    else:
        messages = tuple(Message(Role(message.role), message.content) for message in params.messages)
        prompt = ChatPrompt(messages, params.answerPrefix)
    return Request(
        prompt,
        max_tokens=params.maxTokens,
        session=params.session,
        stop=tuple(params.stop),
        temperature=params.temperature,
        seed=params.seed,
        json_schema=None if params.jsonSchema is None else Request.schema(plain(params.jsonSchema)),
        logit_bias=tuple((bias.text, bias.bias) for bias in params.logitBias),
        priority=Priority[params.priority.upper()],
    )


def plain(value: Any) -> Any:
    """What pygls made objects of, as JSON data again."""
    if hasattr(value, "_asdict"):
        return {name: plain(each) for name, each in value._asdict().items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    return value


def ask(editor: Editor, uri: str, identity: int | None = None) -> asyncio.Future[Any]:
    """An inline completion behind the first `return `."""
    params = editor.inline_params(uri, editor.find(uri, "return ", end=True))
    if identity is not None:
        return editor.start(types.TEXT_DOCUMENT_INLINE_COMPLETION, params, identity)
    return asyncio.ensure_future(editor.client.text_document_inline_completion_async(params))


async def status_when(editor: Editor, condition: Callable[[Any], bool]) -> Any:
    """Ask for `nexo/status` until it is as wanted: it is another process that does the work."""
    async with asyncio.timeout(editor.patience_s):
        while not condition(status := await editor.request("nexo/status")):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return status

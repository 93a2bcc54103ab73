"""An engine that sees no secrets."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any, cast

from nexo_lsp.engines.engine import Engine
from nexo_lsp.errors import EngineUnavailable
from nexo_lsp.generation import Capabilities, ChatPrompt, EngineStatus, InfillPrompt, Piece, Request
from nexo_lsp.offload import Offload, in_thread
from nexo_lsp.safety.redaction import INSTALL_HINT, Redacted, Restoring, describe, redact

_QUICK = 4000
"""Characters in which secrets are found within two milliseconds; for more it leaves the loop."""


class Redacting:
    """Implements `Engine` around another one: secrets are taken out of every request, and put back into its
    answer. Nothing that a request holds reaches the other engine unseen."""

    def __init__(
        self,
        engine: Engine,
        on_redacted: Callable[[Mapping[str, int]], None] = lambda _counts: None,
        *,
        refusal: Callable[[], str] = lambda: "",
        offload: Offload = in_thread,
    ) -> None:
        """`on_redacted` is told what was taken out of a request: how many secrets of each kind.

        `refusal` says why nothing may be sent at this moment; empty: it may.
        """
        self._engine = engine
        self._on_redacted = on_redacted
        self._refusal = refusal
        self._offload = offload
        self._warm = False
        # Of what was taken out only this is kept, so that the same secret counts once.
        self._seen: dict[str, set[int]] = {}

    def capabilities(self) -> Capabilities:
        """Those of the engine."""
        return self._engine.capabilities()

    def status(self) -> EngineStatus:
        """The engine's, and what was taken out."""
        return self.shown(self._engine.status())

    def shown(self, status: EngineStatus) -> EngineStatus:
        """`status` of the engine, with what was taken out."""
        counts = {kind: len(values) for kind, values in self._seen.items()}
        extra = {**status.extra, "redacted": counts}
        if counts:
            total = sum(counts.values())
            what = "secret was" if total == 1 else "secrets were"
            note = f"{total} {what} taken out of what was sent: {describe(counts)}"
            extra["notes"] = (*status.extra.get("notes", ()), note)
        return replace(status, extra=extra)

    async def count_tokens(self, text: str) -> int:
        """How many tokens `text` is, with placeholders for its secrets."""
        self._check()
        done = await self._redact([text])
        return await self._engine.count_tokens(done.texts[0])

    async def stream(self, request: Request) -> AsyncGenerator[Piece, None]:
        """Make an answer; see `Engine.stream`."""
        self._check()
        gaps = (0,) if isinstance(request.prompt, InfillPrompt) else ()
        done = await self._redact(list(_texts(request)), gaps)
        if not done.secrets:
            async with aclosing(self._engine.stream(request)) as pieces:
                async for piece in pieces:
                    yield piece
            return
        self._count(done)
        restoring = Restoring(done.secrets, in_json=request.json_schema is not None)
        sent = _with_texts(request, iter(done.texts))
        async with aclosing(self._engine.stream(sent)) as pieces:
            async for piece in pieces:
                text = restoring.feed(piece.text)
                if piece.finish is not None:
                    text += restoring.finish()
                if text or piece.finish is not None:
                    yield replace(piece, text=text)

    async def close(self) -> None:
        """Close the engine."""
        await self._engine.close()

    def _check(self) -> None:
        if refusal := self._refusal():
            raise EngineUnavailable(refusal)

    async def _redact(self, texts: list[str], gaps: tuple[int, ...] = ()) -> Redacted:
        if self._warm and sum(map(len, texts)) <= _QUICK:
            return redact(texts, gaps)
        # The first look imports the library, which takes a moment.
        try:
            done = await self._offload(lambda: redact(texts, gaps))
        except ImportError as error:
            raise EngineUnavailable(INSTALL_HINT) from error
        self._warm = True
        return done

    def _count(self, done: Redacted) -> None:
        for name, value in done.secrets.items():
            kind, _, part = name.strip("<>").removeprefix("redacted-").rpartition("-")
            # The lines of one key have their number in common, and the first stands for all.
            if part.partition(".")[2] in {"", "1"}:
                self._seen.setdefault(kind, set()).add(hash(value))
        self._on_redacted(done.counts)


def _texts(request: Request) -> Iterator[str]:
    """Every text of `request` that may be somebody's, in the order in which `_with_texts` wants them back."""
    prompt = request.prompt
    if isinstance(prompt, InfillPrompt):
        yield prompt.prefix
        yield prompt.suffix
    else:
        for message in _own(prompt):
            yield message.content
        yield prompt.answer_prefix
    yield request.prediction
    yield from request.stop
    if request.json_schema is not None:
        yield from _strings(json.loads(request.json_schema))
    for text, _ in request.logit_bias:
        yield text


def _with_texts(request: Request, texts: Iterator[str]) -> Request:
    prompt = request.prompt
    if isinstance(prompt, InfillPrompt):
        prompt = replace(prompt, prefix=next(texts), suffix=next(texts))
    else:
        own = tuple(replace(message, content=next(texts)) for message in _own(prompt))
        messages = (*prompt.messages[: prompt.static_messages], *own)
        prompt = replace(prompt, messages=messages, answer_prefix=next(texts))
    prediction = next(texts)
    stop = tuple(next(texts) for _ in request.stop)
    schema = request.json_schema
    if schema is not None:
        schema = Request.schema(cast("Mapping[str, Any]", _with_strings(json.loads(schema), texts)))
    bias = tuple((next(texts), value) for _, value in request.logit_bias)
    return replace(
        request, prompt=prompt, prediction=prediction, stop=stop, json_schema=schema, logit_bias=bias
    )


def _own(prompt: ChatPrompt) -> Iterator[Any]:
    """The messages that may hold something of the user's."""
    return iter(prompt.messages[prompt.static_messages :])


def _strings(value: object) -> Iterator[str]:
    """Every string of a JSON value: a schema may list lines of the user's code."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, item in cast("dict[str, object]", value).items():
            yield name
            yield from _strings(item)
    elif isinstance(value, list):
        for item in cast("list[object]", value):
            yield from _strings(item)


def _with_strings(value: object, texts: Iterator[str]) -> object:
    if isinstance(value, str):
        return next(texts)
    if isinstance(value, dict):
        return {next(texts): _with_strings(item, texts) for item in cast("dict[str, object]", value).values()}
    if isinstance(value, list):
        return [_with_strings(item, texts) for item in cast("list[object]", value)]
    return value

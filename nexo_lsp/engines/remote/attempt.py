"""One try at one endpoint: from a request to pieces of text."""

from __future__ import annotations

import asyncio
import codecs
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from typing import Any

import httpx

from nexo_lsp.engines.llama.text_stream import TextStream
from nexo_lsp.engines.remote import asking
from nexo_lsp.engines.remote.answering import Account
from nexo_lsp.engines.remote.asking import Asked, Manner
from nexo_lsp.engines.remote.dialect import PrefillWay
from nexo_lsp.engines.remote.events import Events, TooLong
from nexo_lsp.engines.remote.patience import Patience
from nexo_lsp.engines.remote.prefix import Cutter, Loose, Unchanged, Unfenced, Verbatim
from nexo_lsp.engines.remote.refusals import (
    Again,
    Failed,
    ended_early,
    in_stream,
    interrupted,
    sentence,
    unusable,
)
from nexo_lsp.engines.remote.server import Facts, Server
from nexo_lsp.engines.remote.shapes import as_object
from nexo_lsp.errors import EngineError, EngineUnavailable
from nexo_lsp.generation import FinishReason, InfillPrompt, Piece, Request

_AFTER_END_S = 2.0
"""How long the cost of an answer is waited for when its text has ended."""

_SPARE_TOKENS = 16
"""Events beyond `max_tokens` after which a server is taken not to heed it."""

_DONE = "[DONE]"


async def attempt(
    server: Server, request: Request, patience: Patience, queue_s: float
) -> AsyncGenerator[Piece, None]:
    """Ask `server`, in the ways that it takes. Raises `Failed` and `OutOfTime`."""
    facts = await patience.wait(server.learn())
    begun = manner = server.manner or Manner.first(facts.dialect)
    first: Failed | None = None
    while True:
        asked = _asked(request, manner, facts)
        if asked is None:
            _remember(server, begun, replace(manner, infill=None))
            raise _no_infill(server, facts)
        shown = False
        try:
            async with aclosing(_answer(server, asked, request, manner, patience, queue_s)) as pieces:
                async for piece in pieces:
                    if not shown:
                        shown = True
                        _remember(server, begun, manner)
                    yield piece
            return
        except Failed as failure:
            first = first or failure
            weaker = manner.weaker(facts.dialect, request) if _may_be_manner(failure, request) else None
            if shown or weaker is None:
                raise _named(facts, first if not shown else failure) from failure
            manner = weaker


def _remember(server: Server, begun: Manner, manner: Manner) -> None:
    """Keep what `server` did not take, beside what other requests have found out meanwhile."""
    found = {name: way for name in Manner.__slots__ if (way := getattr(manner, name)) != getattr(begun, name)}
    if server.manner is not None and found:
        server.manner = replace(server.manner, **found)


def _asked(request: Request, manner: Manner, facts: Facts) -> Asked | None:
    prompt = request.prompt
    if isinstance(prompt, InfillPrompt):
        return asking.infill(request, prompt, manner, facts.dialect, facts.model)
    return asking.chat(request, prompt, manner, facts.dialect, facts.model)


def _may_be_manner(failure: Failed, request: Request) -> bool:
    return failure.not_taken or (failure.not_there and isinstance(request.prompt, InfillPrompt))


def _no_infill(server: Server, facts: Facts) -> Failed:
    message = f"{server.address.host} ({facts.kind}) fills no gaps with {facts.model or 'its model'}."
    return Failed(EngineUnavailable(message), Again.ELSEWHERE)


def _named(facts: Facts, failure: Failed) -> Failed:
    """A refusal that may be for the model's name says which names there are."""
    if not failure.not_there or facts.model in facts.models:
        return failure
    has = f"it has: {', '.join(facts.models[:8])}" if facts.models else "it lists no models"
    message = f"{sentence(str(failure.error))} The model {facts.model} was asked for; {has}."
    return replace(failure, error=EngineUnavailable(message), again=Again.ELSEWHERE)


async def _answer(
    server: Server, asked: Asked, request: Request, manner: Manner, patience: Patience, queue_s: float
) -> AsyncGenerator[Piece, None]:
    host = server.address.host
    account, cutter, text = Account(), _cutter(request, manner), TextStream(request.stop)
    finish: FinishReason | None = None
    rest = ""
    # JSON may cut a text in the middle of what is two units of UTF-16; this puts it together.
    utf16 = codecs.getincrementaldecoder("utf-16-le")("replace")
    async with AsyncExitStack() as stack:
        response = await patience.wait(stack.enter_async_context(server.ask(asked)))
        events = await stack.enter_async_context(aclosing(_events(response, host)))
        while finish is None:
            event = await patience.wait(anext(events, None))
            if event is None:
                raise ended_early(host)
            if event is _END:
                if server.cut_short():
                    raise interrupted(host)
                finish = FinishReason.STOP
                break
            if event.get("error"):
                raise in_stream(host, event, server.key)
            part = account.read(event)
            whole = utf16.decode(part.text.encode("utf-16-le", "surrogatepass"))
            shown = text.feed(cutter.feed(whole).encode())
            finish = part.finish
            if text.stopped:
                # Leaving closes the connection, which is what ends the server's work.
                rest, finish = shown, FinishReason.STOP
                break
            if shown:
                yield Piece(shown, account.tokens)
            if finish is None and account.tokens >= request.max_tokens + _SPARE_TOKENS:
                finish = FinishReason.LENGTH
                break
        else:
            await _read_account(events, account)
    last = cutter.feed(utf16.decode(b"", final=True)) + cutter.finish()
    rest += text.feed(last.encode()) + text.finish()
    yield Piece(rest, account.tokens, FinishReason.STOP if text.stopped else finish, account.usage(queue_s))


def _cutter(request: Request, manner: Manner) -> Cutter:
    if isinstance(request.prompt, InfillPrompt):
        return Unchanged()
    prefix = request.prompt.answer_prefix
    if prefix:
        return Loose(prefix) if manner.prefill is PrefillWay.WORDS else Verbatim(prefix)
    # Also where a grammar holds the answer: some servers' grammars let a block of Markdown stand around it.
    return Unfenced() if request.json_schema is not None else Unchanged()


_END: Mapping[str, Any] = {}


async def _events(response: httpx.Response, host: str) -> AsyncGenerator[Mapping[str, Any], None]:
    """The events of a stream, then `_END` if it ended as it should. Raises `Failed`."""
    if "json" in response.headers.get("content-type", ""):
        # It does not stream.
        yield _parsed((await response.aread()).decode("utf-8", "replace"), host)
        yield _END
        return
    events = Events()
    try:
        async for chunk in response.aiter_bytes():
            for data in events.feed(chunk):
                yield _END if data.strip() == _DONE else _parsed(data, host)
        for data in events.finish():
            yield _END if data.strip() == _DONE else _parsed(data, host)
    except TooLong as error:
        raise unusable(host, "an event without an end") from error


def _parsed(data: str, host: str) -> Mapping[str, Any]:
    try:
        event = as_object(json.loads(data))
    except ValueError as error:
        raise unusable(host, "an event that is no JSON") from error
    if not event:
        raise unusable(host, "an event that is no JSON object")
    return event


async def _read_account(events: AsyncIterator[Mapping[str, Any]], account: Account) -> None:
    """What an answer cost comes behind its end; without it the answer is as good.

    A stream that is read to its very end leaves a connection that can be used again.
    """
    try:
        async with asyncio.timeout(_AFTER_END_S):
            async for event in events:
                account.read(event)
    except (TimeoutError, Failed, httpx.HTTPError, EngineError):
        return

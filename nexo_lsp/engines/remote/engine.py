"""An engine that asks servers for its tokens."""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any

import httpx

from nexo_lsp.engines.remote.attempt import attempt
from nexo_lsp.engines.remote.dialect import Counting, InfillWay, SchemaWay
from nexo_lsp.engines.remote.endpoint import Endpoint, RemoteOptions
from nexo_lsp.engines.remote.patience import OutOfTime, Patience, Waits
from nexo_lsp.engines.remote.places import Places
from nexo_lsp.engines.remote.refusals import Again, Failed, broken_off, sentence
from nexo_lsp.engines.remote.server import MakeClient, Server, new_client, no_trust, trust
from nexo_lsp.engines.remote.watch import Watch
from nexo_lsp.errors import EngineError, EngineUnavailable
from nexo_lsp.generation import (
    Capabilities,
    EngineState,
    EngineStatus,
    FinishReason,
    Piece,
    Priority,
    Request,
    Usage,
)
from nexo_lsp.offload import Offload, in_thread

_log = logging.getLogger(__name__)

_LONGEST_WAIT_S = 30.0
"""A server that asks to be left alone for longer is not waited for."""

_IDLE_S = 120.0
"""After so long without a request nobody looks after the endpoints."""

_STEPS = 10

_CHARACTERS_PER_TOKEN = 3.3
"""Of code, in the vocabularies of current models; counted low, so that a prompt fits."""


class RemoteEngine:
    """Implements `Engine` with one or several servers that speak OpenAI's protocol.

    The most urgent request is next, at the endpoint that has the fewest. An answer is begun again, there or
    elsewhere, only while nothing of it was shown.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        options: RemoteOptions | None = None,
        *,
        keys: Callable[[str], str | None] = lambda _host: None,
        client: MakeClient | None = None,
        offload: Offload = in_thread,
    ) -> None:
        """`endpoints` are at least one, the best first. Raises `SettingsError` for a wrong address.

        `keys` gives the key of a host (`host:port`) whose endpoint has none; it may block. `client` makes the
        HTTP client of one endpoint (for tests); `offload` runs `keys` and what reads certificates.
        """
        self.options = options or RemoteOptions()
        self.on_status: Callable[[EngineStatus], None] = lambda _status: None
        self._keys = keys
        self._client = client
        self._offload = offload
        self._trust: ssl.SSLContext | None = None
        self._servers = tuple(Server(endpoint, self.options, self._new_client) for endpoint in endpoints)
        self._places = Places(self._servers)
        self._waits = Waits()
        self._watch = Watch(self._servers, self.options.health_s, _IDLE_S, self._looked)
        self._speed: float | None = None

    def capabilities(self) -> Capabilities:
        """What the servers can do, as far as that was found out."""
        manners = [server.manner for server in self._servers if server.manner is not None]
        contexts = [
            tokens for server in self._servers if server.facts and (tokens := server.facts.context_tokens)
        ]
        return Capabilities(
            infill=not manners or any(manner.infill is not None for manner in manners),
            json_schema=not manners or any(manner.schema is not SchemaWay.WORDS for manner in manners),
            context_tokens=min([self.options.context_tokens, *contexts]),
            parallel=self.options.parallel * len(self._servers),
            local=all(server.address.loopback for server in self._servers),
        )

    def status(self) -> EngineStatus:
        """The present picture."""
        running = sum(server.running for server in self._servers)
        best = min(self._servers, key=lambda server: not server.well, default=None)
        facts = best.facts if best is not None else None
        return EngineStatus(
            state=self._state(running),
            name=self.options.name,
            model=facts.model or None if facts is not None else self.options.model or None,
            device=best.address.host if best is not None else None,
            queued=self._places.waiting,
            running=running,
            decode_tokens_per_s=self._speed,
            detail=next((server.problem for server in self._servers if server.problem), ""),
            extra={"endpoints": [_picture(server) for server in self._servers], "notes": self._notes()},
        )

    async def count_tokens(self, text: str) -> int:
        """How many tokens `text` is there; about how many (counted high) where no server counts."""
        patience = Patience(self._waits, None)
        # One that failed a moment ago may be well again, and knows better than an estimate.
        for server in sorted(self._servers, key=lambda server: not server.well):
            # Twice: a server may have closed a connection that was kept, which shows when it is used.
            for last in (False, True):
                try:
                    count = await patience.wait(server.count(text))
                except Failed as failure:
                    if last or not failure.rests:
                        server.failed(failure)
                        break
                    continue
                if count is not None:
                    return count
                break
        return round(len(text) / _CHARACTERS_PER_TOKEN + 0.5)

    async def stream(self, request: Request) -> AsyncGenerator[Piece, None]:
        """Make an answer; see `Engine.stream`."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        patience = Patience(self._waits, None if request.deadline_s is None else begun + request.deadline_s)
        tokens = 0
        if not self._waits.closed:
            self._watch.used()
        try:
            async with aclosing(self._tries(request, patience)) as pieces:
                async for piece in pieces:
                    tokens = piece.tokens
                    yield piece
        except OutOfTime:
            yield Piece("", tokens, FinishReason.DEADLINE, Usage(completion_tokens=tokens))

    async def close(self) -> None:
        """Close every connection; waiting requests end with `EngineClosed`."""
        self._waits.close()
        await self._watch.close()
        # Those that wait leave their connections by themselves, in their next steps.
        for _ in range(_STEPS):
            await asyncio.sleep(0)
        await asyncio.gather(*(server.close() for server in self._servers))
        self._changed()

    async def _tries(self, request: Request, patience: Patience) -> AsyncGenerator[Piece, None]:
        loop = asyncio.get_running_loop()
        failures: list[tuple[Server, Failed]] = []
        avoid: frozenset[Server] = frozenset()
        while True:
            shown = False
            asked = loop.time()
            server = await patience.wait(self._places.take(request.priority, avoid))
            self._changed()
            try:
                async with aclosing(attempt(server, request, patience, loop.time() - asked)) as pieces:
                    async for piece in pieces:
                        shown = True
                        self._note(server, piece)
                        yield piece
                return
            except Failed as failure:
                server.failed(failure)
                self._watch.failed()
                if shown:
                    raise broken_off(server.address.host, str(failure.error).rstrip(".")) from failure
                failures.append((server, failure))
            finally:
                self._places.leave(server)
                self._changed()
            avoid = await self._before_next(request, failures, patience)

    async def _before_next(
        self, request: Request, failures: list[tuple[Server, Failed]], patience: Patience
    ) -> frozenset[Server]:
        """Which endpoints are not asked in the next try, after the wait that it needs.

        Raises `EngineError` when there is no next try.
        """
        failure = failures[-1][1]
        most = max(self.options.attempts, len(self._servers))
        hopeless = frozenset(server for server, failed in failures if failed.again is not Again.HERE)
        if failure.again is Again.NEVER or len(failures) >= most or len(hopeless) == len(self._servers):
            raise _error(failures) from failure
        tried = frozenset(server for server, _ in failures)
        if len(tried) == len(self._servers):
            wait_s = self._backoff(len(failures) - len(tried), failure)
            # Whoever types has moved on by then.
            if request.priority is Priority.INTERACTIVE or wait_s > _LONGEST_WAIT_S:
                raise _error(failures) from failure
            await patience.wait(asyncio.sleep(wait_s))
            tried = hopeless
        _log.info("Nothing of an answer was shown; beginning it again after: %s", failure.error)
        return tried

    def _backoff(self, waits: int, failure: Failed) -> float:
        """Exponential, with full jitter, but not less than the server asks for; `waits` came before."""
        most = min(self.options.backoff_most_s, self.options.backoff_first_s * 2**waits)
        return max(failure.after_s or 0.0, random.uniform(0, most))  # noqa: S311 -- nothing secret

    async def _new_client(self, server: Server) -> httpx.AsyncClient:
        if server.key is None:
            server.key = await self._offload(lambda: self._keys(server.address.host))
        if self._client is not None:
            return self._client(Endpoint(server.endpoint.url, server.key))
        if not server.address.encrypted:
            return new_client(server, self.options, no_trust())
        if self._trust is None:
            self._trust = await self._offload(lambda: trust(self.options))
        return new_client(server, self.options, self._trust)

    def _note(self, server: Server, piece: Piece) -> None:
        if piece.finish is None or piece.usage is None:
            return
        server.succeeded()
        usage = piece.usage
        if usage.decode_s > 0 and usage.completion_tokens > 1:
            self._speed = usage.completion_tokens / usage.decode_s

    def _state(self, running: int) -> EngineState:
        if self._waits.closed:
            return EngineState.CLOSED
        if running or self._places.waiting:
            return EngineState.BUSY
        if not any(server.well for server in self._servers):
            return EngineState.FAILED
        return EngineState.READY if any(server.facts for server in self._servers) else EngineState.IDLE

    def _notes(self) -> tuple[str, ...]:
        notes = [
            f"what is sent to {server.address.host} is not encrypted (http://)"
            for server in self._servers
            if server.address.exposed
        ]
        for server in self._servers:
            host, facts, manner = server.address.host, server.facts, server.manner
            if facts is not None and facts.dialect.counting is Counting.ESTIMATE:
                notes.append(f"{host} ({facts.kind}) counts no tokens; they are estimated")
            if manner is not None and manner.schema is SchemaWay.WORDS:
                notes.append(f"{host} takes no JSON schema; it is asked for in words")
        return tuple(notes)

    def _looked(self) -> None:
        self._places.look_again()
        self._changed()

    def _changed(self) -> None:
        self.on_status(self.status())


def _error(failures: list[tuple[Server, Failed]]) -> EngineError:
    """What is said when no try is left: the last failure of each endpoint, once."""
    last = {server: failure.error for server, failure in failures}
    if len(last) == 1:
        return next(iter(last.values()))
    said = dict.fromkeys(str(error) for error in last.values())
    return EngineUnavailable(f"No server could answer: {' '.join(sentence(text) for text in said)}")


def _picture(server: Server) -> dict[str, Any]:
    facts, manner = server.facts, server.manner
    picture: dict[str, Any] = {
        "host": server.address.host,
        "well": server.well,
        "problem": server.problem,
        "running": server.running,
    }
    if facts is not None and manner is not None:
        infill: InfillWay | None = manner.infill
        picture |= {
            "kind": str(facts.kind),
            "model": facts.model,
            "models": facts.models,
            "contextTokens": facts.context_tokens,
            "schema": str(manner.schema),
            "prefill": str(manner.prefill),
            "infill": str(infill) if infill is not None else "",
        }
    return picture

"""One endpoint while it is in use: its connections, how it is, and what was found out about it."""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from nexo_lsp.engines.remote.asking import Asked, Manner
from nexo_lsp.engines.remote.dialect import Counting, Dialect, Kind, context_of, dialect_for, kind_of, listed
from nexo_lsp.engines.remote.endpoint import Address, Endpoint, RemoteOptions
from nexo_lsp.engines.remote.refusals import KEY_HINT, Again, Failed, refused, silent, unreachable, unusable
from nexo_lsp.engines.remote.shapes import as_count, as_list, as_object
from nexo_lsp.errors import EngineUnavailable

_log = logging.getLogger(__name__)

MakeClient = Callable[[Endpoint], httpx.AsyncClient]

_KEEP_ALIVE_S = 4.0
"""Less than the five seconds after which llama-server and uvicorn close an idle connection: a request that is
sent just then is lost."""

_REST_FIRST_S, _REST_MOST_S = 2.0, 60.0

_CHECK_S = 10.0
"""How long a server that is busy may take to say how it is."""

_LARGEST = 1 << 20
"""Bytes of an answer that is no stream (a list of models, an error)."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a server says about itself."""

    kind: Kind
    model: str
    """The one that is asked for; empty where the server lists none and the settings name none."""
    models: tuple[str, ...]
    context_tokens: int | None

    @property
    def dialect(self) -> Dialect:
        """How it is asked."""
        return dialect_for(self.kind, self.model)


class Server:
    """One endpoint. Not asked anything before it is needed."""

    def __init__(
        self,
        endpoint: Endpoint,
        options: RemoteOptions,
        make_client: Callable[[Server], Awaitable[httpx.AsyncClient]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.endpoint = endpoint
        self.key = endpoint.key
        self.address = Address.of(endpoint.url)
        self.running = 0
        """Requests that have a place here."""
        self.rests_until = 0.0
        self.problem = ""
        """Why it failed last; empty while it is well."""
        self.places = options.parallel
        """How many requests it gets at once."""
        self.facts: Facts | None = None
        self.manner: Manner | None = None
        self._options = options
        self._make_client = make_client
        self._clock = clock
        self._failures = 0
        self._client: httpx.AsyncClient | None = None
        self._retired: list[httpx.AsyncClient] = []
        self._used: Counter[httpx.AsyncClient] = Counter()
        """How many requests each client is making."""
        self._learning = asyncio.Lock()
        self._opening = asyncio.Lock()

    @property
    def well(self) -> bool:
        """Whether nothing speaks against asking it."""
        return not self.problem

    def succeeded(self) -> None:
        """It answered."""
        self._failures, self.rests_until, self.problem = 0, 0.0, ""

    def failed(self, failure: Failed) -> None:
        """Leave it alone for a while, ever longer, if `failure` is a reason to."""
        if failure.rests:
            self._rest(failure)

    def _rest(self, failure: Failed) -> None:
        self._failures += 1
        rest = min(_REST_MOST_S, _REST_FIRST_S * 2 ** (self._failures - 1))
        self.rests_until = self._clock() + (failure.after_s or rest)
        self.problem = str(failure.error)
        if failure.wants_key:
            # There may be another one when it is asked again.
            self.key = self.endpoint.key
            self._retired += [self._client] if self._client is not None else []
            self._client = None
        # Another program, or another model, may answer when it is back.
        self.facts = self.manner = None

    def cut_short(self) -> bool:
        """An answer ended without a reason: whether it was given up for another request.

        Then the server gets one request at a time from now on.
        """
        if self.facts is None or self.facts.kind is not Kind.LLAMA_PYTHON:
            return False
        self.places = 1
        return True

    async def learn(self) -> Facts:
        """What it says about itself; asked once. Raises `Failed`."""
        async with self._learning:
            if self.facts is None:
                self.facts = await self._learn()
                self.manner = Manner.first(self.facts.dialect)
                _log.info("%s is %s with %s", self.address.host, self.facts.kind, self.facts.model or "?")
            return self.facts

    async def check(self) -> bool:
        """Whether it can answer, by the cheapest question that it has; raises nothing."""
        path = self.facts.dialect.health if self.facts is not None else ""
        url = self.address.root + path if path else f"{self.address.api}/models"
        try:
            async with self._open("GET", url, None, checking=True) as response:
                await _whole(response)
        except Failed as failure:
            # Whoever does not know the question answers all the same.
            if not failure.not_there:
                if failure.rests or not self.well:
                    self._rest(failure)
                return False
        self.succeeded()
        return True

    async def count(self, text: str) -> int | None:
        """How many tokens `text` is for its model; None where it does not count. Raises `Failed`."""
        facts = await self.learn()
        root = self.address.root
        match facts.dialect.counting:
            case Counting.LLAMA_SERVER:
                said = await self._json("POST", f"{root}/tokenize", {"content": text})
            case Counting.VLLM:
                body = {"model": facts.model, "prompt": text, "add_special_tokens": False}
                said = await self._json("POST", f"{root}/tokenize", body)
            case Counting.LLAMA_PYTHON:
                said = await self._json("POST", f"{root}/extras/tokenize/count", {"input": text})
            case Counting.ESTIMATE:
                return None
        fields = as_object(said)
        tokens = fields.get("tokens")
        return as_count(fields.get("count")) if tokens is None else len(as_list(tokens))

    def ask(self, asked: Asked) -> AbstractAsyncContextManager[httpx.Response]:
        """Send a request; the answer is read as it comes. Raises `Failed`, also from the body's reading."""
        place = self.address.root if asked.at_root else self.address.api
        return self._open("POST", place + asked.path, asked.body)

    async def close(self) -> None:
        """Close its connections."""
        clients, self._client = [self._client, *self._retired], None
        self._retired.clear()
        for client in clients:
            if client is not None:
                await client.aclose()

    async def _learn(self) -> Facts:
        options = self._options
        url = f"{self.address.api}/models"
        try:
            async with self._open("GET", url, None) as response:
                server = response.headers.get("server", "")
                models: object = json.loads(await _whole(response))
        except ValueError as error:
            raise unusable(self.address.host, f"{url} is no JSON; is it the server's address?") from error
        except Failed as failure:
            # Not every server lists its models; then the settings have to name one.
            if not failure.not_there or not options.model:
                raise
            return Facts(Kind.UNKNOWN, options.model, (), None)
        kind = kind_of(server, models)
        entries = listed(models)
        names = tuple(str(entry["id"]) for entry in entries)
        model = options.model or (names[0] if names else "")
        context = next((context_of(entry) for entry in entries if entry["id"] == model), None)
        if kind is Kind.LLAMA_SERVER:
            context = await self._slot_context() or context
        return Facts(kind, model, names, context)

    async def _slot_context(self) -> int | None:
        """llama-server divides its context among its slots."""
        try:
            props = await self._json("GET", f"{self.address.root}/props", None)
        except Failed:
            return None
        settings = as_object(as_object(props).get("default_generation_settings"))
        return as_count(settings.get("n_ctx")) or None

    async def _json(self, method: str, url: str, body: Mapping[str, Any] | None) -> object:
        async with self._open(method, url, body) as response:
            data = await _whole(response)
        try:
            return json.loads(data)
        except ValueError as error:
            raise unusable(self.address.host, "no JSON") from error

    @asynccontextmanager
    async def _open(
        self, method: str, url: str, body: Mapping[str, Any] | None, *, checking: bool = False
    ) -> AsyncGenerator[httpx.Response]:
        """One request; leaving early closes its connection. Every way of failing becomes `Failed`."""
        host, options = self.address.host, self._options
        silence_s = min(options.answer_timeout_s, _CHECK_S) if checking else options.answer_timeout_s
        try:
            client = await self._ready()
        except EngineUnavailable as error:
            # Its key may be another one the next time.
            raise Failed(error, Again.ELSEWHERE, rests=True, wants_key=True) from error
        timeout = httpx.Timeout(silence_s, connect=options.connect_timeout_s)
        response: httpx.Response | None = None
        self._used[client] += 1
        try:
            request = client.build_request(method, url, timeout=timeout, **_content(body))
            response = await client.send(request, stream=True, follow_redirects=False)
            if not response.is_success:
                data = await _whole(response)
                raise refused(host, response, data, self.key)
            yield response
        except (httpx.ReadTimeout, httpx.WriteTimeout) as error:
            raise silent(host, silence_s, checking=checking) from error
        except httpx.TransportError as error:
            raise unreachable(host, error, options.connect_timeout_s) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise unusable(host, type(error).__name__) from error
        finally:
            self._used[client] -= 1
            if response is not None:
                await response.aclose()

    async def _ready(self) -> httpx.AsyncClient:
        async with self._opening:
            if self._client is None:
                await self._close_unused()
                self._client = await self._make_client(self)
            return self._client

    async def _close_unused(self) -> None:
        """Close the clients of keys that were not taken, but for those that still make an answer."""
        unused = [client for client in self._retired if not self._used[client]]
        self._retired = [client for client in self._retired if self._used[client]]
        for client in unused:
            del self._used[client]
            await client.aclose()


def no_trust() -> ssl.SSLContext:
    """For addresses without encryption: believes nobody, and reads no file."""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def trust(options: RemoteOptions) -> ssl.SSLContext:
    """Whom to believe: httpx's certificates, the system's, and those of the settings. Reads files.

    Raises `EngineUnavailable` where the file of the settings has none.
    """
    context = httpx.create_ssl_context()
    # The system's count beside httpx's own: companies put theirs there.
    context.load_default_certs()
    if options.ca_file is not None:
        try:
            context.load_verify_locations(options.ca_file)
        except (OSError, ssl.SSLError) as error:
            raise EngineUnavailable(
                f"nexo.remote.caFile: {options.ca_file} holds no certificates that can be read ({error})."
            ) from error
    return context


def new_client(server: Server, options: RemoteOptions, context: ssl.SSLContext) -> httpx.AsyncClient:
    """An HTTP client of one endpoint: its key goes nowhere else, and no redirect is followed.

    Raises `EngineUnavailable` where the environment names a proxy of a kind that httpx cannot use here, and
    for what cannot be a key.
    """
    key = server.key or ""
    if not (key.isascii() and key.isprintable()):
        raise EngineUnavailable(
            f"The key of {server.address.host} has characters that no key has; {KEY_HINT}."
        )
    try:
        return httpx.AsyncClient(
            headers={"authorization": f"Bearer {key}"} if key else {},
            verify=context,
            # A proxy would see what is said on this machine.
            trust_env=options.proxies and not server.address.loopback,
            follow_redirects=False,
            limits=httpx.Limits(
                max_connections=None,
                max_keepalive_connections=options.parallel,
                keepalive_expiry=_KEEP_ALIVE_S,
            ),
        )
    except ImportError as error:
        raise EngineUnavailable(
            'A SOCKS proxy is set, which needs one more package; run: pip install "httpx[socks]".'
        ) from error
    except (ValueError, httpx.InvalidURL) as error:
        raise EngineUnavailable(f"A proxy that the environment names is no web address ({error}).") from error


def _content(body: Mapping[str, Any] | None) -> dict[str, Any]:
    """How `body` is sent, as JSON; half a character of UTF-16 cannot be, and is replaced."""
    if body is None:
        return {}
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    content = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode()
    return {"content": content, "headers": {"content-type": "application/json"}}


async def _whole(response: httpx.Response) -> bytes:
    """The body, or its first megabyte."""
    data = b""
    async for chunk in response.aiter_bytes():
        data += chunk
        if len(data) > _LARGEST:
            break
    return data

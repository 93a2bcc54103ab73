"""Whom the remote engine believes, and through whom it goes."""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme

from nexo_lsp.engines.remote.endpoint import Endpoint, RemoteOptions
from nexo_lsp.engines.remote.engine import RemoteEngine
from nexo_lsp.errors import EngineUnavailable

from .requests import chat, collect
from .scripted_server import CHAT, ScriptedServer, answer, refusal

KEY = "key-" + "z"


@asynccontextmanager
async def engine_for(url: str, key: str | None = None, **options: object) -> AsyncGenerator[RemoteEngine]:
    engine = RemoteEngine([Endpoint(url, key)], RemoteOptions(attempts=1, **options))
    try:
        yield engine
    finally:
        await engine.close()


@asynccontextmanager
async def encrypted(authority: trustme.CA, name: str = "127.0.0.1") -> AsyncGenerator[ScriptedServer]:
    server = ScriptedServer()
    server.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(server.tls)
    server.on(CHAT, answer("safe"))
    async with server:
        yield server


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> Path:
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return path


async def test_a_certificate_that_nobody_vouches_for_is_refused(authority: trustme.CA) -> None:
    async with encrypted(authority) as server, engine_for(server.url, KEY) as engine:
        with pytest.raises(EngineUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
            await collect(engine.stream(chat()))
        assert server.got == []


async def test_a_servers_own_authority_can_be_trusted(authority: trustme.CA, ca_file: Path) -> None:
    async with encrypted(authority) as server, engine_for(server.url, KEY, ca_file=ca_file) as engine:
        assert (await collect(engine.stream(chat())))[0] == "safe"


async def test_the_name_counts_too(authority: trustme.CA, ca_file: Path) -> None:
    async with (
        encrypted(authority, "example.org") as server,
        engine_for(server.url, ca_file=ca_file) as engine,
    ):
        with pytest.raises(EngineUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
            await collect(engine.stream(chat()))


async def test_a_file_without_certificates_is_named(tmp_path: Path) -> None:
    (tmp_path / "none.pem").write_text("nothing")
    for name in ("none.pem", "absent.pem"):
        async with engine_for("https://127.0.0.1:1/v1", ca_file=tmp_path / name) as engine:
            with pytest.raises(EngineUnavailable, match=rf"nexo.remote.caFile: .*{name}"):
                await collect(engine.stream(chat()))


async def test_this_machine_is_never_asked_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    async with ScriptedServer() as server, ScriptedServer() as proxy:
        server.on(CHAT, answer("directly"))
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url.removesuffix("/v1"))
        async with engine_for(server.url) as engine:
            assert (await collect(engine.stream(chat())))[0] == "directly"
        assert proxy.got == []


async def test_proxies_of_the_environment_count_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    async with ScriptedServer() as proxy:
        for name in ("HTTP_PROXY", "http_proxy"):
            monkeypatch.setenv(name, proxy.url.removesuffix("/v1"))
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        proxy.on("http://192.0.2.1/v1/models", refusal(403, "blocked"))
        async with engine_for("http://192.0.2.1/v1") as engine:
            with pytest.raises(EngineUnavailable, match="403"):
                await collect(engine.stream(chat()))
        assert [got.path for got in proxy.got] == ["http://192.0.2.1/v1/models"]


async def test_each_endpoint_gets_its_own_key() -> None:
    asked: list[str] = []

    def key(host: str) -> str:
        asked.append(host)
        return f"key of {host}"

    async with ScriptedServer() as first, ScriptedServer() as second:
        first.on(CHAT, refusal(503, "no"))
        second.on(CHAT, answer("yes"))
        engine = RemoteEngine([Endpoint(first.url), Endpoint(second.url, KEY)], keys=key)
        try:
            await collect(engine.stream(chat()))
        finally:
            await engine.close()
        assert {got.headers["authorization"] for got in first.got} == {
            f"Bearer key of 127.0.0.1:{first.port}"
        }
        assert {got.headers["authorization"] for got in second.got} == {f"Bearer {KEY}"}
        assert asked == [f"127.0.0.1:{first.port}"]


async def test_a_key_that_comes_later_is_found() -> None:
    """After `nexo-lsp remote login` nothing has to be started again."""
    keys: dict[str, str] = {}
    async with ScriptedServer() as server:
        server.on(CHAT, lambda got: answer("in") if "authorization" in got.headers else refusal(401, "who?"))
        engine = RemoteEngine([Endpoint(server.url)], keys=keys.get)
        try:
            with pytest.raises(EngineUnavailable, match="wants a key"):
                await collect(engine.stream(chat()))
            keys[f"127.0.0.1:{server.port}"] = KEY
            assert (await collect(engine.stream(chat())))[0] == "in"
        finally:
            await engine.close()


@pytest.mark.parametrize("key", ["schlüssel", "two\nlines"])
async def test_what_cannot_be_a_key_is_said_without_being_shown(key: str) -> None:
    async with ScriptedServer() as server, engine_for(server.url, key) as engine:
        with pytest.raises(EngineUnavailable, match="characters that no key has") as caught:
            await collect(engine.stream(chat()))
        assert key not in str(caught.value)
        assert server.got == []

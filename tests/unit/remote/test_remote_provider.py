"""When a remote engine may be used; and that nothing at all is sent when it may not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable

import pytest
import pytest_asyncio
from typer.testing import CliRunner

from nexo_lsp import settings
from nexo_lsp.cli import remote as cli
from nexo_lsp.engines.remote.endpoint import Endpoint
from nexo_lsp.engines.remote.engine import RemoteEngine
from nexo_lsp.errors import EngineUnavailable
from nexo_lsp.generation import EngineStatus, Message, Role
from nexo_lsp.runtime.keys import VARIABLE
from nexo_lsp.runtime.providers.remote import RemoteProvider
from nexo_lsp.settings import RemoteSettings

from ...engine.requests import chat, collect
from ...engine.scripted_server import CHAT, MODELS, ScriptedServer, answer, refusal
from .secret_samples import GITHUB

KEY = "key-" + "x"


@pytest_asyncio.fixture
async def server() -> AsyncGenerator[ScriptedServer]:
    async with ScriptedServer() as one:
        one.on(CHAT, answer("hello"))
        yield one


def provider(
    enabled: bool = True, trusted: bool = True, installed: bool = True, *urls: str
) -> RemoteProvider:
    remote = RemoteSettings(enabled=enabled, endpoints=urls or ("https://example.org/v1",))
    return RemoteProvider(remote, lambda: trusted, {}, installed=lambda: installed)


def test_reasons() -> None:
    assert "nexo.remote.enabled" in provider(enabled=False).probe().reason
    assert "not trusted" in provider(trusted=False).probe().reason
    assert 'pip install "nexo-lsp[remote]"' in provider(installed=False).probe().reason
    nowhere = RemoteProvider(RemoteSettings(enabled=True), lambda: True, {})
    assert "nexo.remote.endpoints" in nowhere.probe().reason
    wrong = provider(True, True, True, "example.org/v1")
    assert "is not a web address" in wrong.probe().reason
    found = provider(True, True, True, "https://example.org:8443/v1", "http://localhost:1/v1").probe()
    assert found.usable
    assert found.reason == "on, with example.org:8443, localhost:1"
    for unusable in (
        provider(enabled=False),
        provider(trusted=False),
        provider(installed=False),
        nowhere,
        wrong,
    ):
        assert not unusable.probe().usable


@pytest.mark.parametrize(
    ("urls", "here"),
    [
        (("http://localhost:8080/v1",), True),
        (("http://127.0.0.1:8080/v1", "http://[::1]:8080"), True),
        (("http://127.0.0.1:8080/v1", "https://example.org/v1"), False),
        (("https://localhost.example.org/v1",), False),
        (("http://127.0.0.1@example.org/v1",), False),
        (("http://10.0.0.1/v1",), False),
        (("http://[bad",), False),
    ],
)
def test_what_leaves_the_machine(urls: tuple[str, ...], here: bool) -> None:
    traits = provider(True, True, True, *urls).traits()
    assert (traits.sends_code, traits.network) == (not here, not here)
    assert provider(True, True, True, *urls).capabilities().local is here


async def test_an_engine_sends_what_it_may(server: ScriptedServer) -> None:
    told: list[dict[str, int]] = []
    statuses: list[EngineStatus] = []
    remote = RemoteSettings(enabled=True, endpoints=(server.url,))
    one = RemoteProvider(
        remote, lambda: True, {"NEXO_REMOTE_API_KEY": KEY}, lambda counts: told.append(dict(counts))
    )
    engine = one.create_engine(statuses.append)
    try:
        assert (await collect(engine.stream(chat(f"x = '{GITHUB}'"))))[0] == "hello"
    finally:
        await engine.close()
    (got,) = server.chats
    assert got.headers["authorization"] == f"Bearer {KEY}"
    assert GITHUB not in json.dumps(got.body)
    assert told == [{"github-token": 1}]
    assert statuses[-1].name == "remote"
    assert statuses[-1].extra["redacted"] == {"github-token": 1}
    assert KEY not in repr(one) + repr(statuses)


@pytest.mark.parametrize(("enabled", "trusted"), [(False, True), (True, False), (False, False)])
async def test_nothing_is_sent_unless_it_is_on_and_the_workspace_is_trusted(
    server: ScriptedServer, enabled: bool, trusted: bool
) -> None:
    one = provider(enabled, trusted, True, server.url)
    one.probe()
    one.traits()
    one.capabilities()
    engine = one.create_engine(lambda _status: None)
    try:
        for _ in range(2):
            with pytest.raises(EngineUnavailable, match="Nothing was sent"):
                await collect(engine.stream(chat("secret plans")))
        with pytest.raises(EngineUnavailable):
            await engine.count_tokens("secret plans")
        engine.status()
        await asyncio.sleep(0)
    finally:
        await engine.close()
    assert server.got == []


async def test_trust_that_ends_ends_the_sending(server: ScriptedServer) -> None:
    trusted = True
    one = RemoteProvider(RemoteSettings(enabled=True, endpoints=(server.url,)), lambda: trusted, {})
    engine = one.create_engine(lambda _status: None)
    try:
        await collect(engine.stream(chat("a")))
        trusted = False
        with pytest.raises(EngineUnavailable, match="not trusted"):
            await collect(engine.stream(chat("b")))
    finally:
        await engine.close()
    assert len(server.chats) == 1


async def test_a_workspace_cannot_turn_it_on(server: ScriptedServer) -> None:
    """What an editor sends may come from a workspace's settings; it counts nothing here."""
    theirs = settings.Layer(
        "workspace/configuration",
        {"remote": {"enabled": True, "endpoints": [server.url]}},
        users_own=False,
    )
    resolved = settings.resolve([theirs])
    assert len(resolved.problems) == 2
    one = RemoteProvider(resolved.settings.remote, lambda: True, {})
    assert not one.probe().usable
    # Endpoints that are the workspace's beside a switch that is the user's lead nowhere either.
    mine = settings.Layer("settings.toml", {"remote": {"enabled": True}})
    one = RemoteProvider(settings.resolve([mine, theirs]).settings.remote, lambda: True, {})
    assert "nexo.remote.endpoints" in one.probe().reason
    assert server.got == []


async def test_the_command_that_tests_servers(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ScriptedServer() as broken:
        broken.on(MODELS, refusal(401, "who are you?"))
        monkeypatch.setenv("NEXO_REMOTE_ENDPOINTS", f"{server.url},{broken.url}")
        monkeypatch.setenv("NEXO_REMOTE_API_KEY", KEY)

        def run(*words: str):
            return CliRunner(env={"COLUMNS": "200"}).invoke(cli.app, ["test", *words])

        told = await asyncio.to_thread(run)
        assert told.exit_code == 1
        assert "answers" in told.stdout
        assert "does not take the key" in told.stdout
        assert "environment (NEXO_REMOTE_API_KEY)" in told.stdout
        assert "nexo.remote.enabled is off" in told.stdout
        as_json = await asyncio.to_thread(run, "--json", server.url)
        assert as_json.exit_code == 0
        (row,) = json.loads(as_json.stdout)
        assert (row["ok"], row["model"], row["models"]) == (True, "coder", ["coder"])
        assert row["first_token_ms"] > 0
        assert KEY not in told.output + as_json.output
        assert (await asyncio.to_thread(run, "not an address")).exit_code == 2
        hello = server.chats[0].body["messages"]
        assert hello == [{"role": str(Role.USER), "content": Message(Role.USER, "Say: ok").content}]


def test_the_key_for_all_goes_to_nobody_whom_others_can_overhear(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Callable[[str], str | None]] = []

    def remember(*_: object, keys: Callable[[str], str | None]) -> RemoteEngine:
        made.append(keys)
        return RemoteEngine([Endpoint("https://a.example")])

    monkeypatch.setattr("nexo_lsp.engines.remote.engine.RemoteEngine", remember)
    monkeypatch.setattr("nexo_lsp.runtime.keys.is_installed", lambda: False)
    urls = ("http://a.example/v1", "https://b.example/v1", "http://localhost:1/v1", "http://c.example/v1")
    settings = RemoteSettings(enabled=True, endpoints=urls)
    environ = {VARIABLE: "general", f"{VARIABLE}_C_EXAMPLE": "own"}
    RemoteProvider(settings, lambda: True, environ).create_engine(lambda _status: None)
    found = {host: made[0](host) for host in ("a.example", "b.example", "localhost:1", "c.example")}
    assert found == {"a.example": None, "b.example": "general", "localhost:1": "general", "c.example": "own"}

"""Whether the client's engine may be used, and what it is said to be like."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest

from nexo_lsp.engines.client_hosted import ClientHostedEngine
from nexo_lsp.engines.client_port import Announcement, ClientPort
from nexo_lsp.engines.engine import Engine
from nexo_lsp.errors import EngineUnavailable
from nexo_lsp.generation import Capabilities, ChatPrompt, EngineStatus, Message, Piece, Request, Role
from nexo_lsp.runtime.environment import Platform
from nexo_lsp.runtime.providers.client_hosted import ClientHostedProvider
from nexo_lsp.runtime.providers.provider import Provider
from nexo_lsp.safety import redaction

HERE = Announcement(model="small", infill=True, json_schema=True, context_tokens=2048, local=True)
AWAY = Announcement(model="large")


class Link:
    """A client that is asked nothing in these tests."""

    def start(self, request_id: int, request: Request) -> None:
        raise AssertionError("it was asked")

    def cancel(self, request_id: int) -> None:
        raise AssertionError("it was asked")

    async def count_tokens(self, text: str) -> int | None:
        raise AssertionError("it was asked")


class Wrapped:
    """Stands for what takes secrets out."""

    def __init__(self, inner: Engine) -> None:
        self.inner = inner

    def capabilities(self) -> Capabilities:
        return self.inner.capabilities()

    def status(self) -> EngineStatus:
        return self.inner.status()

    async def count_tokens(self, text: str) -> int:
        return await self.inner.count_tokens(text)

    def stream(self, request: Request) -> AsyncGenerator[Piece, None]:
        return self.inner.stream(request)

    async def close(self) -> None:
        await self.inner.close()


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "is_installed", lambda: True)


def port_with(announcement: Announcement | None) -> ClientPort:
    port = ClientPort()
    port.connect(Link())
    port.announce(announcement)
    return port


def told(status: EngineStatus) -> None:
    """Nobody listens."""


@pytest.mark.parametrize("port", [None, ClientPort(), port_with(None)])
def test_without_an_announcement_there_is_none(port: ClientPort | None) -> None:
    provider: Provider = ClientHostedProvider(port)
    found = provider.probe()
    assert (found.usable, found.reason) == (False, "the editor offers no engine of its own")
    assert provider.traits().sends_code is False


def test_an_engine_on_this_machine_is_usable_and_what_it_says() -> None:
    provider = ClientHostedProvider(port_with(HERE))
    found = provider.probe()
    assert (found.usable, found.reason) == (True, "the editor offers small, on this machine")
    assert provider.capabilities() == Capabilities(infill=True, json_schema=True, context_tokens=2048)
    traits = provider.traits()
    assert (traits.sends_code, traits.network, traits.processes, traits.only_by_name) == (False,) * 4
    assert traits.platforms >= {Platform.WEB, Platform.IOS}


def test_one_elsewhere_sends_code() -> None:
    provider = ClientHostedProvider(port_with(AWAY), lambda: None, Wrapped)
    traits = provider.traits()
    assert (traits.sends_code, traits.network) == (True, True)
    assert provider.probe().usable
    assert provider.capabilities().local is False


@pytest.mark.parametrize(
    ("provider", "words"),
    [
        (ClientHostedProvider(port_with(AWAY)), "may send code"),
        (ClientHostedProvider(port_with(AWAY), wrap=Wrapped), "may send code"),
        (ClientHostedProvider(port_with(AWAY), lambda: "nexo.remote.enabled is off", Wrapped), "is off"),
        (ClientHostedProvider(port_with(AWAY), lambda: None), "secrets"),
    ],
    ids=["nothing wired", "no consent", "switched off", "no redaction"],
)
async def test_one_elsewhere_needs_consent_and_redaction(provider: ClientHostedProvider, words: str) -> None:
    found = provider.probe()
    assert not found.usable
    assert words in found.reason
    engine = provider.create_engine(told)
    with pytest.raises(EngineUnavailable):
        await anext(engine.stream(Request(ChatPrompt((Message(Role.USER, "secret"),)))))
    await engine.close()


async def test_what_leaves_is_wrapped_and_what_stays_is_not() -> None:
    away = ClientHostedProvider(port_with(AWAY), lambda: None, Wrapped).create_engine(told)
    here = ClientHostedProvider(port_with(HERE), lambda: None, Wrapped).create_engine(told)
    assert isinstance(away, Wrapped)
    assert isinstance(here, ClientHostedEngine)


async def test_one_that_was_taken_for_local_asks_none_elsewhere() -> None:
    port = port_with(HERE)
    engine = ClientHostedProvider(port, lambda: None, Wrapped).create_engine(told)
    port.announce(AWAY)
    with pytest.raises(EngineUnavailable, match="another machine"):
        await anext(engine.stream(Request(ChatPrompt((Message(Role.USER, "secret"),)))))


async def test_the_status_is_told() -> None:
    port, models = port_with(HERE), list[str | None]()
    ClientHostedProvider(port).create_engine(lambda status: models.append(status.model))
    port.announce(AWAY)
    assert models == ["large"]


def test_without_the_library_that_finds_secrets_nothing_is_sent_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "is_installed", lambda: False)
    found = ClientHostedProvider(port_with(AWAY), lambda: None, Wrapped).probe()
    assert not found.usable
    assert redaction.INSTALL_HINT in found.reason
    assert ClientHostedProvider(port_with(HERE)).probe().usable

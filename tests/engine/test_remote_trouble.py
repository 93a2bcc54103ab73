"""The remote engine at servers that are in trouble."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import cast

import httpx
import pytest
import pytest_asyncio

from nexo_lsp.engines.remote.endpoint import Endpoint, RemoteOptions
from nexo_lsp.engines.remote.engine import RemoteEngine
from nexo_lsp.engines.remote.refusals import in_stream, refused, unusable
from nexo_lsp.engines.remote.server import Server
from nexo_lsp.engines.remote.watch import Watch
from nexo_lsp.errors import EngineSilent, EngineUnavailable

from .requests import chat, collect
from .scripted_server import (
    CHAT,
    DONE,
    MODELS,
    WAIT_S,
    Hang,
    ScriptedServer,
    answer,
    ends,
    refusal,
    says,
    sse,
)

NOW = 1000.0


@pytest_asyncio.fixture
async def scripted() -> AsyncGenerator[ScriptedServer]:
    async with ScriptedServer() as one:
        yield one


async def _client(_server: Server) -> httpx.AsyncClient:
    return httpx.AsyncClient(trust_env=False)


@pytest_asyncio.fixture
async def server(scripted: ScriptedServer) -> AsyncGenerator[Server]:
    one = Server(Endpoint(scripted.url), RemoteOptions(answer_timeout_s=0.2), _client, lambda: NOW)
    yield one
    await one.close()


@pytest.mark.parametrize("status", [400, 408, 425, 429, 500, 503])
async def test_whoever_cannot_say_how_it_is_rests_ever_longer(
    scripted: ScriptedServer, server: Server, status: int
) -> None:
    scripted.on(MODELS, refusal(status, "no"), refusal(500, "no", {"retry-after": "44"}))
    server.failed(unusable("it", "nothing"))
    rests = [server.rests_until]
    for _ in range(2):
        assert not await server.check()
        rests.append(server.rests_until)
    assert rests == [NOW + 2, NOW + 4, NOW + 44]
    assert not server.well


@pytest.mark.parametrize("status", [404, 405])
async def test_whoever_does_not_know_the_question_is_well_again(
    scripted: ScriptedServer, server: Server, status: int
) -> None:
    scripted.on(MODELS, refusal(status, "no such path"))
    server.failed(unusable("it", "nothing"))
    assert await server.check()
    assert server.well


async def test_a_busy_answer_to_a_check_is_no_failure(scripted: ScriptedServer, server: Server) -> None:
    scripted.on(MODELS, refusal(429, "slowly"))
    assert not await server.check()
    assert server.well


async def test_silence_at_a_check_blames_no_setting(scripted: ScriptedServer, server: Server) -> None:
    scripted.on(MODELS, sse(Hang()))
    assert not await server.check()
    assert "said nothing" in server.problem
    assert "answerTimeoutS" not in server.problem


async def test_silence_is_told_from_other_failures(scripted: ScriptedServer) -> None:
    scripted.on(CHAT, sse(Hang()))
    engine = RemoteEngine([Endpoint(scripted.url)], RemoteOptions(answer_timeout_s=0.2))
    try:
        with pytest.raises(EngineSilent, match="answerTimeoutS"):
            await collect(engine.stream(chat()))
    finally:
        await engine.close()


async def test_between_two_looks_there_is_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    pause = 0.2
    monkeypatch.setattr("nexo_lsp.engines.remote.watch._PAUSE_S", pause)
    enough = asyncio.Event()
    looks: list[float] = []

    class Troubled:
        well, running, rests_until = False, 0, 0.0

        async def check(self) -> bool:
            await asyncio.sleep(0)
            looks.append(asyncio.get_running_loop().time())
            if len(looks) == 3:
                enough.set()
            return False

    watch = Watch([cast("Server", Troubled())], 60.0, 60.0, lambda: None)
    watch.used()
    try:
        await asyncio.wait_for(enough.wait(), WAIT_S)
    finally:
        await watch.close()
    assert looks[2] - looks[0] >= 1.9 * pause


async def test_half_a_character_goes_and_comes(scripted: ScriptedServer) -> None:
    fox, half = "\N{FOX FACE}", "\ud83e"
    units = [fox.encode("utf-16-le")[at : at + 2].decode("utf-16-le", "surrogatepass") for at in (0, 2)]

    def escaped(text: str) -> bytes:
        choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
        return f"data: {json.dumps({'choices': [choice]})}\n\n".encode()

    scripted.on(CHAT, sse(escaped("a" + units[0]), escaped(units[1] + "b" + half), ends(), DONE))
    engine = RemoteEngine([Endpoint(scripted.url)])
    try:
        assert (await collect(engine.stream(chat(f"x{half}y{fox}"))))[0] == f"a{fox}b\ufffd"
        assert scripted.chats[0].body["messages"][0]["content"] == f"x\ufffdy{fox}"
        assert scripted.chats[0].headers["content-type"] == "application/json"
        assert await engine.count_tokens(half) > 0
    finally:
        await engine.close()


async def test_an_endpoint_whose_client_cannot_be_made_is_left_to_the_others(
    scripted: ScriptedServer,
) -> None:
    scripted.on(CHAT, answer("from the other"))
    bad = Endpoint("http://127.0.0.1:9/v1", "two\nlines")
    engine = RemoteEngine([bad, Endpoint(scripted.url)])
    alone = RemoteEngine([bad])
    try:
        assert (await collect(engine.stream(chat())))[0] == "from the other"
        assert "characters that no key has" in engine.status().detail
        assert await alone.count_tokens("some words") > 0
    finally:
        await engine.close()
        await alone.close()


@pytest.mark.parametrize("whole", [True, False], ids=["JSON", "text"])
def test_no_part_of_a_key_is_left_where_a_message_is_cut(whole: bool) -> None:
    key = "key-" + "q7" * 20
    message = "x" * 290 + key
    body = json.dumps({"error": {"message": message}}) if whole else message
    failure = refused("h", httpx.Response(500), body.encode(), key)
    assert "key-" not in str(failure.error)
    if whole:
        assert "key-" not in str(in_stream("h", json.loads(body), key).error)


async def test_clients_whose_key_was_not_taken_are_closed(scripted: ScriptedServer) -> None:
    made: list[httpx.AsyncClient] = []

    def client(_endpoint: Endpoint) -> httpx.AsyncClient:
        made.append(httpx.AsyncClient(trust_env=False))
        return made[-1]

    scripted.on(CHAT, sse(says("begun"), Hang()), refusal(401, "no"))
    engine = RemoteEngine([Endpoint(scripted.url)], client=client)
    try:
        async with aclosing(engine.stream(chat())) as running:
            assert (await anext(running)).text == "begun"
            for _ in range(3):
                with pytest.raises(EngineUnavailable, match="wants a key"):
                    await collect(engine.stream(chat()))
            # The first is still in use, and the last is closed with the next one's making.
            assert [one.is_closed for one in made] == [False, True, False]
    finally:
        await engine.close()
    assert all(one.is_closed for one in made)

"""The remote engine against a server that does as it is told."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

import pytest
import pytest_asyncio

from nexo_lsp.engines.remote.endpoint import Address, Endpoint, RemoteOptions
from nexo_lsp.engines.remote.engine import RemoteEngine
from nexo_lsp.errors import (
    EngineClosed,
    EngineCrashed,
    EngineError,
    EngineUnavailable,
    PromptTooLong,
    SettingsError,
)
from nexo_lsp.generation import EngineState, FinishReason, Priority

from .requests import background, chat, collect
from .scripted_server import (
    CHAT,
    DONE,
    MODELS,
    WAIT_S,
    Cut,
    Hang,
    Reply,
    ScriptedServer,
    answer,
    data,
    ends,
    event,
    refusal,
    says,
    sse,
)

SECRET = "key-" + "of-mine"

Make = Callable[..., RemoteEngine]


@pytest_asyncio.fixture
async def make() -> AsyncGenerator[Make]:
    made: list[RemoteEngine] = []

    def engine(*servers: ScriptedServer | str, key: str | None = None, **options: object) -> RemoteEngine:
        quick = {"backoff_first_s": 0.01, "backoff_most_s": 0.02, "connect_timeout_s": 5.0}
        urls = [server if isinstance(server, str) else server.url for server in servers]
        one = RemoteEngine([Endpoint(url, key) for url in urls], RemoteOptions(**{**quick, **options}))
        made.append(one)
        return one

    yield engine
    for one in made:
        await one.close()


@pytest_asyncio.fixture
async def server() -> AsyncGenerator[ScriptedServer]:
    async with ScriptedServer() as one:
        yield one


async def start_of(stream) -> str:
    async with asyncio.timeout(WAIT_S):
        return (await anext(stream)).text


async def test_an_answer_comes_in_pieces_with_what_it_cost(server: ScriptedServer, make: Make) -> None:
    server.on(CHAT, answer("Hel", "lo", "!"))
    engine = make(server, key=SECRET)
    pieces = [piece async for piece in engine.stream(chat("hi", stop=("END",), seed=3, temperature=0.5))]
    assert [piece.text for piece in pieces] == ["Hel", "lo", "!", ""]
    assert pieces[-1].finish is FinishReason.STOP
    assert pieces[-1].usage is not None
    assert (pieces[-1].usage.prompt_tokens, pieces[-1].usage.completion_tokens) == (7, 3)
    (asked,) = server.chats
    assert asked.headers["authorization"] == f"Bearer {SECRET}"
    assert asked.body == {
        "model": "coder",
        "messages": [{"role": "user", "content": "hi"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 40,
        "temperature": 0.5,
        "seed": 3,
        "stop": ["END"],
    }
    assert engine.status().model == "coder"
    assert engine.status().state is EngineState.READY
    await collect(engine.stream(chat("again")))
    assert [got.path for got in server.got].count(MODELS) == 1


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
async def test_a_stream_may_be_cut_anywhere(
    server: ScriptedServer, make: Make, size: int, line_end: bytes
) -> None:
    stream = (
        b": ping\n\n" + says("naïve → 🦊") + b": keep-alive\nid: 4\nevent: x\n\n" + says("?") + ends() + DONE
    )
    stream = stream.replace(b"\n", line_end)
    server.on(CHAT, sse(*(stream[at : at + size] for at in range(0, len(stream), size))))
    text, last = await collect(make(server).stream(chat()))
    assert text == "naïve → 🦊?"
    assert last.finish is FinishReason.STOP


async def test_ends_without_an_empty_line_or_without_a_reason_are_ends(
    server: ScriptedServer, make: Make
) -> None:
    server.on(CHAT, sse(says("a"), ends("length").rstrip()), sse(says("b"), DONE))
    engine = make(server)
    assert (await collect(engine.stream(chat())))[1].finish is FinishReason.LENGTH
    text, last = await collect(engine.stream(chat()))
    assert (text, last.finish) == ("b", FinishReason.STOP)


async def test_a_server_that_does_not_stream_is_understood(server: ScriptedServer, make: Make) -> None:
    choice = {"message": {"role": "assistant", "content": "whole"}, "finish_reason": "stop"}
    server.on(CHAT, data({"choices": [choice], "usage": {"completion_tokens": 1}}))
    text, last = await collect(make(server).stream(chat()))
    assert text == "whole"
    assert last.usage is not None
    assert last.usage.completion_tokens == 1


async def test_stop_strings_and_max_tokens_hold_on_our_side_too(server: ScriptedServer, make: Make) -> None:
    server.on(CHAT, sse(says("one E"), says("ND two"), Hang()))
    text, last = await collect(make(server).stream(chat(stop=("END",))))
    assert (text, last.finish) == ("one ", FinishReason.STOP)
    await asyncio.wait_for(server.left.wait(), WAIT_S)
    server.on(CHAT, sse(*(says("x") for _ in range(100)), Hang()))
    text, last = await collect(make(server).stream(chat(max_tokens=10)))
    assert last.finish is FinishReason.LENGTH
    assert len(text) < 40


@pytest.mark.parametrize("broken", [b"data: {not json\n\n", b"data: []\n\n", b"data: 3\n\n"])
async def test_garbage_is_an_error(server: ScriptedServer, make: Make, broken: bytes) -> None:
    server.on(CHAT, sse(says("a"), broken), sse(broken))
    engine = make(server)
    with pytest.raises(EngineCrashed, match="broke off its answer"):
        await collect(engine.stream(chat()))
    with pytest.raises(EngineError, match="no JSON"):
        await collect(engine.stream(chat()))


@pytest.mark.parametrize("end", [(), (Cut(),)], ids=["ended", "reset"])
async def test_a_broken_answer_is_begun_again_only_if_nothing_was_shown(
    server: ScriptedServer, make: Make, end: tuple[Cut, ...]
) -> None:
    server.on(CHAT, sse(*end), answer("whole"))
    engine = make(server, attempts=2)
    assert (await collect(engine.stream(chat())))[0] == "whole"
    server.on(CHAT, sse(says("half"), *end), answer("whole"))
    shown = []
    with pytest.raises(EngineCrashed, match=r"127\.0\.0\.1.* broke off its answer"):
        async for piece in engine.stream(chat()):
            shown.append(piece.text)
    assert shown == ["half"]
    assert len(server.chats) == 3


async def test_an_error_inside_the_stream(server: ScriptedServer, make: Make) -> None:
    overflow = {"error": {"message": "too much", "type": "exceed_context_size_error"}}
    server.on(CHAT, sse(event({"error": {"message": "out of memory"}})), sse(event(overflow)))
    with pytest.raises(EngineError, match="out of memory"):
        await collect(make(server, attempts=1).stream(chat()))
    with pytest.raises(PromptTooLong, match="too much"):
        await collect(make(server).stream(chat()))


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
async def test_what_passes_is_tried_again(server: ScriptedServer, make: Make, status: int) -> None:
    server.on(CHAT, refusal(status, "later"), refusal(status, "later"), answer("now"))
    assert (await collect(make(server).stream(chat())))[0] == "now"
    assert len(server.chats) == 3


async def test_retries_end_and_the_last_reason_is_said(server: ScriptedServer, make: Make) -> None:
    server.on(CHAT, refusal(503, "Loading model"))
    with pytest.raises(EngineUnavailable, match="503 Service Unavailable: Loading model"):
        await collect(make(server, attempts=3).stream(chat()))
    assert len(server.chats) == 3
    with pytest.raises(EngineUnavailable):
        await collect(make(server).stream(chat(priority=Priority.INTERACTIVE)))
    assert len(server.chats) == 4, "whoever types is not kept waiting"


async def test_retry_after_is_honoured(
    server: ScriptedServer, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    sleep = asyncio.sleep

    async def fake(seconds: float) -> None:
        slept.append(seconds)
        await sleep(0)

    engine = make(server)
    server.on(CHAT, refusal(429, "slowly", {"retry-after": "7"}), answer("now"))
    monkeypatch.setattr("nexo_lsp.engines.remote.engine.asyncio.sleep", fake)
    assert (await collect(engine.stream(chat())))[0] == "now"
    assert max(slept) == 7
    server.on(CHAT, refusal(429, "slowly", {"retry-after": "3600"}))
    with pytest.raises(EngineUnavailable, match="slowly"):
        await collect(engine.stream(chat()))


async def test_a_key_that_is_not_taken(
    server: ScriptedServer, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server.on(CHAT, refusal(401, f"wrong key {SECRET}"))
    engine = make(server, key=SECRET)
    with pytest.raises(EngineUnavailable, match=r"NEXO_REMOTE_API_KEY.*nexo-lsp remote login") as caught:
        await collect(engine.stream(chat()))
    assert len(server.chats) == 1
    with pytest.raises(EngineUnavailable, match="wants a key"):
        await collect(make(server).stream(chat()))
    for text in (str(caught.value), repr(engine.status()), repr(Endpoint("https://x", SECRET)), caplog.text):
        assert SECRET not in text


async def test_a_server_that_repeats_the_key_does_not_bring_it_into_a_message(
    server: ScriptedServer, make: Make
) -> None:
    server.on(CHAT, refusal(400, f"bad request of {SECRET}"))
    with pytest.raises(EngineError, match="bad request of …"):
        await collect(make(server, key=SECRET).stream(chat()))


async def test_an_unknown_model_names_those_that_there_are(server: ScriptedServer, make: Make) -> None:
    server.on(CHAT, refusal(404, "model not found"))
    with pytest.raises(EngineUnavailable, match="The model larger was asked for; it has: coder"):
        await collect(make(server, model="larger").stream(chat()))


async def test_a_redirect_is_not_followed_and_the_key_stays(server: ScriptedServer, make: Make) -> None:
    async with ScriptedServer() as other:
        server.on(CHAT, Reply(307, {"location": f"{other.url}/chat/completions"}))
        with pytest.raises(EngineUnavailable, match=f"sends us on to http://127.0.0.1:{other.port}"):
            await collect(make(server, key=SECRET).stream(chat()))
        assert other.got == []


async def test_a_prompt_that_is_too_long(server: ScriptedServer, make: Make) -> None:
    server.on(CHAT, refusal(400, "9000 tokens", type="exceed_context_size_error"))
    with pytest.raises(PromptTooLong, match="9000 tokens"):
        await collect(make(server).stream(chat()))
    assert len(server.chats) == 1


async def test_silence_is_a_failure(server: ScriptedServer, make: Make) -> None:
    server.on(CHAT, sse(Hang()))
    with pytest.raises(EngineUnavailable, match=r"said nothing for 0.2 s"):
        await collect(make(server, answer_timeout_s=0.2).stream(chat()))


async def test_cancelling_closes_the_connection(server: ScriptedServer, make: Make) -> None:
    engine = make(server)
    server.on(CHAT, sse(says("a"), Hang()))
    async with aclosing(engine.stream(chat())) as stream:
        assert await start_of(stream) == "a"
        assert engine.status().running == 1
    await asyncio.wait_for(server.left.wait(), WAIT_S)
    server.left.clear()
    server.on(CHAT, sse(Hang()))
    task = asyncio.ensure_future(collect(engine.stream(chat())))
    await server.until(CHAT, 2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(server.left.wait(), WAIT_S)
    assert engine.status().running == 0


async def test_the_deadline_ends_it_wherever_it_is(server: ScriptedServer, make: Make) -> None:
    server.on(CHAT, sse(says("some"), Hang()))
    engine = make(server, parallel=1)
    text, last = await collect(engine.stream(chat(deadline_s=0.3)))
    assert last.finish is FinishReason.DEADLINE
    assert text in {"some", ""}
    await asyncio.wait_for(server.left.wait(), WAIT_S)
    async with aclosing(engine.stream(chat())) as stream:
        await start_of(stream)
        waiting, last = await collect(engine.stream(chat(deadline_s=0.05)))
    assert (waiting, last.finish) == ("", FinishReason.DEADLINE)


async def test_closing_ends_what_runs_and_what_waits(server: ScriptedServer, make: Make) -> None:
    server.on(CHAT, sse(Hang()))
    engine = make(server, parallel=1)
    tasks = [asyncio.ensure_future(collect(engine.stream(chat()))) for _ in range(3)]
    await server.until(CHAT)
    await engine.close()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(result, EngineClosed)
    assert engine.status().state is EngineState.CLOSED
    with pytest.raises(EngineClosed):
        await collect(engine.stream(chat()))
    await engine.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}, "nobody looks after endpoints any more"


async def test_urgent_requests_overtake_and_the_least_urgent_leave_a_place(
    server: ScriptedServer, make: Make
) -> None:
    go = asyncio.Event()
    server.on(CHAT, sse(go, says("x"), ends(), DONE))
    engine = make(server, parallel=2)
    reviews = [asyncio.ensure_future(collect(engine.stream(background(f"review {n}")))) for n in range(3)]
    await server.until(CHAT, 1)
    urgent = asyncio.ensure_future(collect(engine.stream(chat("now", priority=Priority.INTERACTIVE))))
    await server.until(CHAT, 2)
    assert [got.body["messages"][0]["content"] for got in server.chats] == ["review 0", "now"]
    assert engine.status().queued == 2
    go.set()
    await asyncio.gather(*reviews, urgent)
    assert server.most_active == 2


async def test_requests_spread_over_the_endpoints(server: ScriptedServer, make: Make) -> None:
    go = asyncio.Event()
    async with ScriptedServer() as other:
        for one in (server, other):
            one.on(CHAT, sse(go, says("x"), ends(), DONE))
        engine = make(server, other, parallel=2)
        tasks = [asyncio.ensure_future(collect(engine.stream(chat()))) for _ in range(4)]
        await asyncio.gather(server.until(CHAT, 2), other.until(CHAT, 2))
        go.set()
        await asyncio.gather(*tasks)
        assert (server.most_active, other.most_active) == (2, 2)


@pytest.mark.parametrize(
    "fault", [sse(Cut()), refusal(500, "no"), refusal(401, "no"), sse(b"data: ?\n\n"), refusal(404, "no")]
)
async def test_another_endpoint_takes_over(server: ScriptedServer, make: Make, fault: Reply) -> None:
    async with ScriptedServer() as other:
        server.on(CHAT, fault)
        other.on(CHAT, answer("from the other"))
        engine = make(server, other)
        assert (await collect(engine.stream(chat())))[0] == "from the other"


async def test_nobody_takes_over_what_was_shown(server: ScriptedServer, make: Make) -> None:
    async with ScriptedServer() as other:
        server.on(CHAT, sse(says("half"), Cut()))
        engine = make(server, other)
        with pytest.raises(EngineCrashed, match="broke off"):
            await collect(engine.stream(chat()))
        assert other.chats == []


async def test_an_endpoint_that_is_down_is_found_again(make: Make) -> None:
    first, second = ScriptedServer(), ScriptedServer()
    async with second:
        async with first:
            port = first.port
        second.on(CHAT, answer("second"))
        changed = asyncio.Event()
        engine = make(f"http://127.0.0.1:{port}", second)
        assert (await collect(engine.stream(chat())))[0] == "second"
        assert [one["well"] for one in engine.status().extra["endpoints"]] == [False, True]
        assert "no connection" in engine.status().detail
        engine.on_status = lambda status: (
            changed.set() if all(one["well"] for one in status.extra["endpoints"]) else None
        )
        await first.start(port)
        try:
            first.on(CHAT, answer("first"))
            await asyncio.wait_for(changed.wait(), WAIT_S)
            assert (await collect(engine.stream(chat())))[0] == "first"
        finally:
            await first.stop()


async def test_all_that_failed_is_said_once(server: ScriptedServer, make: Make) -> None:
    async with ScriptedServer() as other:
        for one in (server, other):
            one.on(CHAT, refusal(401, "no"))
        with pytest.raises(EngineUnavailable) as caught:
            await collect(make(server, other).stream(chat()))
    assert str(caught.value).count("wants a key") == 2
    assert str(caught.value).startswith("No server could answer")


def test_addresses() -> None:
    assert Address.of("http://localhost:8080").api == "http://localhost:8080/v1"
    assert Address.of("https://h/v1/").api == "https://h/v1"
    assert Address.of("https://h/openai/v1").root == "https://h/openai"
    assert Address.of("https://h/v1beta").api == "https://h/v1beta"
    assert Address.of("http://[::1]:8/v1").loopback
    assert Address.of("http://127.1.2.3/v1").loopback
    assert not Address.of("http://127.0.0.1.example.org").loopback
    assert not Address.of("https://localhost.example.org").loopback


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:8080",
        "ftp://h/v1",
        "https://",
        "https://h/v1?key=1",
        "https://h/#x",
        "http://[h",
        "http://h:x",
        "http://127.0.0.1\\@h/v1",
        "http://127.0.0.1\\.h/v1",
        "http://h h/v1",
    ],
)
def test_what_is_no_address_is_named(url: str) -> None:
    with pytest.raises(SettingsError, match=r"nexo\.remote\.endpoints"):
        Address.of(url)


def test_an_address_with_a_password_is_refused_without_repeating_it() -> None:
    with pytest.raises(SettingsError, match="NEXO_REMOTE_API_KEY") as caught:
        Address.of(f"https://me:{SECRET}@host/v1")
    assert SECRET not in str(caught.value)


async def test_open_http_to_another_machine_is_noted(make: Make) -> None:
    engine = make("http://10.1.2.3/v1", "http://127.0.0.1/v1", "https://example.org/v1")
    assert engine.status().extra["notes"] == ("what is sent to 10.1.2.3 is not encrypted (http://)",)
    assert not engine.capabilities().local


async def test_tokens_are_estimated_where_nobody_counts(server: ScriptedServer, make: Make) -> None:
    engine = make(server)
    assert await engine.count_tokens("x" * 330) in range(95, 106)
    assert any("estimated" in note for note in engine.status().extra["notes"])
    async with ScriptedServer("vllm") as counts:
        counts.on("/tokenize", data({"count": 12}))
        assert await make(counts).count_tokens("text") == 12

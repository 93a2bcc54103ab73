"""The remote engine with real servers: the tiny model for how it works, the default one for what it says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from nexo_lsp.engines.remote.endpoint import Endpoint, RemoteOptions
from nexo_lsp.engines.remote.engine import RemoteEngine
from nexo_lsp.errors import EngineCrashed, EngineUnavailable, PromptTooLong
from nexo_lsp.generation import (
    ChatPrompt,
    FinishReason,
    InfillPrompt,
    InfillTemplate,
    Message,
    Request,
    Role,
)

from .real_servers import RealServer
from .requests import chat, collect, infill, saying

Make = Callable[..., RemoteEngine]

WAIT_S = 60
LONG = 3000
"""Tokens of an answer that nobody waits for: the tiny model never ends one by itself."""


@pytest.fixture(scope="module")
def llama(tiny_model: Path) -> Iterator[RealServer]:
    with RealServer.llama(tiny_model) as server:
        yield server


@pytest.fixture(scope="module")
def python(tiny_model: Path) -> Iterator[RealServer]:
    with RealServer.python(tiny_model) as server:
        yield server


@pytest_asyncio.fixture
async def make() -> AsyncGenerator[Make]:
    made: list[RemoteEngine] = []

    def engine(*servers: RealServer, **options: object) -> RemoteEngine:
        one = RemoteEngine([Endpoint(server.url) for server in servers], RemoteOptions(**options))
        made.append(one)
        return one

    yield engine
    for one in made:
        await one.close()


def picture(engine: RemoteEngine, number: int = 0) -> dict[str, object]:
    return engine.status().extra["endpoints"][number]


def begun(prefix: str, text: str = "go on", **limits: object) -> Request:
    return Request(ChatPrompt((Message(Role.USER, text),), prefix), **limits)


async def test_llama_server_chats(llama: RealServer, make: Make) -> None:
    engine = make(llama)
    text, last = await collect(engine.stream(chat("hello", max_tokens=12)))
    assert text
    assert last.finish is FinishReason.LENGTH
    assert last.usage is not None
    assert last.usage.completion_tokens == 12
    assert last.usage.prompt_tokens > len("hello")
    again, _ = await collect(engine.stream(chat("hello", max_tokens=12)))
    assert again == text
    assert picture(engine)["kind"] == "llama-server"
    assert engine.capabilities().context_tokens == 2048, "a slot's half of the context"


async def test_llama_server_keeps_to_a_schema_and_to_stops(llama: RealServer, make: Make) -> None:
    engine = make(llama)
    text, last = await collect(engine.stream(saying("naïve → 🦊")))
    assert json.loads(text) == "naïve → 🦊"
    assert last.finish is FinishReason.STOP
    text, last = await collect(engine.stream(saying("one two", stop=(" t",))))
    assert (text, last.finish) == ('"one', FinishReason.STOP)


async def test_llama_server_takes_biases_for_texts(llama: RealServer, make: Make) -> None:
    text, _ = await collect(make(llama).stream(chat(max_tokens=5, logit_bias=(("w", 200.0),))))
    assert text == "wwwww"


async def test_llama_server_goes_on_with_a_begun_answer(llama: RealServer, make: Make) -> None:
    text, _ = await collect(make(llama).stream(begun("def add(", max_tokens=10)))
    body = {
        "messages": [{"role": "user", "content": "go on"}, {"role": "assistant", "content": "def add("}],
        "max_tokens": 10,
        "temperature": 0,
    }
    async with httpx.AsyncClient(trust_env=False, timeout=WAIT_S) as client:
        said = (await client.post(f"{llama.url}/chat/completions", json=body)).json()
    whole: str = said["choices"][0]["message"]["content"]
    assert whole.removeprefix("def add(") == text
    assert not text.startswith("def add(")


async def test_llama_server_fills_gaps_and_counts(llama: RealServer, make: Make) -> None:
    engine = make(llama)
    text, last = await collect(engine.stream(infill("a = ", "\nb", max_tokens=6)))
    assert text
    assert last.usage is not None
    assert last.usage.completion_tokens == 6
    assert picture(engine)["infill"] == "/infill"
    assert await engine.count_tokens("héllo") == len("héllo".encode())


async def test_llama_server_says_when_it_is_too_much(llama: RealServer, make: Make) -> None:
    with pytest.raises(PromptTooLong, match="context size"):
        await collect(make(llama).stream(chat("x" * 5000)))


async def test_leaving_frees_the_slot_of_llama_server(llama: RealServer, make: Make) -> None:
    engine = make(llama)
    async with aclosing(engine.stream(chat(max_tokens=LONG))) as stream:
        await anext(stream)
        await llama.until_busy()
    await llama.until_idle()
    task = asyncio.ensure_future(collect(engine.stream(chat("another", max_tokens=LONG))))
    await llama.until_busy()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await llama.until_idle()


async def test_more_requests_than_places(llama: RealServer, make: Make) -> None:
    engine = make(llama, parallel=2)
    answers = await asyncio.gather(*(collect(engine.stream(chat(f"q{n}", max_tokens=20))) for n in range(6)))
    assert all(last.finish is FinishReason.LENGTH for _, last in answers)


async def test_llama_cpp_python(python: RealServer, make: Make) -> None:
    engine = make(python)
    # It loses characters of four bytes that come one byte a token.
    text, last = await collect(engine.stream(saying("naïve → x")))
    assert json.loads(text) == "naïve → x"
    assert picture(engine)["kind"] == "llama_cpp.server"
    assert picture(engine)["schema"] == "response_format json_object with a schema"
    _, last = await collect(engine.stream(chat(max_tokens=9)))
    assert last.finish is FinishReason.LENGTH
    _, last = await collect(engine.stream(infill("a = ", "\nb", max_tokens=6)))
    assert last.finish is FinishReason.LENGTH
    assert await engine.count_tokens("héllo") >= len("héllo".encode())


async def test_what_llama_cpp_python_gives_up_is_not_taken_for_an_answer(
    python: RealServer, make: Make
) -> None:
    """Its default is to end an answer when another request comes."""
    engine = make(python)
    async with aclosing(engine.stream(saying("abcd" * 300, max_tokens=1500))) as stream:
        await anext(stream)
        other = asyncio.ensure_future(collect(engine.stream(saying("other"))))
        with pytest.raises(EngineCrashed, match="--interrupt_requests false"):
            await collect(stream)
    assert (await asyncio.wait_for(other, WAIT_S))[0] == '"other"'
    answers = await asyncio.gather(*(collect(engine.stream(saying(f"q{n}"))) for n in range(3)))
    assert [text for text, _ in answers] == ['"q0"', '"q1"', '"q2"']
    assert python.connections() == 1, "a connection is used again"


async def test_an_answer_that_was_shown_ends_with_its_server(
    tiny_model: Path, llama: RealServer, make: Make
) -> None:
    with RealServer.llama(tiny_model) as first:
        engine = make(first, llama)
        shown: list[str] = []
        with pytest.raises(EngineCrashed, match=f"127.0.0.1:{first.port} broke off its answer"):
            async for piece in engine.stream(chat(max_tokens=LONG)):
                shown.append(piece.text)
                if len(shown) == 3:
                    first.kill()
        assert len(shown) >= 3
        # The next one is answered by the other.
        text, _ = await collect(engine.stream(chat(max_tokens=5)))
        assert text
        assert [one["well"] for one in engine.status().extra["endpoints"]] == [False, True]


async def test_an_answer_of_which_nothing_was_shown_is_begun_again_elsewhere(
    tiny_model: Path, llama: RealServer, make: Make
) -> None:
    with RealServer.llama(tiny_model) as first:
        engine = make(first, llama)
        await collect(engine.stream(chat("warm", max_tokens=2)))
        first.stop()
        sent = asyncio.Event()
        engine.on_status = lambda status: sent.set() if status.extra["endpoints"][0]["running"] else None
        task = asyncio.ensure_future(collect(engine.stream(chat("tell", max_tokens=8))))
        await asyncio.wait_for(sent.wait(), WAIT_S)
        first.kill()
        text, last = await asyncio.wait_for(task, WAIT_S)
        assert last.finish is FinishReason.LENGTH
        expected, _ = await collect(make(llama).stream(chat("tell", max_tokens=8)))
        assert text == expected


async def test_without_any_server_left_one_clear_message(tiny_model: Path, make: Make) -> None:
    with RealServer.llama(tiny_model) as first:
        engine = make(first, attempts=2, backoff_first_s=0.01)
        await collect(engine.stream(chat(max_tokens=2)))
        first.kill()
        with pytest.raises(EngineUnavailable, match=f"no connection to 127.0.0.1:{first.port}"):
            await collect(engine.stream(chat(max_tokens=2)))


@pytest.mark.model
@pytest.mark.parametrize("kind", ["llama", "python"])
async def test_the_default_model_is_of_use_through_a_server(kind: str, model_path: Path, make: Make) -> None:
    made = RealServer.llama(model_path) if kind == "llama" else RealServer.python(model_path)
    with made as server:
        engine = make(server, answer_timeout_s=200)
        template = InfillTemplate(
            ("<|fim_prefix|>", "<|fim_suffix|>", "{suffix}", "<|fim_middle|>", "{prefix}")
        )
        prompt = InfillPrompt("def add(first, second):\n    return", "\n\nprint(add(1, 2))\n", template)
        text, _ = await collect(engine.stream(Request(prompt, max_tokens=16, stop=("\n",))))
        assert text.strip() == "first + second"
        head = "```python\ndef double(number):\n"
        question = "Write a Python function `double(number)` that returns twice the number. Code only."
        text, _ = await collect(engine.stream(begun(head, question, max_tokens=60, stop=("\n```",))))
        assert "def double" not in text
        assert "return" in text
        assert "number" in text
        schema = {
            "type": "object",
            "properties": {"language": {"enum": ["python", "rust"]}},
            "required": ["language"],
        }
        asked = chat("In which language is `def f(): pass`?", max_tokens=150, json_schema=json.dumps(schema))
        text, last = await collect(engine.stream(asked))
        assert json.loads(text) == {"language": "python"}
        assert last.finish is FinishReason.STOP

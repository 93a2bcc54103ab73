"""The Ray Serve application with two replicas of the real model: streams, spreading, leaving, and a killed replica.

Ray itself lives in child processes only.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from nexo_lsp.engines.remote.endpoint import Endpoint, RemoteOptions
from nexo_lsp.engines.remote.engine import RemoteEngine
from nexo_lsp.errors import EngineCrashed
from nexo_lsp.generation import FinishReason
from tests.conftest import IN_CI
from tests.deploy.serving import START_S, Cluster, cluster, until
from tests.engine.requests import chat, collect, saying

pytestmark = [pytest.mark.model, pytest.mark.ray, pytest.mark.timeout(600)]

LONG = "Write a very long story about a dragon who lives in a lighthouse."


@pytest.fixture(scope="module")
def served(model_path: Path) -> Iterator[Cluster]:
    """Two replicas, for all tests of this file."""
    if importlib.util.find_spec("ray") is None or importlib.util.find_spec("sse_starlette") is None:
        reason = "Ray Serve and llama_cpp.server are not installed: pip install 'nexo-lsp[deploy]'"
        if IN_CI:
            pytest.fail(reason)
        pytest.skip(reason)
    with cluster(model_path, replicas=2) as running:
        yield running


@pytest.fixture
async def client(served: Cluster) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=served.url, headers=served.headers, timeout=START_S) as http:
        yield http


def ask(
    client: httpx.AsyncClient, text: str, tokens: int
) -> contextlib.AbstractAsyncContextManager[httpx.Response]:
    message = {"role": "user", "content": text}
    body = {"messages": [message], "max_tokens": tokens, "temperature": 0, "stream": True}
    return client.stream("POST", "/v1/chat/completions", json=body)


async def pieces(response: httpx.Response) -> AsyncIterator[str]:
    """The answer's texts as they come; ends at the mark of the end, and fails where that is missing."""
    async for line in response.aiter_lines():
        if line == "data: [DONE]":
            return
        if line.startswith("data: "):
            event: dict[str, Any] = json.loads(line.removeprefix("data: "))
            if text := event["choices"][0]["delta"].get("content"):
                yield text
    raise httpx.RemoteProtocolError("the stream ended without its mark")


def replica_of(response: httpx.Response) -> str:
    assert response.status_code == 200
    return response.headers["x-nexo-replica"]


async def both_replicas(client: httpx.AsyncClient) -> set[str]:
    """The replicas that take two requests that are at work at once."""
    async with ask(client, LONG, 200) as one, ask(client, LONG, 200) as other:
        return {replica_of(one), replica_of(other)}


async def test_an_answer_comes_piece_by_piece(client: httpx.AsyncClient) -> None:
    async with ask(client, "Count from one to five.", 12) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        texts = [text async for text in pieces(response)]
    assert len(texts) > 3
    assert "".join(texts).strip()


async def test_nothing_is_answered_without_the_key(served: Cluster) -> None:
    async with (
        httpx.AsyncClient(base_url=served.url, timeout=START_S) as stranger,
        ask(stranger, "Count from one to five.", 12) as response,
    ):
        assert response.status_code == 401


async def test_two_requests_at_once_go_to_two_replicas(client: httpx.AsyncClient) -> None:
    assert len(await both_replicas(client)) == 2


@pytest.mark.parametrize("moment", ["in the prompt", "in the answer"])
async def test_who_leaves_frees_the_replica(client: httpx.AsyncClient, served: Cluster, moment: str) -> None:
    # Alone in the model's work: some minutes of prompt, or of answer.
    text = "some words and letters " * 350 if moment == "in the prompt" else LONG
    async with ask(client, text, 1500 if moment == "in the answer" else 8) as response:
        replica = served.replica(replica_of(response))
        if moment == "in the answer":
            await anext(pieces(response))
        else:
            until(lambda: busy(replica), "the prompt's evaluation")
    until(lambda: None if busy(replica) else True, "the replica to rest", 10)
    assert len(await both_replicas(client)) == 2


def busy(process: psutil.Process) -> bool | None:
    """True if it computes; None otherwise."""
    return process.cpu_percent(interval=0.5) > 10 or None


async def test_a_killed_replica_costs_its_own_answer_and_comes_back(
    client: httpx.AsyncClient, served: Cluster
) -> None:
    async with ask(client, LONG, 60) as one, ask(client, LONG, 60) as other:
        dying, living = replica_of(one), replica_of(other)
        broken, whole = pieces(one), pieces(other)
        shown = [await anext(broken), await anext(whole)]
        assert all(shown)
        served.replica(dying).kill()
        with pytest.raises(httpx.RemoteProtocolError):
            async for _ in broken:
                pass
        assert len([text async for text in whole]) > 20, "the other one goes on"

    found = await two_again(client)
    assert living in found
    assert dying not in found


async def two_again(client: httpx.AsyncClient) -> set[str]:
    """Wait until two replicas take requests."""
    found: set[str] = set()
    async with asyncio.timeout(START_S):
        while len(found) < 2:
            with contextlib.suppress(httpx.HTTPError, KeyError, AssertionError):
                found = await both_replicas(client)
    return found


@pytest.fixture
async def engine(served: Cluster, client: httpx.AsyncClient) -> AsyncIterator[RemoteEngine]:
    await two_again(client)
    one = RemoteEngine([Endpoint(f"{served.url}/v1", served.key)], RemoteOptions(answer_timeout_s=START_S))
    yield one
    await one.close()


async def test_our_engine_gets_answers_in_the_shape_of_a_schema(engine: RemoteEngine) -> None:
    text, last = await collect(engine.stream(saying("a lighthouse")))
    assert json.loads(text) == "a lighthouse"
    assert last.finish is FinishReason.STOP


async def test_an_answer_that_was_shown_in_part_ends_with_an_error(
    engine: RemoteEngine, served: Cluster
) -> None:
    async with contextlib.aclosing(engine.stream(chat(LONG, max_tokens=200))) as stream:
        assert (await anext(stream)).text
        until(lambda: working_one(served), "the replica at work").kill()
        with pytest.raises(EngineCrashed):
            async for _ in stream:
                pass


async def test_an_answer_of_which_nothing_was_shown_is_begun_again(
    engine: RemoteEngine, served: Cluster
) -> None:
    question = chat("some words and letters " * 150, max_tokens=4)
    answer = asyncio.ensure_future(collect(engine.stream(question)))
    replica = await asyncio.to_thread(until, lambda: working_one(served), "the replica at work")
    replica.kill()
    text, _ = await answer
    assert text


def working_one(served: Cluster) -> psutil.Process | None:
    """The replica that computes."""
    return next((replica for replica in served.replicas() if busy(replica)), None)

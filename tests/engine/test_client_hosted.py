"""The engine that a client runs: what becomes of the client's words."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from nexo_lsp.engines.client_port import Announcement, End
from nexo_lsp.engines.client_words import Opening
from nexo_lsp.errors import EngineCrashed, EngineError
from nexo_lsp.generation import ChatPrompt, FinishReason, Message, Piece, Request, Role

from .client_side import ALL, STOP, Client
from .requests import chat, infill


async def test_pieces_come_as_they_are_sent(client: Client) -> None:
    async with aclosing(client.engine.stream(chat())) as stream:
        first = asyncio.ensure_future(anext(stream))
        request_id = await client.link.asked()
        client.port.piece(request_id, 0, "one ", 1)
        assert await first == Piece("one ", 1)
        client.port.piece(request_id, 1, "two", 4)
        assert await anext(stream) == Piece("two", 4)
        client.port.ended(request_id, 2, End(FinishReason.LENGTH, 7, 3, 4))
        last = await anext(stream)
        assert (last.text, last.tokens, last.finish) == ("", 4, FinishReason.LENGTH)
        assert last.usage is not None
        assert (last.usage.prompt_tokens, last.usage.cached_tokens, last.usage.completion_tokens) == (7, 3, 4)
    assert client.link.cancelled == []


async def test_the_whole_request_reaches_the_client(client: Client) -> None:
    request = chat("hi", json_schema="{}", stop=("x",), temperature=0.5, logit_bias=(("a", 1.0),))
    answer = client.begin(request)
    request_id = await client.link.asked()
    assert client.link.started[request_id] == request
    client.say(request_id, "{}")
    await answer


@pytest.mark.parametrize("how", ["close", "cancel"])
async def test_leaving_a_stream_tells_the_client_and_drops_what_comes_after(client: Client, how: str) -> None:
    if how == "close":
        stream = client.engine.stream(chat())
        first = asyncio.ensure_future(anext(stream))
        request_id = await client.link.asked()
        client.say(request_id, "x", end=None)
        await first
        await stream.aclose()
    else:
        task = client.begin()
        request_id = await client.link.asked()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert client.link.cancelled == [request_id]
    client.say(request_id, "late", "and later")
    client.port.failed(request_id, EngineError("too late"))
    answer = client.begin()
    client.say(await client.link.asked(2), "next")
    assert (await answer)[0] == "next"
    assert client.link.cancelled == [request_id]


async def test_a_stop_string_over_two_pieces_ends_it_and_is_not_shown(client: Client) -> None:
    answer = client.begin(chat(stop=("END",)))
    request_id = await client.link.asked()
    client.say(request_id, "one E", "N", "D two", end=None)
    text, last = await answer
    assert (text, last.finish) == ("one ", STOP)
    assert client.link.cancelled == [request_id]


async def test_an_end_token_that_is_shown_as_text_ends_a_completion(client: Client) -> None:
    answer = client.begin(infill("a", "b"))
    client.say(await client.link.asked(), "code<|endof", "text|>more", end=None)
    assert (await answer)[0] == "code"


async def test_half_a_stop_string_at_the_end_is_text(client: Client) -> None:
    answer = client.begin(chat(stop=("END",)))
    client.say(await client.link.asked(), "one E", "N")
    assert (await answer)[0] == "one EN"


@pytest.mark.parametrize("counted", [0, 10], ids=["the client counts nothing", "the client counts"])
async def test_it_gets_no_longer_than_was_asked_for(client: Client, counted: int) -> None:
    answer = client.begin(chat(max_tokens=20))
    request_id = await client.link.asked()
    for sequence in range(40):
        client.port.piece(request_id, sequence, "x", counted * (sequence + 1))
    text, last = await answer
    assert (len(text), last.finish) == (2 if counted else 20, FinishReason.LENGTH)
    assert client.link.cancelled == [request_id]


async def test_a_deadline_ends_what_runs_and_what_waits(client: Client) -> None:
    running, waiting = client.begin(chat(deadline_s=0.05)), client.begin(chat(deadline_s=0.05))
    request_id = await client.link.asked()
    client.say(request_id, "a part", end=None)
    text, last = await running
    assert (text, last.finish) == ("a part", FinishReason.DEADLINE)
    text, last = await waiting
    assert (text, last.finish) == ("", FinishReason.DEADLINE)
    assert client.link.cancelled[0] == request_id


async def test_a_client_that_says_nothing_is_given_up() -> None:
    client = Client(silence_s=0.05)
    answer = client.begin()
    request_id = await client.link.asked()
    with pytest.raises(EngineCrashed, match="said nothing"):
        await answer
    assert client.link.cancelled == [request_id]


@pytest.mark.parametrize("sign", ["piece", "announcement"])
async def test_a_sign_of_life_is_enough(sign: str) -> None:
    client = Client(silence_s=1.0)
    answer = client.begin()
    request_id = await client.link.asked()
    pieces = 0
    for _ in range(6):
        # Longer than the patience in all, and a fraction of it each time.
        await asyncio.sleep(0.25)
        if sign == "announcement":
            client.port.announce(ALL)
        else:
            client.port.piece(request_id, pieces, "")
            pieces += 1
    client.port.piece(request_id, pieces, "alive")
    client.port.ended(request_id, pieces + 1, End(STOP))
    assert (await answer)[0] == "alive"


async def test_a_failure_comes_after_what_was_said(client: Client) -> None:
    stream = client.engine.stream(chat())
    first = asyncio.ensure_future(anext(stream))
    request_id = await client.link.asked()
    client.say(request_id, "a", end=None)
    client.port.failed(request_id, EngineError("It broke."))
    assert (await first).text == "a"
    with pytest.raises(EngineError, match="It broke"):
        await anext(stream)
    assert client.link.cancelled == []


async def test_characters_that_were_cut_in_two_are_whole_again(client: Client) -> None:
    answer = client.begin()
    client.say(await client.link.asked(), "a\ud83d", "\ude00b", "\ud83d")
    assert (await answer)[0] == "a\U0001f600b\ufffd"


async def test_without_a_prefix_of_its_own_the_engine_is_asked_in_words() -> None:
    client = Client(Announcement(local=True))
    prompt = ChatPrompt((Message(Role.USER, "Go."),), answer_prefix="```python\ndef f():\n")
    answer = client.begin(Request(prompt, stop=("```",), json_schema=None))
    request_id = await client.link.asked()
    sent = client.link.started[request_id]
    assert isinstance(sent.prompt, ChatPrompt)
    assert (sent.prompt.answer_prefix, sent.stop) == ("", ())
    assert sent.prompt.messages[0].content.endswith("def f():\n")
    client.say(request_id, "\n```py", "thon\ndef f():\n", "    return 1\n", "```\nThat is all.", end=None)
    assert (await answer)[0] == "    return 1\n"


async def test_json_that_was_asked_for_in_words_may_come_in_a_fence() -> None:
    client = Client(Announcement(local=True))
    answer = client.begin(chat(json_schema='{"type":"array"}'))
    request_id = await client.link.asked()
    sent = client.link.started[request_id]
    assert isinstance(sent.prompt, ChatPrompt)
    assert sent.json_schema is None
    assert '{"type":"array"}' in sent.prompt.messages[-1].content
    client.say(request_id, "```json", "\n[1]\n", "```\n")
    assert (await answer)[0] == "[1]"


@pytest.mark.parametrize(
    ("texts", "pieces", "shown"),
    [
        ((), ["any"], "any"),
        (("ab",), ["a", "b", "c"], "c"),
        (("ab",), ["  a", "x"], "  ax"),
        (("ab",), ["a"], "a"),
        (("ab", "abc"), ["abc"], "c"),
        (("x\n", "y\n"), ["y", "\nz"], "z"),
    ],
)
def test_an_opening_is_taken_off_only_if_it_is_there(
    texts: tuple[str, ...], pieces: list[str], shown: str
) -> None:
    opening = Opening(texts)
    assert "".join(opening.feed(piece) for piece in pieces) + opening.finish() == shown


async def test_what_the_engine_cannot_do_at_all_is_said_and_not_sent() -> None:
    client = Client(Announcement(local=True))
    with pytest.raises(EngineError, match="fill in"):
        await client.begin(infill("a", "b"))
    client.port.announce(Announcement(local=True, chat=False, infill=True))
    with pytest.raises(EngineError, match="only completes"):
        await client.begin()
    assert client.link.started == {}
    assert client.link.cancelled == []


async def test_tokens_are_counted_by_the_client_or_estimated(client: Client) -> None:
    assert await client.engine.count_tokens("abcdef") == 3
    client.link.tokens = None
    assert await client.engine.count_tokens("abcdef") == 3
    assert await Client(Announcement(local=True)).engine.count_tokens("") == 1


async def test_the_speed_is_learned(client: Client) -> None:
    assert client.engine.status().decode_tokens_per_s is None
    answer = client.begin()
    request_id = await client.link.asked()
    client.port.piece(request_id, 0, "a")
    await asyncio.sleep(0.001)
    client.port.piece(request_id, 1, "b")
    client.port.ended(request_id, 2, End(STOP))
    await answer
    assert client.engine.status().decode_tokens_per_s is not None

"""The engine that a client runs, with a client that does as each test says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace

import pytest
import pytest_asyncio

from nexo_lsp.engines.client_hosted import ClientHostedEngine
from nexo_lsp.engines.client_port import UNREAD_CHARS, Announcement, ClientPort, End
from nexo_lsp.engines.client_words import Opening
from nexo_lsp.errors import EngineClosed, EngineCrashed, EngineError, EngineUnavailable
from nexo_lsp.generation import ChatPrompt, EngineState, FinishReason, Message, Piece, Priority, Request, Role

from .requests import background, chat, collect, infill

STOP = FinishReason.STOP
ALL = Announcement(
    model="m",
    context_tokens=8192,
    infill=True,
    json_schema=True,
    answer_prefix=True,
    counts_tokens=True,
    local=True,
)


class Link:
    """Remembers what the client is told."""

    def __init__(self) -> None:
        self.started: dict[int, Request] = {}
        self.cancelled: list[int] = []
        self.tokens: int | None = 3
        self._news = asyncio.Event()

    def start(self, request_id: int, request: Request) -> None:
        self.started[request_id] = request
        self._news.set()

    def cancel(self, request_id: int) -> None:
        self.cancelled.append(request_id)

    async def count_tokens(self, text: str) -> int | None:
        return self.tokens

    async def asked(self, count: int = 1) -> int:
        """The id of the `count`-th request."""
        async with asyncio.timeout(30):
            while len(self.started) < count:
                self._news.clear()
                await self._news.wait()
        return list(self.started)[count - 1]


class Client:
    """A port with a link, and an engine at it."""

    def __init__(self, announcement: Announcement = ALL, **options: object) -> None:
        self.link, self.port = Link(), ClientPort()
        self.port.connect(self.link)
        self.port.announce(announcement)
        self.engine = ClientHostedEngine(self.port, **options)

    def begin(self, request: Request | None = None) -> asyncio.Task[tuple[str, Piece]]:
        return asyncio.ensure_future(collect(self.engine.stream(request or chat())))

    def say(self, request_id: int, *texts: str, end: FinishReason | None = STOP) -> None:
        for sequence, text in enumerate(texts):
            self.port.piece(request_id, sequence, text)
        if end is not None:
            self.port.ended(request_id, len(texts), End(end, 5, 2, len(texts)))


@pytest_asyncio.fixture
async def client() -> AsyncIterator[Client]:
    made = Client()
    yield made
    await made.engine.close()
    assert made.port._running == {}
    assert made.port._waiting == []


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


async def test_who_leaves_before_its_turn_was_never_there(client: Client) -> None:
    running, waiting = client.begin(), client.begin()
    request_id = await client.link.asked()
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    client.say(request_id, "done")
    assert (await running)[0] == "done"
    assert (list(client.link.started), client.link.cancelled) == ([request_id], [])


async def test_the_most_urgent_is_next_and_then_who_came_first(client: Client) -> None:
    asked = [
        chat("running"), background("review"), chat("first"), chat("second"), chat("typed", priority=Priority.INTERACTIVE)
    ]  # fmt: skip
    answers = [client.begin(request) for request in asked]
    seen: list[str] = []
    for count in range(1, 6):
        request_id = await client.link.asked(count)
        assert len(client.link.started) == count
        prompt = client.link.started[request_id].prompt
        assert isinstance(prompt, ChatPrompt)
        seen.append(prompt.messages[0].content)
        client.say(request_id, "x")
    await asyncio.gather(*answers)
    assert seen == ["running", "typed", "first", "second", "review"]


async def test_the_background_gives_way_to_somebody_who_types(client: Client) -> None:
    review = client.begin(background("review"))
    first = await client.link.asked()
    client.say(first, "", "", end=None)
    typed = client.begin(chat("typed", priority=Priority.INTERACTIVE))
    second = await client.link.asked(2)
    assert client.link.cancelled == [first]
    client.say(first, "what came too late")
    client.say(second, "quick")
    assert (await typed)[0] == "quick"
    client.say(await client.link.asked(3), "begun anew")
    assert (await review)[0] == "begun anew"
    assert client.link.cancelled == [first]


@pytest.mark.parametrize(
    "running", [background("begun"), chat("somebody waits")], ids=["begun", "foreground"]
)
async def test_what_was_shown_or_is_waited_for_goes_on(client: Client, running: Request) -> None:
    answer = client.begin(running)
    first = await client.link.asked()
    if running.priority is Priority.BACKGROUND:
        client.port.piece(first, 0, "a")
    typed = client.begin(chat("typed", priority=Priority.INTERACTIVE))
    await asyncio.sleep(0)
    assert (client.engine.status().queued, client.link.cancelled) == (1, [])
    client.port.piece(first, 0, "a")
    client.port.ended(first, 1, End(STOP))
    assert (await answer)[0] == "a"
    client.say(await client.link.asked(2), "b")
    assert (await typed)[0] == "b"


async def test_who_was_put_back_may_leave_and_may_run_out_of_time(client: Client) -> None:
    left, late = client.begin(background("a")), client.begin(background("b", deadline_s=0.2))
    client.port.announce(replace(ALL, parallel=2))
    await client.link.asked(2)
    typed = [client.begin(chat("typed", priority=Priority.INTERACTIVE)) for _ in range(2)]
    await client.link.asked(4)
    assert sorted(client.link.cancelled) == [1, 2]
    left.cancel()
    assert (await late)[1].finish is FinishReason.DEADLINE
    for request_id in list(client.link.started)[2:]:
        client.say(request_id, "x")
    await asyncio.gather(*typed)
    with pytest.raises(asyncio.CancelledError):
        await left
    assert len(client.link.started) == 4


async def test_more_may_run_as_soon_as_the_client_says_so(client: Client) -> None:
    answers = [client.begin() for _ in range(3)]
    await client.link.asked()
    assert (client.engine.status().running, client.engine.status().queued) == (1, 2)
    client.port.announce(replace(ALL, parallel=3))
    await client.link.asked(3)
    assert client.engine.status().running == 3
    for request_id in list(client.link.started):
        client.say(request_id, "x")
    await asyncio.gather(*answers)
    assert client.engine.status().state is EngineState.READY


async def test_two_engines_share_the_clients_turns(client: Client) -> None:
    other = ClientHostedEngine(client.port)
    answers = [client.begin(), asyncio.ensure_future(collect(other.stream(chat())))]
    first = await client.link.asked()
    assert other.status().queued == 1
    client.say(first, "one")
    client.say(await client.link.asked(2), "two")
    assert [text for text, _ in await asyncio.gather(*answers)] == ["one", "two"]


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
    for sequence in range(6):
        # Longer than the patience in all, and a fraction of it each time.
        await asyncio.sleep(0.25)
        client.port.piece(request_id, sequence, "")
        if sign == "announcement":
            client.port.announce(ALL)
    client.port.piece(request_id, 6, "alive")
    client.port.ended(request_id, 7, End(STOP))
    assert (await answer)[0] == "alive"


async def test_too_much_text_at_once_is_cut_off(client: Client) -> None:
    answer = client.begin()
    request_id = await client.link.asked()
    client.port.piece(request_id, 0, "x" * (UNREAD_CHARS + 1))
    client.port.piece(request_id, 1, "more")
    with pytest.raises(EngineError, match="cut off"):
        await answer
    assert client.link.cancelled == [request_id]


async def test_a_whole_answer_at_once_is_no_flood(client: Client) -> None:
    answer = client.begin(chat(max_tokens=4000))
    client.say(await client.link.asked(), *["x"] * 2000)
    assert (await answer)[0] == "x" * 2000


async def test_a_missing_piece_is_waited_for_and_then_told() -> None:
    client = Client(silence_s=0.05)
    answer = client.begin()
    request_id = await client.link.asked()
    client.port.piece(request_id, 0, "a")
    client.port.ended(request_id, 2, End(STOP))
    with pytest.raises(EngineCrashed):
        await answer


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


@pytest.mark.parametrize("how", ["close", "withdraw", "disconnect"])
async def test_the_end_of_the_engine_ends_what_runs_and_what_waits(client: Client, how: str) -> None:
    answers = [client.begin(), client.begin()]
    request_id = await client.link.asked()
    if how == "close":
        await client.engine.close()
        await client.engine.close()
    elif how == "withdraw":
        client.port.announce(None)
    else:
        client.port.disconnect()
    for answer in answers:
        with pytest.raises(EngineClosed):
            await answer
    assert client.link.cancelled == ([request_id] if how == "close" else [])
    with pytest.raises(EngineClosed if how == "close" else EngineUnavailable):
        await client.begin()
    assert client.engine.status().state is (EngineState.CLOSED if how == "close" else EngineState.FAILED)


async def test_changes_of_the_engine_are_told_and_changes_of_its_state_are_not(client: Client) -> None:
    changes = 0

    def changed() -> None:
        nonlocal changes
        changes += 1

    states: list[EngineState] = []
    client.port.on_change = changed
    client.engine.on_status = lambda status: states.append(status.state)
    client.port.announce(replace(ALL, state=EngineState.LOADING, detail="40 %"))
    client.port.announce(ALL)
    assert (changes, states) == (0, [EngineState.LOADING, EngineState.READY])
    client.port.announce(replace(ALL, model="other"))
    client.port.announce(None)
    client.port.announce(None)
    client.port.announce(ALL)
    assert changes == 3


async def test_an_engine_that_is_not_here_is_asked_only_while_that_is_allowed() -> None:
    reason: str | None = "nexo.remote.enabled is off"
    client = Client(Announcement(local=False), refusal=lambda: reason)
    with pytest.raises(EngineUnavailable, match="is off"):
        await client.begin()
    with pytest.raises(EngineUnavailable, match="is off"):
        await client.engine.count_tokens("code")
    reason = None
    answers = [client.begin(), client.begin()]
    request_id = await client.link.asked()
    reason = "nexo.remote.enabled is off"
    client.say(request_id, "x")
    assert (await answers[0])[0] == "x"
    with pytest.raises(EngineUnavailable, match="is off"):
        await answers[1]
    assert list(client.link.started) == [request_id]


async def test_an_engine_that_moves_away_gets_nothing_that_waited_for_it(client: Client) -> None:
    answers = [client.begin(), client.begin()]
    request_id = await client.link.asked()
    client.port.announce(Announcement(local=False))
    client.say(request_id, "x")
    assert (await answers[0])[0] == "x"
    with pytest.raises(EngineUnavailable, match="another machine"):
        await answers[1]


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

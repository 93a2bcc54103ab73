"""The engine that a client runs: whose turn it is, and what the client may and may not do."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace

import pytest

from nexo_lsp.engines.client_hosted import ClientHostedEngine
from nexo_lsp.engines.client_port import UNREAD_CHARS, UNREAD_PIECES, Announcement, End
from nexo_lsp.errors import EngineClosed, EngineCrashed, EngineError, EngineUnavailable
from nexo_lsp.generation import ChatPrompt, EngineState, FinishReason, Priority, Request

from .client_side import ALL, STOP, Client
from .requests import background, chat, collect


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


async def test_too_much_text_at_once_is_cut_off(client: Client) -> None:
    answer = client.begin()
    request_id = await client.link.asked()
    client.port.piece(request_id, 0, "x" * (UNREAD_CHARS + 1))
    client.port.piece(request_id, 1, "more")
    with pytest.raises(EngineError, match="cut off"):
        await answer
    assert client.link.cancelled == [request_id]


async def test_what_comes_behind_the_end_does_not_undo_it(client: Client) -> None:
    answer = client.begin()
    request_id = await client.link.asked()
    client.say(request_id, "done")
    for sequence in range(2, UNREAD_PIECES + 10):
        client.port.piece(request_id, sequence, "flood")
    assert (await answer)[0] == "done"
    assert client.link.cancelled == []


async def test_too_many_pieces_at_once_are_cut_off(client: Client) -> None:
    answer = client.begin(chat(max_tokens=10 * UNREAD_PIECES))
    request_id = await client.link.asked()
    for sequence in range(UNREAD_PIECES + 1):
        client.port.piece(request_id, sequence, "x")
    with pytest.raises(EngineError, match="cut off"):
        await answer


async def test_what_was_read_counts_no_more(client: Client) -> None:
    async with aclosing(client.engine.stream(chat(max_tokens=UNREAD_CHARS))) as stream:
        piece = asyncio.ensure_future(anext(stream))
        request_id = await client.link.asked()
        for sequence in range(3):
            client.port.piece(request_id, sequence, "x" * (UNREAD_CHARS // 2 + 1))
            assert (await piece).finish is None
            piece = asyncio.ensure_future(anext(stream))
        client.port.ended(request_id, 3, End(STOP))
        assert (await piece).finish is STOP


async def test_a_closed_engine_tells_nothing_more(client: Client) -> None:
    await client.engine.close()
    told: list[object] = []
    client.engine.on_status = told.append
    client.port.announce(replace(ALL, model="other"))
    assert told == []


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

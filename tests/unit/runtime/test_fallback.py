"""Several engines as one."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace

import pytest

from nexo_lsp.engines.mock import MockEngine, Rule
from nexo_lsp.errors import EngineCrashed, EngineError, NexoError, PromptTooLong
from nexo_lsp.generation import ChatPrompt, Message, Request, Role
from nexo_lsp.runtime.breaker import FIRST_REST_S, LONGEST_REST_S, Breaker
from nexo_lsp.runtime.fallback import Fallback, Member


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def request() -> Request:
    return Request(ChatPrompt((Message(Role.USER, "hello"),)))


async def text_of(engine: Fallback) -> str:
    async with aclosing(engine.stream(request())) as pieces:
        return "".join([piece.text async for piece in pieces])


class Set:
    """A fallback over mock engines, and what it told."""

    def __init__(self, **rules: Rule | tuple[Rule, ...]) -> None:
        self.clock = Clock()
        self.notices: list[str] = []
        self.engines = {
            name: MockEngine(rule if isinstance(rule, tuple) else (rule,)) for name, rule in rules.items()
        }
        members = [
            Member(name, lambda engine=engine: engine, Breaker(self.clock))
            for name, engine in self.engines.items()
        ]
        self.fallback = Fallback(members, self.notices.append)

    def asked(self, name: str) -> int:
        return sum(event.event == "start" for event in self.engines[name].events)


async def test_the_best_one_answers() -> None:
    made = Set(first=Rule(answer="one"), second=Rule(answer="two"))
    assert await text_of(made.fallback) == "one"
    assert made.asked("second") == 0
    assert made.notices == []


async def test_when_it_fails_the_next_answers_and_the_user_is_told_once() -> None:
    made = Set(first=Rule(crash=True), second=Rule(answer="two"))
    for _ in range(3):
        assert await text_of(made.fallback) == "two"
    assert made.asked("first") == 1
    (notice,) = made.notices
    assert "first failed" in notice
    assert "second answers" in notice
    assert "first failed and rests for 30 s more" in made.fallback.status().extra["notes"]


async def test_it_is_tried_again_after_its_rest_and_then_used() -> None:
    made = Set(first=(Rule(crash=True, times=2), Rule(answer="one")), second=Rule(answer="two"))
    assert await text_of(made.fallback) == "two"
    made.clock.now += FIRST_REST_S
    assert await text_of(made.fallback) == "two"
    made.clock.now += FIRST_REST_S
    assert await text_of(made.fallback) == "two", "the second rest is twice as long"
    assert made.asked("first") == 2
    made.clock.now += FIRST_REST_S
    assert await text_of(made.fallback) == "one"
    assert await text_of(made.fallback) == "one"
    assert len(made.notices) == 1
    assert "notes" not in made.fallback.status().extra


async def test_an_answer_that_was_begun_is_not_begun_again_elsewhere() -> None:
    class Broken(MockEngine):
        async def stream(self, request: Request):  # type: ignore[no-untyped-def]
            async with aclosing(super().stream(request)) as pieces:
                async for piece in pieces:
                    yield piece
                    raise EngineCrashed("gone in the middle")

    second = MockEngine((Rule(answer="two"),))
    fallback = Fallback(
        [Member("first", lambda: Broken((Rule(answer="a b c"),))), Member("second", lambda: second)]
    )
    with pytest.raises(EngineCrashed, match="in the middle"):
        await text_of(fallback)
    assert second.events == []
    assert await text_of(fallback) == "two"


async def test_what_is_the_requests_own_fault_is_its_own() -> None:
    made = Set(first=Rule(fail="prompt-too-long"), second=Rule(answer="two"))
    with pytest.raises(PromptTooLong):
        await text_of(made.fallback)
    assert made.asked("second") == 0
    with pytest.raises(PromptTooLong):
        await text_of(made.fallback)
    assert made.asked("first") == 2


async def test_when_all_fail_all_are_named_and_the_best_is_asked_next_time() -> None:
    made = Set(first=Rule(crash=True), second=Rule(fail="engine"))
    with pytest.raises(EngineError) as failure:
        await text_of(made.fallback)
    assert "process ended" in str(failure.value)
    assert "told to fail" in str(failure.value)
    with pytest.raises(NexoError):
        await text_of(made.fallback)
    assert (made.asked("first"), made.asked("second")) == (2, 1)


async def test_a_lone_engine_keeps_its_own_errors_and_is_always_asked() -> None:
    made = Set(only=Rule(crash=True))
    for _ in range(3):
        with pytest.raises(EngineCrashed):
            await text_of(made.fallback)
    assert made.asked("only") == 3
    assert made.notices == []


async def test_a_cancelled_request_says_nothing_about_an_engine() -> None:
    made = Set(
        first=(Rule(crash=True, times=1), Rule(hang=True, times=1), Rule(answer="one")),
        second=Rule(answer="two"),
    )
    assert await text_of(made.fallback) == "two"
    made.clock.now += FIRST_REST_S
    task = asyncio.create_task(text_of(made.fallback))
    async with asyncio.timeout(10):
        while made.asked("first") < 2:  # noqa: ASYNC110 - one turn of the loop is enough
            await asyncio.sleep(0)
    # While it is being tried, others go elsewhere.
    assert await text_of(made.fallback) == "two"
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await text_of(made.fallback) == "one"


async def test_tokens_are_counted_by_whoever_can() -> None:
    class Mute(MockEngine):
        async def count_tokens(self, text: str) -> int:
            raise EngineCrashed("cannot count")

    second = MockEngine()
    fallback = Fallback([Member("first", Mute), Member("second", lambda: second)])
    assert await fallback.count_tokens("12345678") == 2
    assert fallback.status().extra["notes"] == ("first failed and rests for 30 s more",)


async def test_an_answer_of_a_stand_in_says_so() -> None:
    made = Set(first=(Rule(crash=True, times=1), Rule(answer="one")), second=Rule(answer="two"))

    async def stands_in() -> list[bool]:
        async with aclosing(made.fallback.stream(request())) as pieces:
            return [piece.stand_in async for piece in pieces if piece.finish is not None]

    assert await stands_in() == [True]
    made.clock.now += FIRST_REST_S
    assert await stands_in() == [False]


async def test_an_engine_that_lets_two_deadlines_pass_is_left_alone() -> None:
    made = Set(first=Rule(hang=True), second=Rule(answer="two"))
    late = replace(request(), deadline_s=0.01)

    async def finish() -> str:
        async with aclosing(made.fallback.stream(late)) as pieces:
            return "".join([str(piece.finish) async for piece in pieces if piece.finish is not None])

    assert [await finish(), await finish()] == ["deadline", "deadline"]
    assert await text_of(made.fallback) == "two"
    (notice,) = made.notices
    assert "first failed: it says nothing" in notice


async def test_failures_of_requests_side_by_side_are_one_failure() -> None:
    breaker = Breaker(Clock())
    assert [breaker.fail() for _ in range(4)] == [True, False, False, False]
    assert breaker.seconds_left == FIRST_REST_S


async def test_nobody_who_rests_is_named_as_a_stand_in() -> None:
    made = Set(first=Rule(crash=True), second=Rule(crash=True))
    with pytest.raises(NexoError):
        await text_of(made.fallback)
    (notice,) = made.notices
    assert "first failed" in notice
    assert "second answers" in notice


def test_rests_grow_to_a_bound() -> None:
    clock = Clock()
    breaker = Breaker(clock)
    rests: list[float] = []
    for _ in range(8):
        breaker.fail()
        rests.append(breaker.seconds_left)
        clock.now += breaker.seconds_left
        assert breaker.enter()
        assert not breaker.enter(), "only one tries"
    assert rests[:3] == [FIRST_REST_S, 2 * FIRST_REST_S, 4 * FIRST_REST_S]
    assert rests[-1] == LONGEST_REST_S
    assert breaker.succeeded()
    assert not breaker.succeeded()
    assert breaker.enter()

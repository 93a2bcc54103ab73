"""Engines are shared, kept while they are wanted, and let go of between requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence
from contextlib import aclosing
from typing import Any

import pytest
import pytest_asyncio

from nexo_lsp.errors import EngineClosed, EngineCrashed, EngineUnavailable
from nexo_lsp.generation import EngineState, Operation, Piece, Request
from nexo_lsp.runtime.engines import Engines, Offer
from nexo_lsp.runtime.environment import Environment, Platform
from nexo_lsp.runtime.needs import Policy
from nexo_lsp.runtime.providers.provider import Availability, Traits
from tests.unit.runtime.fakes import REQUEST, Fake, Held, text_of

HERE = Environment(Platform.LINUX, "x86_64")
ACTION, COMPLETION, REVIEW = Operation.ACTION, Operation.COMPLETION, Operation.REVIEW


class Set:
    """Engines, and the work that they left in the background."""

    def __init__(self) -> None:
        self.background: list[asyncio.Task[None]] = []
        self.notices: list[str] = []
        self.engines = Engines(self._keep, lambda: None, self.notices.append)

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        self.background.append(asyncio.ensure_future(work))

    def plan(self, every: Sequence[Offer] = (), **other: Sequence[Offer]) -> None:
        """`every` is offered to all operations, `other` to those of that name."""
        offers = {operation: other.get(operation.value, every) for operation in Operation}
        self.engines.plan(offers, HERE, dict.fromkeys(Operation, Policy()))

    async def settled(self) -> None:
        await asyncio.wait_for(asyncio.gather(*self.background), 10)


@pytest_asyncio.fixture
async def made() -> AsyncIterator[Set]:
    these = Set()
    yield these
    these.engines.drop()
    await these.settled()


def offer(name: str = "one", key: object = 1) -> tuple[Fake, Offer]:
    provider = Fake(make=lambda: Held(name))
    return provider, Offer(provider, ("native", key))


async def begun(these: Set, operation: Operation = ACTION) -> AsyncGenerator[Piece, None]:
    """A stream of which the first piece has been read."""
    stream = these.engines.engine(operation).stream(REQUEST)
    await anext(stream)
    return stream


def held(provider: Fake) -> Held:
    (engine,) = provider.made
    assert isinstance(engine, Held)
    return engine


async def test_engines_of_one_key_are_shared_and_made_when_needed(made: Set) -> None:
    provider, same = offer()
    # Another provider with the same key: a plan makes new ones every time.
    twin, twins = offer()
    made.plan([same], review=[twins])
    assert provider.made == twin.made == []
    assert made.engines.status(ACTION) is None
    for operation in Operation:
        async with aclosing(await begun(made, operation)):
            assert len(provider.made) + len(twin.made) == 1
    assert made.engines.status(REVIEW) == held(provider if provider.made else twin).status()


async def test_operations_with_other_keys_have_engines_of_their_own(made: Set) -> None:
    small, one = offer("small", 1)
    large, two = offer("large", 2)
    made.plan([one], review=[two])
    for operation, name in ((COMPLETION, "small"), (ACTION, "small"), (REVIEW, "large")):
        async with aclosing(made.engines.engine(operation).stream(REQUEST)) as stream:
            assert (await anext(stream)).text == name
    assert (len(small.made), len(large.made)) == (1, 1)


async def test_a_new_plan_keeps_engines_whose_key_stays(made: Set) -> None:
    provider, before = offer()
    made.plan([before])
    async with aclosing(await begun(made)):
        chain = made.engines.engine(ACTION)
        again, after = offer()
        made.plan([after])
        # The chain remembers who failed, so it stays as long as its members do.
        assert made.engines.engine(ACTION) is chain
        held(provider).go_on.set()
        assert await text_of(made.engines.engine(ACTION)) == "one!"
        assert again.made == []
    assert not held(provider).closed.is_set()
    assert made.background == []


async def test_one_that_is_wanted_no_more_finishes_its_streams_and_is_closed(made: Set) -> None:
    old, before = offer("old", 1)
    new, after = offer("new", 2)
    made.plan([before])
    first, second = await begun(made), await begun(made, REVIEW)
    made.plan([after])
    assert made.engines.status(ACTION) is None
    async with aclosing(await begun(made)):
        assert len(new.made) == 1
    assert held(old).status().state is EngineState.READY
    await first.aclose()
    assert not held(old).closed.is_set(), "another stream is still open"
    held(old).go_on.set()
    assert [piece.text async for piece in second] == ["!"]
    await made.settled()
    assert held(old).closed.is_set()
    assert not held(new).closed.is_set()


async def test_one_that_another_operation_still_wants_stays(made: Set) -> None:
    small, one = offer("small", 1)
    _, two = offer("large", 2)
    made.plan([one])
    async with aclosing(await begun(made)):
        made.plan([two], completion=[one])
        assert made.background == []
        assert not held(small).closed.is_set()


async def test_dropping_closes_at_once_and_the_next_use_makes_new_ones(made: Set) -> None:
    provider, same = offer()
    made.plan([same])
    stream = await begun(made)
    made.engines.drop()
    with pytest.raises(EngineClosed):
        await anext(stream)
    await made.settled()
    assert held(provider).closed.is_set()
    assert made.engines.status(ACTION) is None
    async with aclosing(await begun(made)) as again:
        assert len(provider.made) == 2
        await again.aclose()


async def test_without_an_engine_the_reasons_are_raised(made: Set) -> None:
    made.plan([Offer(Fake(says=Availability(False, "not installed")), 1)])
    with pytest.raises(EngineUnavailable, match="native: not installed"):
        made.engines.engine(ACTION)
    assert made.engines.status(ACTION) is None
    provider, works = offer()
    made.plan([works])
    async with aclosing(await begun(made)):
        assert len(provider.made) == 1
    made.plan([])
    with pytest.raises(EngineUnavailable):
        made.engines.engine(ACTION)
    await made.settled()
    assert held(provider).closed.is_set(), "an operation that has nothing any more holds on to nothing"


async def test_what_sends_code_away_is_closed_at_once_when_it_is_no_longer_allowed(made: Set) -> None:
    provider = Fake(make=lambda: Held("far"), is_like=Traits(sends_code=True))
    allowed, forbidden = Policy(remote=True, trusted=True), Policy()
    offers = {operation: (Offer(provider, ("remote", 1)),) for operation in Operation}
    made.engines.plan(offers, HERE, dict.fromkeys(Operation, allowed))
    stream = await begun(made)
    made.engines.plan(offers, HERE, dict.fromkeys(Operation, forbidden))
    with pytest.raises(EngineClosed):
        await anext(stream)


async def test_an_older_plan_brings_no_engine_back(made: Set) -> None:
    """The first engine fails when the second one has been forbidden."""

    class Fails(Held):
        async def stream(self, request: Request) -> AsyncGenerator[Piece, None]:
            await self.go_on.wait()
            raise EngineCrashed("gone")
            yield

    near = Fake(make=Fails)
    far = Fake(name="remote", make=lambda: Held("far"), is_like=Traits(sends_code=True))
    offers = [Offer(near, ("native", 1)), Offer(far, ("remote", 1))]
    both, one = Policy(remote=True, trusted=True), Policy()
    made.engines.plan(dict.fromkeys(Operation, offers), HERE, dict.fromkeys(Operation, both))
    waiting = asyncio.ensure_future(text_of(made.engines.engine(ACTION)))
    async with asyncio.timeout(10):
        while not near.made:  # noqa: ASYNC110 - a turn of the loop is enough
            await asyncio.sleep(0)
    made.engines.plan(dict.fromkeys(Operation, offers), HERE, dict.fromkeys(Operation, one))
    held(near).go_on.set()
    with pytest.raises(EngineClosed, match="settings changed"):
        await waiting
    assert far.made == []


async def test_dropping_all_ends_those_too_that_were_being_retired(made: Set) -> None:
    _, first = offer("one", 1)
    _, second = offer("two", 2)
    made.plan([first])
    stream = await begun(made)
    made.plan([second])
    await asyncio.sleep(0)
    made.engines.drop()
    with pytest.raises(EngineClosed):
        await anext(stream)
    await made.settled()


async def test_operations_that_share_an_engine_learn_of_its_failure_together(made: Set) -> None:
    class Broken(Held):
        async def stream(self, request: Request) -> AsyncGenerator[Piece, None]:
            raise EngineCrashed("gone")
            yield

    bad, good = Fake(make=Broken), Fake(name="docker", make=lambda: Held("good"))
    made.plan([Offer(bad, ("native", 1)), Offer(good, ("docker", 1))])
    for operation in Operation:
        async with aclosing(await begun(made, operation)):
            pass
    assert len(made.notices) == 1

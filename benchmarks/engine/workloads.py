"""The workloads: what an editor asks of an engine in a minute of somebody's work."""

from __future__ import annotations

import asyncio
import contextlib
import random
import statistics
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace

from benchmarks.engine import competitors as who
from benchmarks.engine import material
from benchmarks.engine.competitors import Competitor, Sample, cancelled, timed
from benchmarks.engine.machine import cores, memory_of
from nexo_lsp.generation import Priority, Request

COLD = "cold"
# Keystrokes of one round that are asked for at least, and how long to go on with more.
_LEAST_TYPED, _TYPING_S = 3, 90.0
AT_ONCE = 4
"""Reviews that are under way at the same time, as many as `llama-server` has slots."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much is asked; `quick` is for seeing whether everything works."""

    rounds: int = 3
    keystrokes: int = material.TYPED_CHARACTERS // material.STEP
    disturbed_keystrokes: int = 10
    functions: int = 10
    reviewed: int = 40
    cancels: int = 50
    rewrite_tokens: int = 1500

    @staticmethod
    def quick(rounds: int) -> Size:
        """Hardly anything of each."""
        return Size(rounds, 4, 3, rounds, 4 * rounds, 3 * rounds, 60)

    def share(self, count: int, number: int) -> slice:
        """Which of `count` things belong to round `number`, so that all rounds together do each once."""
        return slice(count * number // self.rounds, count * (number + 1) // self.rounds)


Round = Callable[[Competitor, Size, int], Awaitable[list[Sample]]]


def median_s(samples: Sequence[Sample]) -> float:
    """The figure of most workloads; what `note` says was cold is left out."""
    return statistics.median(sample.seconds for sample in samples if COLD not in sample.note)


def total_s(samples: Sequence[Sample]) -> float:
    """All seconds together."""
    return sum(sample.seconds for sample in samples)


def slowest_s(samples: Sequence[Sample]) -> float:
    """The 99th percentile."""
    ordered = sorted(sample.seconds for sample in samples)
    return ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]


@dataclass(frozen=True, slots=True)
class Workload:
    """One line of the table: who is measured by what, and what is to be reached."""

    id: str
    title: str
    round: Round
    competitors: tuple[str, ...]
    figure: Callable[[Sequence[Sample]], float] = median_s
    figure_name: str = "median, s"
    goal_ratio: float | None = None
    """At the most this share of the best `llama-server`."""
    goal_s: float | None = None
    """At the most so many seconds."""
    started: bool = True
    """Whether the competitors are started before the rounds and stay; else each round does it."""
    busy: int = 0
    """Other processes that never rest meanwhile."""
    notes: tuple[str, ...] = field(default_factory=tuple[str, ...])
    """Figures inside the samples' `note`s that the table shows as well."""


async def typing(competitor: Competitor, size: Size, number: int) -> list[Sample]:
    """Closed loop: the next two characters are typed when the suggestion is there."""
    return await _type(competitor, await material.keystrokes(number, size.keystrokes))


async def typing_disturbed(competitor: Competitor, size: Size, number: int) -> list[Sample]:
    """The same with fewer keystrokes, at another place."""
    return await _type(competitor, await material.keystrokes(3 + number, size.disturbed_keystrokes))


async def _type(competitor: Competitor, requests: Sequence[Request]) -> list[Sample]:
    samples: list[Sample] = []
    began = time.perf_counter()
    for request in requests:
        samples.append(await timed(competitor, request))
        if len(samples) > _LEAST_TYPED and time.perf_counter() - began > _TYPING_S:
            # The figure is a median: an engine that is this slow need not be waited for to the end.
            break
    return [replace(samples[0], note={COLD: samples[0].seconds}), *samples[1:]]


async def rewriting(competitor: Competitor, size: Size, number: int) -> list[Sample]:
    """One after the other: a user waits for each."""
    asked = await material.rewrites(size.functions)
    functions = [asked[at : at + 2] for at in range(0, len(asked), 2)]
    return [
        await timed(competitor, replace(request, max_tokens=min(request.max_tokens, size.rewrite_tokens)))
        for pair in functions[size.share(len(functions), number)]
        for request in pair
    ]


async def reviewing(competitor: Competitor, size: Size, number: int) -> list[Sample]:
    """Several at once; the sample is the whole, since they overlap."""
    requests = material.reviews(size.reviewed)[size.share(size.reviewed, number)]
    waiting, samples = iter(requests), list[Sample]()

    async def one_after_the_other() -> None:
        for request in waiting:
            samples.append(await timed(competitor, request))

    began = time.perf_counter()
    await asyncio.gather(*(one_after_the_other() for _ in range(AT_ONCE)))
    seconds = time.perf_counter() - began
    memory = memory_of(competitor.pid)
    return [Sample(seconds, sum(sample.tokens for sample in samples), note=memory)]


async def typing_while_reviewing(competitor: Competitor, size: Size, number: int) -> list[Sample]:
    """Keystrokes that arrive while reviews are under way."""
    requests = await material.keystrokes(6 + number, size.disturbed_keystrokes)
    async with _reviews_under_way(competitor, number) as made:
        before, began = made(), time.perf_counter()
        samples = await _type(competitor, requests)
        speed = (made() - before) / (time.perf_counter() - began)
    await competitor.ready()
    return [replace(sample, note={**sample.note, "reviews/min": 60 * speed}) for sample in samples]


@contextlib.asynccontextmanager
async def _reviews_under_way(competitor: Competitor, number: int) -> AsyncGenerator[Callable[[], int], None]:
    """Keep some reviews going; what is given tells how many have ended so far."""
    ended, begun = 0, asyncio.Event()
    requests = material.reviews()
    start = (len(requests) * number) // 7
    waiting = iter([*requests[start:], *requests[:start]] * 50)

    async def review() -> None:
        nonlocal ended
        for request in waiting:
            await timed(competitor, request)
            ended += 1
            begun.set()

    tasks = [asyncio.ensure_future(review()) for _ in range(AT_ONCE)]
    first = asyncio.ensure_future(begun.wait())
    try:
        await asyncio.wait({first, *tasks}, return_when=asyncio.FIRST_COMPLETED)
        yield lambda: ended
    finally:
        for task in (first, *tasks):
            task.cancel()
        await asyncio.gather(first, *tasks, return_exceptions=True)


async def cancelling(competitor: Competitor, size: Size, number: int) -> list[Sample]:
    """Leave long questions at random moments between their beginning and their end."""
    part = size.share(size.cancels, number)
    questions = material.long_chats(size.cancels + size.rounds)
    whole = await timed(competitor, questions[size.cancels + number])
    chance = random.Random(number)
    return [
        await cancelled(competitor, question, chance.uniform(0.01, 0.95) * whole.seconds)
        for question in questions[part]
    ]


async def starting(competitor: Competitor, _size: Size, _number: int) -> list[Sample]:
    """From nothing to the first token of a tiny question."""
    try:
        return [await _first_token(competitor, material.chat("Say yes.", 1))]
    finally:
        await competitor.close()


async def starting_again(competitor: Competitor, _size: Size, _number: int) -> list[Sample]:
    """From nothing to the first token of a review like one that was asked for before the restart."""
    before, after = material.reviews(2)
    try:
        await competitor.start()
        await timed(competitor, before)
        await competitor.close()
        return [await _first_token(competitor, replace(after, priority=Priority.FOREGROUND))]
    finally:
        await competitor.close()


async def _first_token(competitor: Competitor, request: Request) -> Sample:
    began = time.perf_counter()
    await competitor.start()
    async with contextlib.aclosing(competitor.stream(request)) as stream:
        async for tokens in stream:
            return Sample(time.perf_counter() - began, tokens)
    raise RuntimeError(f"{competitor.name} answered nothing")


_KEYSTROKES = (who.OURS, who.SERVER, who.SERVER_LINE)
WORKLOADS = (
    Workload(
        "W1", "keystrokes: 60 characters typed in a 400-line file, to the 16th token", typing,
        (*_KEYSTROKES, who.SERVER_SPM, who.PYTHON), goal_ratio=0.25,
    ),
    Workload(
        "W2", "rewrite: optimise and document 10 functions of 40 to 80 lines", rewriting,
        (who.OURS, who.SERVER, who.SERVER_NGRAM, who.SERVER_NGRAM_MOD, who.PYTHON_LOOKUP),
        total_s, "total, s", goal_ratio=0.6,
    ),
    Workload(
        "W3", "review: 40 functions of one file, shared header", reviewing,
        (who.OURS, who.SERVER, who.SERVER_SLOTS, who.PYTHON), total_s, "total, s", goal_ratio=0.8,
        notes=("rss", "uss", "pss"),
    ),
    Workload(
        "W4", "keystrokes while reviews run", typing_while_reviewing,
        (*_KEYSTROKES, who.SERVER_SLOTS), goal_ratio=0.25, notes=("reviews/min",),
    ),
    Workload(
        "W5", "keystrokes with one busy process per core", typing_disturbed, _KEYSTROKES,
        goal_ratio=0.4, busy=cores(),
    ),
    Workload(
        "W6", "50 cancels at random moments, until ready for the next", cancelling,
        (who.OURS, who.SERVER), slowest_s, "99th percentile, s", goal_s=0.1,
    ),
    Workload(
        "W7a", "start to the first token, tiny question", starting,
        (who.OURS, who.SERVER, who.PYTHON), goal_ratio=1.0, started=False,
    ),
    Workload(
        "W7b", "start to the first token, review like one before the restart", starting_again,
        (who.OURS, who.SERVER, who.PYTHON), goal_ratio=1.0, started=False,
    ),
)  # fmt: skip
"""In the order in which they are run. `python -m benchmarks.engine --only W7` runs both parts of W7."""

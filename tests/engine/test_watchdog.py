"""When a silent worker is ended: time is counted in the watchdog's own looks, so a busy machine changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import psutil
import pytest

from nexo_lsp.engines.llama.connection import Connection
from nexo_lsp.engines.llama.messages import FromWorker, ToWorker
from nexo_lsp.engines.llama.process import ProcessLink, spawn_process
from nexo_lsp.errors import EngineClosed, EngineCrashed

HANG_S = 0.08
LOOKS = 8
"""How often the watchdog looks in `HANG_S`."""


class SilentWorker:
    """Says nothing until it is killed; `work` tells from the number of looks how long it has computed."""

    pid = None

    def __init__(self, work: Callable[[int], float]) -> None:
        self.looks = 0
        self._work = work
        self._killed = asyncio.Event()

    def send(self, message: ToWorker) -> None:
        pass

    async def receive(self) -> AsyncIterator[FromWorker]:
        await self._killed.wait()
        for message in ():
            yield message

    def work_s(self) -> float:
        self.looks += 1
        return self._work(self.looks)

    def kill(self) -> None:
        self._killed.set()

    async def close(self, grace_s: float) -> None:
        self._killed.set()

    def last_words(self) -> str:
        return ""


async def looks_until_ended(work: Callable[[int], float]) -> int:
    worker = SilentWorker(work)
    connection = Connection(worker, hang_s=HANG_S, grace_s=0, changed=lambda: None)
    inbox = connection.open(1)
    with pytest.raises(EngineCrashed, match="hung"):
        await inbox.next()
    await connection.end(EngineClosed("The test is over."))
    return worker.looks


async def test_a_worker_that_stands_still_is_ended_soon() -> None:
    assert await looks_until_ended(lambda _looks: 7.0) <= 2 * LOOKS


async def test_a_worker_that_computes_is_given_more_time_but_not_for_ever() -> None:
    looks = await looks_until_ended(lambda looks: looks * HANG_S / LOOKS)
    assert 4 * LOOKS < looks <= 8 * LOOKS


async def test_looking_for_something_to_do_is_no_work() -> None:
    assert await looks_until_ended(lambda looks: looks * HANG_S / LOOKS / 100) <= 2 * LOOKS


async def test_the_work_of_a_real_process_is_seen() -> None:
    link = await spawn_process()
    assert isinstance(link, ProcessLink)
    async for _ready in link.receive():
        break
    assert link.work_s() > 0
    process = psutil.Process(link.pid)
    await link.close(30)
    assert not process.is_running()
    assert link.work_s() == 0

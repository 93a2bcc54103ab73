"""Work side by side, bounded."""

from __future__ import annotations

import asyncio

from nexo_lsp.pipeline.step import Pool


async def after(gate: asyncio.Event, result: int | Exception) -> int:
    await gate.wait()
    if isinstance(result, Exception):
        raise result
    return result


async def test_results_come_as_work_ends() -> None:
    pool = Pool[int](2)
    gates = [asyncio.Event(), asyncio.Event()]
    for index, gate in enumerate(gates):
        assert not pool.full
        pool.start(f"job {index}", after(gate, index))
    assert pool.full
    gates[1].set()
    assert await pool.ended() == [("job 1", 1)]
    assert pool.busy
    assert not pool.full
    gates[0].set()
    assert await pool.ended() == [("job 0", 0)]
    assert not pool.busy


async def test_a_failure_is_kept_and_the_others_go_on() -> None:
    pool = Pool[int](3)
    gate = asyncio.Event()
    first, second = ValueError("first"), ValueError("second")
    pool.start("a", after(gate, first))
    pool.start("b", after(gate, second))
    pool.start("c", after(gate, 3))
    gate.set()
    results: list[tuple[str, int]] = []
    while pool.busy:
        results += await pool.ended()
    assert results == [("c", 3)]
    assert pool.error is first


async def test_cancelling_ends_what_runs() -> None:
    pool = Pool[int](1)
    ended = asyncio.Event()

    async def work() -> int:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return 1

    pool.start("a", work())
    await asyncio.sleep(0)
    pool.cancel()
    assert not pool.busy
    await ended.wait()

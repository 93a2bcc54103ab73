"""When work that nobody asked for waits, and when it goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from nexo_lsp.offload import inline
from nexo_lsp.runtime.environment import Battery
from nexo_lsp.runtime.power import BackgroundCare, PowerWatch, power_watch
from nexo_lsp.runtime.readings.energy import FAKE_BATTERY


class Laptop:
    """A battery, a thermometer and a clock that a test sets."""

    def __init__(self, percent: float | None = 50, *, plugged: bool = False) -> None:
        self.battery = None if percent is None else Battery(percent, plugged)
        self.heat: str | None = None
        self.now = 1000.0
        self.reads = 0
        self.watch = PowerWatch(self.read, lambda: self.heat, lambda: self.now, offload=inline, every_s=5)

    def read(self) -> Battery | None:
        self.reads += 1
        return self.battery

    def becomes(self, percent: float, *, plugged: bool = False) -> None:
        """Another charge, at a time when the last reading counts no more."""
        self.battery = Battery(percent, plugged)
        self.now += 6


def test_it_pauses_below_the_bound_and_says_why() -> None:
    laptop = Laptop(23.4)
    assert laptop.watch.pause_reason(30) == (
        "on battery at 23 %: review pauses below 30 % (nexo.review.pauseBelowBattery)"
    )
    assert laptop.watch.pause_reason(20) is None
    assert laptop.watch.pause_reason(0) is None


@pytest.mark.parametrize("laptop", [Laptop(None), Laptop(5, plugged=True), Laptop(30)])
def test_nothing_speaks_against_it(laptop: Laptop) -> None:
    assert laptop.watch.pause_reason(30) is None


def test_it_does_not_flap_at_the_bound() -> None:
    laptop = Laptop(30)
    said: list[bool] = []
    for percent in (30, 29, 30, 31, 32, 33, 32, 30, 29):
        laptop.becomes(percent)
        said.append(laptop.watch.pause_reason(30) is not None)
    assert said == [False, True, True, True, True, False, False, False, True]
    laptop.becomes(31)
    assert "goes on at 33 %" in (laptop.watch.pause_reason(30) or "")
    # Another bound knows nothing of the one before.
    assert laptop.watch.pause_reason(31) is None


def test_a_full_battery_is_enough_for_any_bound() -> None:
    laptop = Laptop(99)
    assert laptop.watch.pause_reason(100) is not None
    laptop.becomes(100)
    assert laptop.watch.pause_reason(100) is None


def test_plugging_in_counts_at_once() -> None:
    laptop = Laptop(5)
    assert laptop.watch.pause_reason(30)
    laptop.becomes(5, plugged=True)
    assert laptop.watch.pause_reason(30) is None
    laptop.becomes(31)
    assert laptop.watch.pause_reason(30) is None, "being plugged in ended the pause"


def test_a_reading_counts_for_some_seconds() -> None:
    laptop = Laptop(50)
    for _ in range(10):
        laptop.watch.pause_reason(30)
    assert laptop.reads == 1
    laptop.watch.pause_reason(0)
    laptop.now += 4.9
    laptop.watch.pause_reason(30)
    assert laptop.reads == 1
    laptop.now += 0.1
    laptop.watch.pause_reason(30)
    assert laptop.reads == 2


def test_heat_pauses_until_it_has_cooled_for_a_while() -> None:
    laptop = Laptop(80, plugged=True)
    laptop.heat = "the machine is too hot (cpu: 99 °C)"
    assert laptop.watch.pause_reason(30) == (
        "the machine is too hot (cpu: 99 °C): review pauses until it has cooled down"
    )
    laptop.heat = None
    laptop.now += 10
    assert laptop.watch.pause_reason(30) is not None
    laptop.now += 19
    assert laptop.watch.pause_reason(30) is not None
    laptop.now += 2
    assert laptop.watch.pause_reason(30) is None


async def turns(until: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not until():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0)


async def test_who_waits_goes_on_when_it_is_plugged_in() -> None:
    laptop = Laptop(10)
    watch = PowerWatch(laptop.read, clock=lambda: laptop.now, offload=inline, every_s=0.001)
    heard: list[str] = []
    watch.on_change = lambda: heard.append(watch.waiting_for)
    waiting = [asyncio.create_task(watch.wait_until_allowed(lambda: 30)) for _ in range(3)]
    await turns(lambda: bool(watch.waiting_for))
    assert "on battery at 10 %" in watch.waiting_for
    assert not any(task.done() for task in waiting)
    laptop.becomes(9, plugged=True)
    await asyncio.wait_for(asyncio.gather(*waiting), 10)
    assert watch.waiting_for == ""
    assert len(heard) == 2


async def test_nothing_is_read_while_nobody_waits() -> None:
    laptop = Laptop(10)
    watch = PowerWatch(laptop.read, clock=lambda: laptop.now, offload=inline, every_s=0.001)
    waiting = asyncio.create_task(watch.wait_until_allowed(lambda: 30))
    await turns(lambda: bool(watch.waiting_for))
    waiting.cancel()
    await asyncio.wait({waiting})
    assert watch.waiting_for == ""
    assert len(asyncio.all_tasks()) == 1, "nothing is left that could look"
    assert laptop.reads == 1


async def test_a_lower_bound_counts_at_once() -> None:
    laptop = Laptop(25)
    bound = 30
    waiting = asyncio.create_task(laptop.watch.wait_until_allowed(lambda: bound))
    await turns(lambda: bool(laptop.watch.waiting_for))
    bound = 20
    # The next look by itself would be five seconds away.
    laptop.watch.look_again()
    await turns(waiting.done)


async def test_care_asks_with_the_bound_of_the_moment() -> None:
    laptop = Laptop(25)
    bound = 30
    care = BackgroundCare(laptop.watch, lambda: bound)
    assert await care.paused()
    bound = 20
    assert not await care.paused()
    await care.until_allowed()


async def test_the_watch_over_this_machine_reads_it() -> None:
    reason = await power_watch({}, inline).paused(100)
    assert reason is None or "battery" in reason or "hot" in reason
    # A file that is not there is no battery.
    assert await power_watch({FAKE_BATTERY: "/nowhere"}, inline).paused(100) is None

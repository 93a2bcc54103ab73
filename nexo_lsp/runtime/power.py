"""Sparing a battery: work that nobody asked for waits while the charge is low, or the machine too hot."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from nexo_lsp.offload import Offload, in_thread
from nexo_lsp.runtime.environment import Battery
from nexo_lsp.runtime.readings.energy import FAKE_BATTERY, battery_of, heat_of
from nexo_lsp.runtime.readings.readings import Readings

_log = logging.getLogger(__name__)

_EVERY_S, _EVERY_FAKED_S = 5.0, 0.05
_MARGIN = 3
"""So many percent above the bound what was paused goes on, since a charge wavers by one around a value."""
_COOLING_S = 30.0
"""So long after it was too hot a machine is left alone."""


@dataclass(frozen=True, slots=True)
class _Reading:
    at: float
    battery: Battery | None
    heat: str | None


class PowerWatch:
    """Says whether work that nobody asked for may be done now, and wakes those who wait for that.

    `read` and `thermal` (why the machine is too hot, or None) may take some milliseconds: a charge is asked
    of a laptop's embedded controller. What they said counts for `every_s` seconds, and they are asked again
    only when somebody wants to know; while somebody waits, that is every `every_s` seconds.
    """

    def __init__(
        self,
        read: Callable[[], Battery | None],
        thermal: Callable[[], str | None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        *,
        offload: Offload = in_thread,
        every_s: float = _EVERY_S,
    ) -> None:
        self.on_change: Callable[[], None] = lambda: None
        """Called on the loop when `waiting_for` changes."""
        self.waiting_for = ""
        """Why somebody waits now, for people; empty while nobody does."""
        self._read = read
        self._thermal = thermal
        self._clock = clock
        self._offload = offload
        self._every_s = every_s
        self._last: _Reading | None = None
        self._paused_below: int | None = None
        """The bound that the charge fell below, until it is well above again."""
        self._waiters = 0
        self._look = asyncio.Event()

    def pause_reason(self, below_percent: int) -> str | None:
        """Why to pause now, for people; None to go on. 0 never pauses.

        Reads the machine, so it is not for the loop.
        """
        if below_percent <= 0:
            return None
        return self._judged(self._reading(), below_percent)

    async def paused(self, below_percent: int) -> str | None:
        """The same, for the loop: the machine is read away from it."""
        if below_percent <= 0:
            return None
        fresh = self._fresh() or await self._offload(self._reading)
        return self._judged(fresh, below_percent)

    async def wait_until_allowed(self, below_percent: Callable[[], int]) -> None:
        """Wait until nothing speaks against going on; the bound is asked for at each look."""
        self._waiters += 1
        waited = False
        try:
            while reason := await self.paused(below_percent()):
                waited = True
                self._tell(reason)
                self._look.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._look.wait(), self._every_s)
            if waited:
                _log.info("work that waited goes on")
        finally:
            self._waiters -= 1
            self.look_again()
            if not self._waiters:
                self._tell("")

    def look_again(self) -> None:
        """Something has changed (the bound, somebody's leave): those who wait look at once."""
        self._look.set()

    def _fresh(self) -> _Reading | None:
        last = self._last
        return last if last is not None and self._clock() - last.at < self._every_s else None

    def _reading(self) -> _Reading:
        fresh = self._fresh()
        if fresh is not None:
            return fresh
        now, heat = self._clock(), self._thermal()
        last = self._last
        if heat is None and last is not None and last.heat is not None and now - last.at < _COOLING_S:
            # Only the battery is looked at anew; the time of cooling counts from the last hot reading.
            return _Reading(last.at, self._read(), last.heat)
        self._last = _Reading(now, self._read(), heat)
        return self._last

    def _judged(self, reading: _Reading, below: int) -> str | None:
        battery = reading.battery
        if battery is None or battery.plugged:
            self._paused_below = None
        else:
            again = min(100, below + _MARGIN)
            held = self._paused_below == below and battery.percent < again
            self._paused_below = below if held or battery.percent < below else None
            if self._paused_below is not None:
                bound = f"pauses below {below} %" if battery.percent < below else f"goes on at {again} %"
                charge = f"on battery at {battery.percent:.0f} %"
                return f"{charge}: review {bound} (nexo.review.pauseBelowBattery)"
        return f"{reading.heat}: review pauses until it has cooled down" if reading.heat else None

    def _tell(self, reason: str) -> None:
        if reason == self.waiting_for:
            return
        if not self.waiting_for:
            _log.info("work that nobody asked for waits: %s", reason)
        self.waiting_for = reason
        self.on_change()


@dataclass(frozen=True, slots=True)
class BackgroundCare:
    """What a pipeline asks before each piece of work that nobody asked for."""

    watch: PowerWatch
    below_percent: Callable[[], int]

    async def paused(self) -> bool:
        """Whether there is a reason to wait now."""
        return await self.watch.paused(self.below_percent()) is not None

    async def until_allowed(self) -> None:
        """Wait until there is none."""
        await self.watch.wait_until_allowed(self.below_percent)


def power_watch(environ: Mapping[str, str], offload: Offload) -> PowerWatch:
    """A watch over this machine, or over what `NEXO_FAKE_BATTERY` names in a test."""
    readings = Readings(environ=environ)
    return PowerWatch(
        lambda: battery_of(readings),
        lambda: heat_of(readings),
        offload=offload,
        every_s=_EVERY_FAKED_S if FAKE_BATTERY in environ else _EVERY_S,
    )

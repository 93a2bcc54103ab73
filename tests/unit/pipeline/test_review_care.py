"""Review that nobody asked for waits while the battery is low; what was asked for does not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from nexo_lsp.generation import Priority
from nexo_lsp.runtime.readings.energy import FAKE_BATTERY
from tests.unit.pipeline.conftest import MakeDesk

Make = Callable[..., dict[str, str]]


class FakeBattery:
    """The file that stands in for the battery."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "battery.json"
        self.environ = {FAKE_BATTERY: str(self.file)}

    def set(self, percent: float, *, plugged: bool = False) -> None:
        new = self.file.with_suffix(".new")
        new.write_text(json.dumps({"percent": percent, "plugged": plugged}), encoding="utf-8")
        new.replace(self.file)


def functions(count: int) -> str:
    return "".join(f"def f{n}(a):\n    return a / {n}\n\n\n" for n in range(count))


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - another thread reads the battery
            await asyncio.sleep(0.005)


async def test_a_low_battery_holds_a_review_back_until_it_is_plugged_in(
    make_desk: MakeDesk, tmp_path: Path
) -> None:
    battery = FakeBattery(tmp_path)
    battery.set(10)
    desk = await make_desk({"json": {"findings": []}}, **battery.environ)
    snapshot = desk.open(functions(2))
    review = asyncio.create_task(desk.app.reviews.review(snapshot.uri))
    await until(lambda: desk.app.status().detail)
    status = desk.app.status()
    assert status.detail == "on battery at 10 %: review pauses below 30 % (nexo.review.pauseBelowBattery)"
    assert status.detail in status.reasons
    assert desk.events() == []
    battery.set(10, plugged=True)
    assert (await review).complete
    assert len(desk.events()) == 2
    assert desk.app.status().detail == ""


async def test_asking_for_it_wakes_the_review_that_waits(make_desk: MakeDesk, tmp_path: Path) -> None:
    battery = FakeBattery(tmp_path)
    battery.set(10)
    desk = await make_desk({"json": {"findings": []}}, **battery.environ)
    snapshot = desk.open(functions(1))
    waiting = asyncio.create_task(desk.app.reviews.review(snapshot.uri))
    await until(lambda: desk.app.status().detail)
    assert (await desk.app.reviews.review(snapshot.uri, priority=Priority.FOREGROUND)).complete
    assert (await waiting).complete
    assert [event["priority"] for event in desk.events()] == [Priority.FOREGROUND]


async def test_a_review_that_is_asked_for_never_waits(make_desk: MakeDesk, tmp_path: Path) -> None:
    battery = FakeBattery(tmp_path)
    battery.set(1)
    desk = await make_desk({"json": {"findings": []}}, **battery.environ)
    snapshot = desk.open(functions(6))
    assert (await desk.app.reviews.review(snapshot.uri, priority=Priority.FOREGROUND)).complete


async def test_a_bound_of_0_never_waits(make_desk: MakeDesk, tmp_path: Path) -> None:
    battery = FakeBattery(tmp_path)
    battery.set(1)
    environ = battery.environ | {"NEXO_REVIEW_PAUSE_BELOW_BATTERY": "0"}
    desk = await make_desk({"json": {"findings": []}}, **environ)
    snapshot = desk.open(functions(1))
    assert (await desk.app.reviews.review(snapshot.uri)).complete


async def test_a_charge_that_falls_on_the_way_stops_the_rest_and_shows_what_was_found(
    make_desk: MakeDesk, tmp_path: Path, finding: Make
) -> None:
    battery = FakeBattery(tmp_path)
    battery.set(31)
    # Four functions are asked about at once; the first answer makes room for the fifth.
    desk = await make_desk(
        {"match": r"def f\d[^`]*```\s*$", "json": {"findings": [finding("return a / 3")]}, "delay_ms": 40},
        **battery.environ,
    )
    snapshot = desk.open(functions(6))
    review = asyncio.create_task(desk.app.reviews.review(snapshot.uri))
    await desk.asked(4)
    battery.set(29)
    await until(lambda: desk.app.status().detail)
    asked = len(desk.events())
    assert 4 <= asked < 6
    assert len(desk.events("finish")) == asked, "what was asked is waited for"
    assert len(desk.app.reviews.findings(snapshot.uri)) == 1
    assert not review.done()
    battery.set(35)
    assert (await review).complete
    assert len(desk.events()) == 6


async def test_what_is_known_is_shown_on_any_battery(
    make_desk: MakeDesk, tmp_path: Path, finding: Make
) -> None:
    battery = FakeBattery(tmp_path)
    battery.set(80)
    desk = await make_desk({"json": {"findings": [finding("return a / 0")]}}, **battery.environ)
    snapshot = desk.open(functions(1))
    await desk.app.reviews.review(snapshot.uri)
    desk.app.closed(desk.app.documents.get(snapshot.uri))
    battery.set(5)
    assert (await desk.app.reviews.review(snapshot.uri)).complete
    assert len(desk.app.reviews.findings(snapshot.uri)) == 1
    assert len(desk.events()) == 1


async def test_a_waiting_review_ends_with_its_document(make_desk: MakeDesk, tmp_path: Path) -> None:
    battery = FakeBattery(tmp_path)
    battery.set(10)
    desk = await make_desk(**battery.environ)
    snapshot = desk.open(functions(1))
    review = asyncio.create_task(desk.app.reviews.review(snapshot.uri))
    await until(lambda: desk.app.status().detail)
    desk.app.closed(snapshot)
    assert not (await review).complete
    await until(lambda: not desk.app.status().detail)
    assert desk.events() == []


async def test_an_answer_is_kept_under_the_model_that_gave_it(
    make_desk: MakeDesk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model may change while a review waits for power."""
    battery = FakeBattery(tmp_path)
    battery.set(10)
    desk = await make_desk({"json": {"findings": []}}, **battery.environ)
    first = desk.open(functions(1))
    waiting = asyncio.create_task(desk.app.reviews.review(first.uri))
    await until(lambda: desk.app.status().detail)
    monkeypatch.setattr(desk.app.room, "model_name", lambda _operation: "another")
    battery.set(10, plugged=True)
    assert (await waiting).complete
    assert len(desk.events()) == 1
    # The other model's answer is known; the first one was never asked.
    assert (await desk.app.reviews.review(first.uri)).complete
    assert len(desk.events()) == 1
    monkeypatch.undo()
    assert (await desk.app.reviews.review(first.uri, priority=Priority.FOREGROUND)).complete
    assert len(desk.events()) == 2

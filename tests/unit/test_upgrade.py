"""`auto` begins with the small model that is here, fetches the better one meanwhile, and loses no request."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from nexo_lsp.app import engine_room
from nexo_lsp.app.engine_room import EngineRoom, Hooks
from nexo_lsp.engines.engine import Engine
from nexo_lsp.errors import ModelDownloadCancelled
from nexo_lsp.folders import Folders, folders
from nexo_lsp.generation import EngineStatus, Operation, Piece, Request
from nexo_lsp.models.catalog import find
from nexo_lsp.models.progress import PullProgress
from nexo_lsp.offload import inline
from nexo_lsp.runtime.gpus import Found
from nexo_lsp.runtime.providers.native import NativeProvider
from nexo_lsp.runtime.providers.provider import Availability
from nexo_lsp.settings import Settings
from tests.unit.runtime.fakes import REQUEST, Held
from tests.unit.runtime.machines import ENVIRONMENTS

SMALL, BETTER = (f"qwen2.5-coder-{size}-instruct-q4_k_m" for size in ("0.5b", "1.5b"))
ACTION, REVIEW = Operation.ACTION, Operation.REVIEW


def put(where: Folders, name: str) -> Path:
    """A file of the model's size, without its content: it is not read."""
    entry = find(name)
    assert entry is not None
    where.models.mkdir(parents=True, exist_ok=True)
    with (where.models / entry.file).open("wb") as file:
        file.truncate(entry.size)
    return where.models / entry.file


class Fetching:
    """A host whose downloads bring a file when they are let go on, or are stopped."""

    def __init__(self, where: Folders) -> None:
        self.asked: list[str] = []
        self.begun, self.go_on = asyncio.Event(), asyncio.Event()
        self.agrees, self.stopped = True, False
        self._where = where

    async def confirm_download(self, model: str, size_bytes: int) -> bool:
        self.asked.append(model)
        return self.agrees

    async def download(
        self,
        model: str,
        size_bytes: int,
        fetch: Callable[[Callable[[PullProgress], None], threading.Event], Path],
    ) -> Path:
        self.begun.set()
        await self.go_on.wait()
        if self.stopped:
            raise ModelDownloadCancelled("The download was stopped.")
        return put(self._where, model)


class Loads(Held):
    """An engine that has its model from the provider, as the real one does, and says its name."""

    def __init__(self, provider: NativeProvider) -> None:
        super().__init__()
        self._provider = provider

    async def stream(self, request: Request) -> AsyncGenerator[Piece, None]:
        self.name = (await self._provider.model()).stem
        async for piece in super().stream(request):
            yield piece


class Desk:
    """An engine room of a lasting app on a laptop with the small model."""

    def __init__(self, home: Path) -> None:
        self.where = folders({"NEXO_HOME": str(home)})
        put(self.where, SMALL)
        self.host = Fetching(self.where)
        self.settings = Settings()
        self.background: list[asyncio.Task[None]] = []
        self.made: list[Loads] = []
        self.news = asyncio.Event()
        laptop = ENVIRONMENTS["linux laptop on battery"]
        hooks = Hooks(self._keep, self.news.set, lambda _text: None, lambda: laptop.free_bytes, lasting=True)
        self.room = EngineRoom(
            {"NEXO_HOME": str(home)}, self.where, self.host, inline, lambda: self.settings, laptop, hooks
        )

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        self.background.append(asyncio.ensure_future(work))

    async def settled(self) -> None:
        """Wait until nothing runs in the background any more."""
        await asyncio.wait_for(asyncio.gather(*self.background), 10)


@pytest_asyncio.fixture
async def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Desk]:
    desk = Desk(tmp_path)

    def probe(_provider: NativeProvider) -> Availability:
        return Availability(True, "llama-cpp-python is installed")

    def find_gpus(_state: Path) -> Found:
        return Found((), "none")

    def create(provider: NativeProvider, _on_status: Callable[[EngineStatus], None]) -> Engine:
        desk.made.append(Loads(provider))
        return desk.made[-1]

    monkeypatch.setattr(NativeProvider, "probe", probe)
    monkeypatch.setattr(NativeProvider, "create_engine", create)
    monkeypatch.setattr(engine_room, "find_gpus", find_gpus)
    desk.room.plan()
    yield desk
    desk.room.engines.drop()
    await desk.room.supply.close()
    await asyncio.wait_for(asyncio.gather(*desk.background, return_exceptions=True), 10)


async def begin(desk: Desk, operation: Operation = ACTION) -> tuple[str, AsyncGenerator[Piece, None]]:
    stream = desk.room.engine(operation).stream(REQUEST)
    return (await anext(stream)).text, stream


async def test_requests_go_on_while_the_better_model_comes_and_none_is_lost(desk: Desk) -> None:
    said, running = await begin(desk)
    assert said == SMALL
    await asyncio.wait_for(desk.host.begun.wait(), 10)
    assert desk.host.asked == [BETTER]
    assert any("better would be" in line for line in desk.room.reasons())

    # It is on its way: what is asked now is answered by the small one, and asks for nothing again.
    said, another = await begin(desk, REVIEW)
    assert said == SMALL
    assert desk.host.asked == [BETTER]

    desk.news.clear()
    desk.host.go_on.set()
    await asyncio.wait_for(desk.news.wait(), 10)
    assert desk.room.model_name(ACTION) == BETTER
    assert not any("better would be" in line for line in desk.room.reasons())

    # New requests have the new engine, those that run keep theirs until they end.
    said, new = await begin(desk)
    assert said == BETTER
    old, better = desk.made
    old.go_on.set()
    assert await ends(running) == "!"
    assert not old.closed.is_set(), "another stream is still open"
    assert await ends(another) == "!"
    await desk.settled()
    assert old.closed.is_set()
    better.go_on.set()
    assert await ends(new) == "!"


async def ends(stream: AsyncGenerator[Piece, None]) -> str:
    """What is left of a stream."""
    return "".join([piece.text async for piece in stream])


async def test_who_declines_is_asked_once_and_keeps_the_small_one(desk: Desk) -> None:
    desk.host.agrees = False
    for _ in range(3):
        said, stream = await begin(desk)
        assert said == SMALL
        await stream.aclose()
    await desk.settled()
    assert desk.host.asked == [BETTER]
    assert desk.room.model_name(ACTION) == SMALL
    # What a change of the settings does.
    desk.room.supply.ask_again()
    _, stream = await begin(desk)
    await stream.aclose()
    await desk.settled()
    assert desk.host.asked == [BETTER, BETTER]


async def test_a_download_that_was_stopped_leaves_the_small_one(desk: Desk) -> None:
    _, stream = await begin(desk)
    await stream.aclose()
    await desk.host.begun.wait()
    desk.host.stopped = True
    desk.host.go_on.set()
    await asyncio.wait_for(asyncio.gather(*desk.background, return_exceptions=True), 10)
    said, stream = await begin(desk)
    await stream.aclose()
    assert said == SMALL
    assert desk.host.asked == [BETTER]


@pytest.mark.parametrize(
    "settings",
    [{"offline": True}, {"models": {"autoDownload": "never"}}, {"models": {"upgrade": False}}],
)
async def test_nothing_is_fetched_where_the_settings_say_so(desk: Desk, settings: dict[str, Any]) -> None:
    desk.settings = Settings.model_validate(settings)
    desk.room.plan()
    said, stream = await begin(desk)
    await stream.aclose()
    await desk.settled()
    assert said == SMALL
    assert desk.host.asked == []

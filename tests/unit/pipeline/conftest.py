"""An app with the mock engine, in this process: real services, scripted answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from nexo_lsp.app import App, create_app
from nexo_lsp.documents import Snapshot
from nexo_lsp.text import Change, Position, Range


class QuietHost:
    """Nobody is there to be asked."""

    def __init__(self) -> None:
        self.notices: list[str] = []

    async def confirm_download(self, model: str, size_bytes: int) -> bool:
        return False

    async def download(self, model: str, size_bytes: int, fetch: Any) -> Path:
        raise AssertionError("nothing may be fetched here")

    def notice(self, message: str, level: str) -> None:
        self.notices.append(message)


@dataclass
class Desk:
    """An app and what its engine was asked."""

    app: App
    log: Path

    def events(self, event: str = "start") -> list[dict[str, Any]]:
        if not self.log.exists():
            return []
        lines = [json.loads(line) for line in self.log.read_text(encoding="utf-8").splitlines()]
        return [line for line in lines if line["event"] == event]

    async def asked(self, times: int = 1) -> None:
        """Wait until the engine has been asked so many times."""
        while len(self.events()) < times:  # noqa: ASYNC110 - the log is a file, it has no event
            await asyncio.sleep(0)

    async def idle(self) -> None:
        """Wait until the engine has nothing more to do."""

        def ended() -> int:
            return sum(len(self.events(how)) for how in ("finish", "cancel", "fail"))

        while ended() < len(self.events()):  # noqa: ASYNC110 - the log is a file, it has no event
            await asyncio.sleep(0)

    def open(self, text: str, name: str = "a.py", language: str = "python") -> Snapshot:
        snapshot = self.app.documents.open(f"file:///project/{name}", language, 1, text)
        self.app.opened(snapshot)
        return snapshot

    def edit(self, uri: str, old: str, new: str) -> Snapshot:
        """Replace the first `old` in the document by `new`, as an editor would."""
        before = self.app.documents.get(uri)
        at = before.text.index(old)
        range_ = Range(before.position(at), before.position(at + len(old)))
        snapshot, edits = self.app.documents.change(uri, before.version + 1, [Change(range_, new)])
        self.app.changed(snapshot, edits)
        return snapshot

    def insert(self, uri: str, line: int, new: str) -> Snapshot:
        before = self.app.documents.get(uri)
        place = Position(line, 0)
        snapshot, edits = self.app.documents.change(
            uri, before.version + 1, [Change(Range(place, place), new)]
        )
        self.app.changed(snapshot, edits)
        return snapshot


MakeDesk = Callable[..., Coroutine[Any, Any, Desk]]


@pytest_asyncio.fixture
async def make_desk(tmp_path: Path) -> AsyncIterator[MakeDesk]:
    made: list[App] = []

    async def make(*rules: dict[str, Any], **environ: str) -> Desk:
        script, log = tmp_path / "script.json", tmp_path / "log.jsonl"
        script.write_text(json.dumps(list(rules)), encoding="utf-8")
        app = create_app(
            {
                "NEXO_HOME": str(tmp_path / "home"),
                "NEXO_FAKE_BATTERY": str(tmp_path / "no-battery"),
                "NEXO_ENGINE": "mock",
                "NEXO_MOCK_SCRIPT": str(script),
                "NEXO_MOCK_LOG": str(log),
                **environ,
            },
            QuietHost(),
        )
        made.append(app)
        return Desk(app, log)

    yield make
    for app in made:
        await app.close()


@pytest.fixture
def finding() -> Callable[..., dict[str, str]]:
    def make(quote: str, message: str = "It is wrong.", **more: str) -> dict[str, str]:
        base = {"category": "bug", "severity": "warning", "suggestion": "Do it right."}
        return {"quote": quote, "message": message, **base, **more}

    return make

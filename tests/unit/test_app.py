"""The composition root: what holds for the whole, whatever the features do."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from nexo_lsp.app import create_app
from nexo_lsp.engines.llama.messages import Metrics
from nexo_lsp.errors import ModelDownloadCancelled, ModelMissing
from nexo_lsp.generation import EngineState, EngineStatus
from nexo_lsp.models.progress import PullProgress
from nexo_lsp.settings import Layer

ROOT = Path(__file__).resolve().parents[2]

_CLOSE = """
import asyncio, os, pathlib
from nexo_lsp.app import create_app
from nexo_lsp.offload import inline

async def main():
    for turns in range(8):
        app = create_app(os.environ, None, inline)
        app.opened(app.documents.open(pathlib.Path("x.py").absolute().as_uri(), "python", 1, "x = 1"))
        # After one of these the background work of opening is done, and its callbacks have not run yet.
        for _ in range(turns):
            await asyncio.sleep(0)
        await app.close()

asyncio.run(main())
"""


class Downloading:
    """A host whose download runs until it is told to end."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.ended_in_good_order = False

    async def confirm_download(self, model: str, size_bytes: int) -> bool:
        return True

    async def download(
        self,
        model: str,
        size_bytes: int,
        fetch: Callable[[Callable[[PullProgress], None], threading.Event], Path],
    ) -> Path:
        self.begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            self.ended_in_good_order = True
            raise
        raise AssertionError

    def notice(self, message: str, level: str) -> None:
        pass


def test_closing_comes_to_an_end_when_background_work_has_just_finished(tmp_path: Path) -> None:
    # A process of its own: a loop that never gets a turn could not be ended by a time-out inside it.
    done = subprocess.run(
        [sys.executable, "-c", _CLOSE],
        env={"PYTHONPATH": str(ROOT), "NEXO_HOME": str(tmp_path), "NEXO_ENGINE": "mock", "PATH": ""},
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


async def test_closing_waits_until_a_download_has_come_to_rest(tmp_path: Path) -> None:
    host = Downloading()
    app = create_app({"NEXO_HOME": str(tmp_path), "NEXO_ENGINE": "native"}, host)
    asking = asyncio.create_task(app.room.model_file())
    await host.begun.wait()
    await app.close()
    assert host.ended_in_good_order
    with pytest.raises((asyncio.CancelledError, ModelDownloadCancelled)):
        await asking


class Stopping(Downloading):
    """A host whose user stops the download by its progress bar."""

    def __init__(self) -> None:
        super().__init__()
        self.downloads = 0

    async def download(self, model: str, size_bytes: int, fetch: object) -> Path:
        self.downloads += 1
        raise ModelDownloadCancelled("The download was stopped.")


async def test_a_download_that_the_user_stopped_does_not_begin_again_by_itself(tmp_path: Path) -> None:
    host = Stopping()
    app = create_app({"NEXO_HOME": str(tmp_path), "NEXO_ENGINE": "native"}, host)
    with pytest.raises(ModelDownloadCancelled):
        await app.room.model_file()
    with pytest.raises(ModelMissing, match="nexo-lsp models pull"):
        await app.room.model_file()
    assert host.downloads == 1
    app.configure([Layer("editor", {"models": {"autoDownload": "always"}})])
    with pytest.raises(ModelDownloadCancelled):
        await app.room.model_file()
    assert host.downloads == 2
    await app.close()


async def test_the_status_has_the_engines_metrics_and_reasons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = create_app({"NEXO_HOME": str(tmp_path), "NEXO_ENGINE": "mock"}, Downloading())
    assert app.status().metrics is None
    chosen = app.status().reasons
    known = Metrics(waiting=2, batch_fill=1.5, swapped_bytes=7)
    extra = {
        "metrics": asdict(known),
        "notes": ("the cache is kept as q8_0",),
        "sharedReason": "it is shared",
    }
    busy = EngineStatus(EngineState.READY, "native", extra=extra)
    monkeypatch.setattr(app.room.engines, "status", lambda _operation: busy)
    status = app.status()
    assert status.metrics == known
    assert status.reasons == (*chosen, "it is shared", "the cache is kept as q8_0")
    await app.close()

from __future__ import annotations

import asyncio
import gc
import io
import threading
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from nexo_lsp.cli.terminal import Screen, StatusLine, TerminalHost
from nexo_lsp.errors import ModelDownloadCancelled, ModelDownloadFailed
from nexo_lsp.models.progress import ProgressReport, PullProgress


def screen(*, terminal: bool, width: int = 60) -> tuple[Screen, io.StringIO]:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=width, highlight=False, color_system=None)
    return Screen(console, console), out


def host(*, terminal: bool = True) -> tuple[TerminalHost, io.StringIO]:
    where, out = screen(terminal=terminal)
    return TerminalHost(where, StatusLine(where.messages)), out


def at(done: int) -> PullProgress:
    return PullProgress("Hub", done, 100_000_000, 5_000_000.0, "download", "")


async def test_a_download_shows_its_bar_and_gives_the_file() -> None:
    terminal, out = host()
    assert await terminal.confirm_download("m", 1)

    def fetch(progress: ProgressReport, _cancel: threading.Event) -> Path:
        progress(at(50_000_000))
        return Path("file.gguf")

    assert await terminal.download("tiny", 100_000_000, fetch) == Path("file.gguf")
    assert "Fetching tiny (100 MB)" in out.getvalue()
    assert "50.0/100.0 MB" in out.getvalue()
    assert "5.0 MB/s" in out.getvalue()
    assert "10 s left" in out.getvalue()


async def test_a_failed_download_is_its_own_error() -> None:
    terminal, _ = host()

    def fetch(_progress: ProgressReport, _cancel: threading.Event) -> Path:
        raise ModelDownloadFailed("no source")

    with pytest.raises(ModelDownloadFailed, match="no source"):
        await terminal.download("tiny", 1, fetch)


async def test_a_cancelled_download_is_told_and_waited_for() -> None:
    terminal, _ = host()
    started, rested = threading.Event(), threading.Event()

    def fetch(_progress: ProgressReport, cancel: threading.Event) -> Path:
        started.set()
        assert cancel.wait(60)
        rested.set()
        return Path("unused")

    task = asyncio.ensure_future(terminal.download("tiny", 1, fetch))
    await asyncio.to_thread(started.wait, 60)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert rested.is_set(), "what came so far is kept only if the download ends by itself"


def test_notices_are_safe_and_on_one_line() -> None:
    where, out = screen(terminal=False, width=20)
    where.tell("a long message with \x1b[2J in it, longer than the line", "error")
    assert out.getvalue() == "nexo-lsp: a long message with <U+001B>[2J in it, longer than the line\n"


def test_the_status_line_is_for_terminals_only() -> None:
    where, out = screen(terminal=False)
    status = StatusLine(where.messages)
    status.show("file 1 of 2")
    status.hide()
    assert out.getvalue() == ""


def test_the_status_line_never_wraps_and_leaves_nothing() -> None:
    where, out = screen(terminal=True, width=30)
    status = StatusLine(where.messages)
    status.show("file 1 of 200 · a/very/long/path/to/some/file.py · calculate (1 of 9)")
    status.hide()
    status.hide()
    assert "file 1 of 200" in out.getvalue()
    assert "calculate" not in out.getvalue()
    # The last thing is to erase the line.
    assert out.getvalue().rstrip().endswith("\x1b[2K")


async def test_a_download_that_is_stopped_by_ctrl_c_ends_in_one_line() -> None:
    surroundings, out = host(terminal=False)
    begun = threading.Event()
    unheard: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: unheard.append(context))

    def fetch(report: ProgressReport, cancel: threading.Event) -> Path:
        begun.set()
        assert cancel.wait(30)
        raise ModelDownloadCancelled("The download was stopped; what came so far is kept.")

    task = asyncio.create_task(surroundings.download("tiny", 1, fetch))
    await asyncio.to_thread(begun.wait, 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    del task
    gc.collect()
    assert unheard == []
    assert out.getvalue() == "nexo-lsp: The download was stopped; what came so far is kept.\n"

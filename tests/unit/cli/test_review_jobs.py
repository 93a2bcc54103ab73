"""`nexo-lsp review --jobs`: several files at the same time, shown in their order."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from nexo_lsp.app import App
from nexo_lsp.cli.review_files import FileReviews, InOrder
from nexo_lsp.cli.review_report import FileReview, Report
from nexo_lsp.cli.review_screen import ReviewScreen
from nexo_lsp.cli.terminal import Screen, StatusLine, TerminalHost
from nexo_lsp.engines.engine import Engine
from nexo_lsp.engines.mock import MockEngine
from nexo_lsp.errors import NexoError
from nexo_lsp.generation import ChatPrompt, FinishReason, Operation, Piece, Request, Usage
from nexo_lsp.offload import in_thread
from nexo_lsp.pipeline.review_run import ReviewProgress
from nexo_lsp.runtime.machine import read_environment

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = [sys.executable, "-m", "nexo_lsp", "review"]
NAMES = ("first", "second", "third", "fourth")


def rule(name: str, **does: Any) -> dict[str, Any]:
    """What is answered to the review of the function `name`, whose code is the last thing in the prompt."""
    return {"match": rf"You review.*user: [^`]*```python\ndef {name}[^`]*```$", **does}


def finding(name: str) -> dict[str, Any]:
    words = {"category": "crash", "severity": "warning", "message": f"It is {name}.", "suggestion": ""}
    return {"findings": [{"quote": f"return {name} / 0", **words}]}


class Held(MockEngine):
    """Answers the review of a function when the test lets it."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: dict[str, asyncio.Future[None]] = {name: asyncio.Future() for name in NAMES}
        self.let: dict[str, asyncio.Event] = {name: asyncio.Event() for name in NAMES}

    async def stream(self, request: Request) -> AsyncGenerator[Piece, None]:
        assert isinstance(request.prompt, ChatPrompt)
        code = request.prompt.messages[-1].content
        name = next(name for name in NAMES if f"def {name}(" in code)
        self.asked[name].set_result(None)
        await self.let[name].wait()
        yield Piece(json.dumps(finding(name)), 1, FinishReason.STOP, Usage())


class HeldApp(App):
    """The app with an engine that the test holds back."""

    def __init__(self, screen: Screen, status: StatusLine) -> None:
        environment = read_environment()
        super().__init__({**os.environ}, TerminalHost(screen, status), in_thread, environment, lasting=False)
        self.held = Held()

    def engine(self, operation: Operation = Operation.ACTION) -> Engine:
        return self.held


@dataclass
class Running:
    """A review under way in this process."""

    task: asyncio.Task[NexoError | None]
    engine: Held
    report: Report
    output: io.StringIO

    def said(self) -> list[str]:
        return said(self.output.getvalue())

    async def until_done(self, *names: str) -> None:
        """Let these be answered, and wait until their files are done."""
        for name in names:
            self.engine.let[name].set()
        async with asyncio.timeout(60):
            while not all(self.report.files[NAMES.index(name)].complete for name in names):  # noqa: ASYNC110
                await asyncio.sleep(0)


@pytest.fixture
async def running(project: Path) -> AsyncIterator[Running]:
    """All four files are under review, and every answer waits to be let."""
    output = io.StringIO()
    screen = Screen(Console(file=output, width=100), Console(file=io.StringIO()))
    show = ReviewScreen(screen, text=True)
    app = HeldApp(screen, show.status)
    app.set_workspace([project], trusted=True)
    files = [project / f"{number}.py" for number in range(len(NAMES))]
    report = Report(files=[FileReview(file, file.name) for file in files])
    task = asyncio.ensure_future(FileReviews(app, report, show, 4).run())
    await asyncio.wait_for(asyncio.gather(*app.held.asked.values()), 60)
    yield Running(task, app.held, report, output)
    await app.close()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four files of one function each, and one finding in each."""
    folder = tmp_path / "project"
    folder.mkdir()
    for number, name in enumerate(NAMES):
        (folder / f"{number}.py").write_text(f"def {name}({name}):\n    return {name} / 0\n")
    script(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("NEXO_ENGINE", "mock")
    monkeypatch.setenv("NEXO_MOCK_SCRIPT", str(tmp_path / "script.json"))
    monkeypatch.setenv("NEXO_MOCK_LOG", str(tmp_path / "log"))
    monkeypatch.chdir(folder)
    return folder


def script(tmp_path: Path, *special: dict[str, Any]) -> None:
    usual = [rule(name, json=finding(name)) for name in NAMES]
    (tmp_path / "script.json").write_text(json.dumps([*special, *usual]))


def events(tmp_path: Path) -> list[str]:
    log = tmp_path / "log"
    return [json.loads(line)["event"] for line in log.read_text().splitlines()] if log.exists() else []


def most_at_once(tmp_path: Path) -> int:
    running = most = 0
    for event in events(tmp_path):
        running += 1 if event == "start" else -1
        most = max(most, running)
    return most


def review(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROGRAM, ".", *arguments], capture_output=True, text=True, check=False, timeout=120
    )


def said(output: str) -> list[str]:
    return [line.partition("It is ")[2].rstrip(".") for line in output.splitlines() if "It is " in line]


async def test_findings_come_in_the_order_of_the_files(running: Running) -> None:
    await running.until_done("fourth", "second")
    assert running.said() == []
    await running.until_done("first")
    assert running.said() == ["first", "second"], "the third is still at work"
    await running.until_done("third")
    assert await running.task is None
    assert running.said() == list(NAMES)


async def test_what_came_behind_the_file_at_work_is_shown_when_stopped(running: Running) -> None:
    await running.until_done("third")
    assert running.said() == []
    running.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running.task
    assert running.said() == ["third"]


@pytest.mark.parametrize("jobs", [1, 2])
def test_no_more_at_once_than_was_said(project: Path, tmp_path: Path, jobs: int) -> None:
    script(tmp_path, *(rule(name, json=finding(name), delay_ms=10) for name in NAMES))
    done = review("--jobs", str(jobs), "--json")
    assert done.returncode == 0, done.stderr
    assert most_at_once(tmp_path) == jobs
    files = json.loads(done.stdout)["files"]
    assert [file["path"] for file in files] == [f"{number}.py" for number in range(4)]
    assert all(file["complete"] and len(file["findings"]) == 1 for file in files)


def test_the_bound_counts_functions_not_files(project: Path, tmp_path: Path) -> None:
    for number in range(1, 4):
        (project / f"{number}.py").unlink()
    (project / "0.py").write_text(
        "".join(f"def {name}({name}):\n    return {name} / 0\n\n\n" for name in NAMES)
    )
    script(tmp_path, *(rule(name, json=finding(name), delay_ms=10) for name in NAMES))
    assert review("--jobs", "3").returncode == 0
    assert most_at_once(tmp_path) == 3


def test_a_failing_file_does_not_end_the_others(project: Path, tmp_path: Path) -> None:
    script(tmp_path, rule("second", fail="engine-crashed"), rule("third", fail="engine-crashed"))
    done = review("--jobs", "4", "--json")
    assert done.returncode == 3
    data = json.loads(done.stdout)
    # Both were at work when the first of them failed: that is no second failure of an engine that had its chance.
    assert [file["complete"] for file in data["files"]] == [True, False, False, True]
    assert data["problem"] == "The engine failed over 2 files."


def test_an_engine_that_fails_again_is_given_up(project: Path, tmp_path: Path) -> None:
    script(tmp_path, *(rule(name, fail="engine-crashed") for name in NAMES))
    done = review("--jobs", "1", "--json")
    assert done.returncode == 3
    assert events(tmp_path).count("start") == 2


def test_no_engine_is_said_once(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXO_ENGINE", "native")
    monkeypatch.setenv("NEXO_MODELS_AUTO_DOWNLOAD", "never")
    done = review("--jobs", "4")
    assert done.returncode == 3
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "nexo-lsp models pull" in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot send Ctrl-C to one process")
def test_ctrl_c_ends_all_that_are_at_work(project: Path, tmp_path: Path) -> None:
    script(tmp_path, *(rule(name, hang=True) for name in NAMES))
    with subprocess.Popen(
        [*PROGRAM, ".", "--jobs", "4"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        while events(tmp_path).count("start") < 4:
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors == ""
    assert "stopped before the end" in out.splitlines()[-1]
    assert events(tmp_path).count("cancel") == 4


def test_zero_jobs_are_refused(project: Path) -> None:
    assert review("--jobs", "0").returncode == 2


def test_places_are_shown_in_their_order() -> None:
    shown: list[str] = []
    order = InOrder()
    order.show(1, lambda: shown.append("1a"))
    order.show(0, lambda: shown.append("0a"))
    order.done(1)
    assert shown == ["0a"]
    order.show(0, lambda: shown.append("0b"))
    order.done(0)
    assert shown == ["0a", "0b", "1a"]
    order.show(2, lambda: shown.append("2a"))
    order.show(4, lambda: shown.append("4a"))
    order.show(3, lambda: shown.append("3a"))
    assert shown[3:] == ["2a"]
    order.flush()
    assert shown[3:] == ["2a", "3a", "4a"]


def test_the_status_line_names_the_files_at_work() -> None:
    console = Console(file=io.StringIO(), force_terminal=True)
    screen = ReviewScreen(Screen(console, console), text=True)
    shown: list[str] = []
    screen.status.show = shown.append  # type: ignore[method-assign]
    files = [FileReview(Path(f"/{name}.py"), f"{name}.py") for name in NAMES]
    screen.begin(files[0], 0, 4)
    assert shown[-1] == "file 1 of 4 · first.py"
    screen.progress(files[0], ReviewProgress(0, 2, "f", 7), lambda: 30.0)
    assert shown[-1] == "file 1 of 4 · first.py · f (1 of 2) · 7 tokens · 30 tokens/s"
    for number in (1, 2, 3):
        screen.begin(files[number], number, 4)
    assert shown[-1] == "0 of 4 files done · first.py 0/2 · second.py · third.py · 1 more at work"
    screen.end(files[1])
    assert shown[-1] == "1 of 4 files done · first.py 0/2 · third.py · fourth.py"

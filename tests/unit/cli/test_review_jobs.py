"""`nexo-lsp review --jobs`: several files at the same time, shown in their order."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from nexo_lsp.cli.review_files import InOrder
from nexo_lsp.cli.review_report import FileReview
from nexo_lsp.cli.review_screen import ReviewScreen
from nexo_lsp.cli.terminal import Screen
from nexo_lsp.pipeline.review_run import ReviewProgress

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = [sys.executable, "-m", "nexo_lsp", "review"]
NAMES = ("first", "second", "third", "fourth")


def rule(name: str, **does: Any) -> dict[str, Any]:
    """What is answered to the review of the function `name`, whose code is the last thing in the prompt."""
    return {"match": rf"You review.*user: [^`]*```python\ndef {name}[^`]*```$", **does}


def finding(name: str) -> dict[str, Any]:
    words = {"category": "crash", "severity": "warning", "message": f"It is {name}.", "suggestion": ""}
    return {"findings": [{"quote": f"return {name} / 0", **words}]}


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


def test_findings_come_in_the_order_of_the_files(project: Path, tmp_path: Path) -> None:
    # The first answer comes word by word, after all the others.
    script(tmp_path, rule("first", json=finding("first"), delay_ms=100))
    done = review("--jobs", "4")
    assert done.returncode == 0, done.stderr
    assert most_at_once(tmp_path) == 4
    assert said(done.stdout) == list(NAMES)


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


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot send Ctrl-C to one process")
def test_ctrl_c_keeps_what_came_behind_the_file_at_work(project: Path, tmp_path: Path) -> None:
    script(tmp_path, rule("first", hang=True))
    with subprocess.Popen(
        [*PROGRAM, ".", "--jobs", "4"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        while len(events(tmp_path)) < 7:
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert said(out) == list(NAMES[1:])
    assert "stopped before the end" in out.splitlines()[-1]


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
    console = Console(file=io.StringIO())
    screen = ReviewScreen(Screen(console, console), text=True)
    shown: list[str] = []
    screen.status.show = shown.append  # type: ignore[method-assign]
    files = [FileReview(Path(f"/{name}.py"), f"{name}.py") for name in NAMES]
    screen.begin(files[0], 0, 4)
    assert shown[-1] == "file 1 of 4 · first.py"
    screen.progress(files[0], ReviewProgress(0, 2, "f", 7), 30.0)
    assert shown[-1] == "file 1 of 4 · first.py · f (1 of 2) · 7 tokens · 30 tokens/s"
    for number in (1, 2, 3):
        screen.begin(files[number], number, 4)
    assert shown[-1] == "0 of 4 files done · first.py 0/2 · second.py · third.py · 1 more at work"
    screen.end(files[1])
    assert shown[-1] == "1 of 4 files done · first.py 0/2 · third.py · fourth.py"

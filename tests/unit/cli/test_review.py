"""`nexo-lsp review` as a process, with scripted answers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = [sys.executable, "-m", "nexo_lsp", "review"]

CODE = """\
def first(x):
    return x / 0


def second(y):
    return y
"""


def asks_about(name: str) -> str:
    """Matches the review of a function: its code is the last thing in the prompt."""
    return rf"You review.*user: [^`]*```python\ndef {name}[^`]*```$"


def found(quote: str, severity: str = "warning") -> dict[str, Any]:
    words = {"category": "crash", "severity": severity, "message": "It fails.", "suggestion": "Do not."}
    return {"findings": [{"quote": quote, **words}]}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "a.py").write_text(CODE)
    script(tmp_path, {"match": asks_about("first"), "json": found("return x / 0")})
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("NEXO_ENGINE", "mock")
    monkeypatch.setenv("NEXO_MOCK_SCRIPT", str(tmp_path / "script.json"))
    monkeypatch.setenv("NEXO_MOCK_LOG", str(tmp_path / "log"))
    monkeypatch.chdir(folder)
    return folder


def script(tmp_path: Path, *rules: dict[str, Any]) -> None:
    (tmp_path / "script.json").write_text(
        json.dumps([*rules, {"match": "You review", "json": {"findings": []}}])
    )


def requests(tmp_path: Path) -> int:
    """How often the engine was asked."""
    log = tmp_path / "log"
    events = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return sum(event["event"] == "start" for event in events)


def review(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROGRAM, *arguments], capture_output=True, text=True, check=False, timeout=120, encoding="utf-8"
    )


def test_findings_as_text(project: Path, tmp_path: Path) -> None:
    done = review("a.py")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:6] == [
        "warning[crash]: It fails.",
        " --> a.py:2:5 in first",
        "  |",
        "2 |     return x / 0",
        "  |     ^^^^^^^^^^^^",
        "  = help: Do not.",
    ]
    assert lines[-1].startswith("1 finding in 1 reviewed file")
    # To a pipe go no escape sequences and no status line.
    assert "\x1b" not in done.stdout + done.stderr
    assert done.stderr == ""
    before = requests(tmp_path)
    assert before == 2
    again = review("a.py")
    assert again.stdout.splitlines()[:6] == lines[:6]
    assert requests(tmp_path) == before, "unchanged functions are answered from memory"


def test_a_pipe_with_a_narrow_encoding(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    (project / "a.py").write_text(CODE.replace("x / 0", "x / 0  # süß"), encoding="utf-8")
    done = review("a.py")
    assert done.returncode == 0, done.stderr
    assert "2 |     return x / 0  # s??" in done.stdout


def test_json_and_sarif(project: Path) -> None:
    data = json.loads(review("a.py", "--json").stdout)
    assert [finding["quote"] for finding in data["files"][0]["findings"]] == ["return x / 0"]
    assert data["complete"] is True
    assert data["engine"] == "mock"
    sarif = json.loads(review("a.py", "--format", "sarif").stdout)
    assert sarif["runs"][0]["results"][0]["ruleId"] == "crash"


def test_exit_code_by_severity(project: Path) -> None:
    assert review("a.py", "--fail-on", "warning").returncode == 1
    assert review("a.py", "--fail-on", "hint", "--json").returncode == 1
    assert review("a.py", "--fail-on", "error").returncode == 0
    assert review("a.py", "--fail-on", "grave").returncode == 2


def test_folders(project: Path) -> None:
    (project / ".gitignore").write_text("gen/\n")
    (project / ".nexoignore").write_text("private.py\n")
    for name in ("gen/x.py", "private.py", "sub/b.py", "notes.md", "secrets.py"):
        (project / name).parent.mkdir(exist_ok=True)
        (project / name).write_text(CODE)
    (project / "image.py").write_bytes(b"\0\1\2")
    data = json.loads(review(".", "a.py", "--json").stdout)
    assert [file["path"] for file in data["files"]] == ["a.py", "sub/b.py"]
    text = review(".").stdout
    assert "File" in text
    assert "sub/b.py" in text.splitlines()[-3]
    assert text.splitlines()[-1].startswith("2 findings in 2 reviewed files")


def test_files_that_cannot_be_reviewed(project: Path, tmp_path: Path) -> None:
    (project / ".env").write_text("TOKEN=1")
    (project / "latin.py").write_bytes("x = 'ä'".encode("latin-1"))
    done = review(".env", "latin.py", "a.py")
    assert done.returncode == 0
    assert ".env was left out" in done.stderr
    assert "latin.py was left out: it is not UTF-8 text" in done.stderr
    assert done.stdout.splitlines()[-1].startswith("1 finding, not complete in 1 reviewed file")
    assert requests(tmp_path) == 2
    alone = review(".env")
    assert alone.returncode == 2
    assert requests(tmp_path) == 2


def test_a_path_that_does_not_exist(project: Path) -> None:
    done = review("a.py", "nowhere.py")
    assert done.returncode == 2
    assert done.stderr == "nexo-lsp: there is no nowhere.py\n"
    assert done.stdout == ""


def test_a_wrong_setting_is_named(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXO_HOVER_WAIT_MS", "soon")
    done = review("a.py")
    assert done.returncode == 0
    assert "nexo.hover.waitMs" in done.stderr


def test_switched_off(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXO_ENABLE", "false")
    done = review("a.py")
    assert "nexo.enable" in done.stderr
    assert requests(tmp_path) == 0


def test_an_engine_that_fails(project: Path, tmp_path: Path) -> None:
    script(
        tmp_path,
        {"match": asks_about("first"), "json": found("return x / 0")},
        {"match": asks_about("second"), "fail": "engine-crashed"},
    )
    done = review("a.py", "--json")
    assert done.returncode == 3
    data = json.loads(done.stdout)
    assert len(data["files"][0]["findings"]) == 1
    assert data["problem"]
    assert data["complete"] is False
    text = review("a.py")
    assert text.returncode == 3
    assert "Traceback" not in text.stderr
    assert text.stderr.startswith("nexo-lsp: ")


def test_no_model_and_none_may_be_fetched(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXO_ENGINE", "native")
    monkeypatch.setenv("NEXO_MODELS_AUTO_DOWNLOAD", "never")
    done = review("a.py")
    assert done.returncode == 3
    assert "nexo-lsp models pull" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot send Ctrl-C to one process")
@pytest.mark.parametrize("form", ["text", "json"])
def test_ctrl_c_keeps_what_is_done(project: Path, tmp_path: Path, form: str) -> None:
    script(
        tmp_path,
        {"match": asks_about("first"), "json": found("return x / 0")},
        {"match": asks_about("second"), "hang": True},
    )
    with subprocess.Popen(
        [*PROGRAM, "a.py", "--format", form], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        # The engine's log says when it hangs.
        while requests(tmp_path) < 2:
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    if form == "json":
        data = json.loads(out)
        assert data["interrupted"] is True
        assert len(data["files"][0]["findings"]) == 1
    else:
        assert out.startswith("warning[crash]: It fails.")
        assert "1 finding, stopped before the end" in out.splitlines()[-1]


def test_a_folder_with_nothing_to_review_says_so(project: Path) -> None:
    (project / "empty").mkdir()
    (project / "empty" / "notes.md").write_text("x")
    done = review("empty")
    assert done.returncode == 2
    assert "nothing to review in empty" in done.stderr
    data = review("empty", "--json")
    assert data.returncode == 2
    report = json.loads(data.stdout)
    assert "nothing to review" in report["problem"]
    assert report["complete"] is False
    assert json.loads(review("empty", "--format", "sarif").stdout)["runs"][0]["results"] == []


def test_one_bad_file_of_many(project: Path) -> None:
    names = [f"f{number:02}.py" for number in range(6)]
    for name in names:
        (project / name).write_text(CODE)
    (project / "f01.py").write_bytes(b"def first(x):\n    return '\0'\n")
    (project / "f02.py").write_bytes("def first(x):\n    return 'ä'\n".encode("latin-1"))
    (project / "f03.py").unlink()
    (project / "f03.py").mkdir()
    (project / "f03.py" / "inside.py").write_text(CODE)
    (project / "f04.py").write_text("def first(x):\n" + "    x += 1\n" * 20_000 + "    return x / 0\n")
    done = review(*names)
    assert done.returncode == 0, done.stderr
    assert "f01.py was left out: it is not UTF-8 text" in done.stderr
    assert "f02.py was left out: it is not UTF-8 text" in done.stderr
    for name in ("f00.py", "f03.py/inside.py", "f05.py"):
        assert f" --> {name}:2:5 in first" in done.stdout


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps no file from its owner by its mode")
def test_a_file_that_may_not_be_read_is_named_and_not_passed_over(project: Path) -> None:
    (project / "b.py").write_text(CODE)
    # A program without a privilege, also where the tests are run by root.
    blocked = (
        "import pathlib, sys\n"
        "real = pathlib.Path.open\n"
        "def refuse(path, *rest, **more):\n"
        "    if path.name == 'b.py': raise PermissionError(13, 'Permission denied', str(path))\n"
        "    return real(path, *rest, **more)\n"
        "pathlib.Path.open = refuse\n"
        "from nexo_lsp.cli import main\n"
        "main(['review', '.'])\n"
    )
    command = [sys.executable, "-c", blocked]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "b.py was left out: Permission denied" in done.stderr
    assert " --> a.py:2:5 in first" in done.stdout


def test_an_engine_that_fails_over_one_file_goes_on_with_the_next(project: Path, tmp_path: Path) -> None:
    (project / "b.py").write_text(CODE.replace("second", "third"))
    script(
        tmp_path,
        {"match": asks_about("first"), "json": found("return x / 0")},
        {"match": asks_about("second"), "fail": "engine-crashed"},
    )
    done = review("a.py", "b.py", "--json")
    assert done.returncode == 3
    data = json.loads(done.stdout)
    assert [len(file["findings"]) for file in data["files"]] == [1, 1]
    assert [file["complete"] for file in data["files"]] == [False, True]
    assert data["problem"] == "The engine failed over 1 file."
    assert data["files"][0]["problem"].startswith("a.py was not reviewed to its end: ")
    script(tmp_path, {"match": "You review", "fail": "engine-crashed"})
    (project / "c.py").write_text("def fourth(y):\n    return y\n")
    for name in ("a.py", "b.py"):
        (project / name).write_text(CODE + "\n\ndef more(z):\n    return z\n")
    assert review(".").returncode == 3

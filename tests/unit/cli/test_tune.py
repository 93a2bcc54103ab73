"""`nexo-lsp doctor --tune` as a user meets it, with figures put in the machine's place."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from nexo_lsp.cli import tune
from nexo_lsp.cli.program import build
from nexo_lsp.engines.llama.messages import Load
from nexo_lsp.engines.llama.tuning import BatchTime, Figures, Progress, PromptSpeed, StepTime
from nexo_lsp.engines.llama.tuning_file import TuningFile
from tests.engine.tiny_gguf import write_tiny_model

FIGURES = Figures(
    processors=2,
    steps=(StepTime(1, None, 0.04), StepTime(2, False, 0.022), StepTime(2, True, 0.046)),
    prompts=(PromptSpeed(1, 90), PromptSpeed(2, 170)),
    batches=(BatchTime(1, 0.022), BatchTime(4, 0.05), BatchTime(8, 0.09), BatchTime(16, 0.17)),
    others=0.1,
)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    model = write_tiny_model(tmp_path / "tiny.gguf")
    environ = {"NEXO_HOME": str(tmp_path / "home"), "NEXO_MODEL": str(model)}
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    return SimpleNamespace(model=model, environ=environ, file=TuningFile(tmp_path / "home" / "state"))


def having(figures: Figures) -> Callable[[Load, Callable[[Progress], None]], Figures]:
    def measure(_wish: Load, tell: Callable[[Progress], None]) -> Figures:
        tell(Progress(1, 2, "a prompt"))
        return figures

    return measure


def test_figures_are_shown_and_remembered(home: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    assert tune.run(home.environ, as_json=False, how=having(FIGURES))
    out = capsys.readouterr().out
    for words in ("spinning", "asleep", "46.0", "170", "0.1 of 2 processors", "2 threads will be used"):
        assert words in out
    found = home.file.find(home.model)
    assert found is not None
    assert (found.threads, found.figures) == (2, FIGURES)


def test_a_busy_machine_is_not_remembered(home: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    assert not tune.run(home.environ, as_json=False, how=having(replace(FIGURES, others=1.4)))
    out = " ".join(capsys.readouterr().out.split())
    assert "1.4 of 2 processors" in out
    assert "run `nexo-lsp doctor --tune` again" in out
    assert home.file.find(home.model) is None


def test_json_for_machines(home: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    assert tune.run(home.environ, as_json=True, how=having(FIGURES))
    said = json.loads(capsys.readouterr().out)
    assert (said["model"], said["remembered"], said["threads"]) == ("tiny.gguf", True, 2)
    assert said["figures"]["steps"][0] == {"threads": 1, "patient": None, "seconds": 0.04}


def test_without_a_model_nothing_is_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NEXO_HOME", str(tmp_path))
    result = CliRunner().invoke(build(["doctor"]), ["doctor", "--tune"])
    assert result.exit_code == 3
    assert "nexo-lsp: " in result.stderr


def test_ctrl_c_is_said_in_one_line(home: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_args: object, **_more: object) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(tune, "run", interrupted)
    result = CliRunner().invoke(build(["doctor"]), ["doctor", "--tune"])
    assert result.exit_code == 130
    assert "stopped" in result.stderr

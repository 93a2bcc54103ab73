"""`nexo-lsp doctor` as a user and a program meet it: the table, the plan beneath it, the checks, JSON."""

from __future__ import annotations

import io
import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from nexo_lsp.cli.check import Check
from nexo_lsp.cli.diagnosis.checks import engine, places
from nexo_lsp.cli.diagnosis.drawing import draw
from nexo_lsp.cli.diagnosis.looks import Looks
from nexo_lsp.cli.diagnosis.plan import Plan
from nexo_lsp.cli.diagnosis.report import Report, as_data
from nexo_lsp.cli.program import build
from nexo_lsp.engines.llama.tuning import BatchTime, Figures, PromptSpeed, StepTime
from nexo_lsp.folders import Folders
from nexo_lsp.generation import Operation
from nexo_lsp.runtime.environment import Battery, Gpu, GpuBackend, Platform
from nexo_lsp.settings import Settings
from tests.unit.cli.doctors import LAPTOP, QUICK, checks, default_entry, put_model, report

SMALL = default_entry().name
MIDDLE = "qwen2.5-coder-1.5b-instruct-q4_k_m"
BIG = "qwen2.5-coder-14b-instruct-q4_k_m"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the default model is, and llama.cpp seems to be."""
    monkeypatch.setattr("importlib.metadata.version", lambda _name: "0.3.99")
    monkeypatch.setattr("nexo_lsp.engines.llama.engine.importlib.util.find_spec", lambda _name: object())
    put_model(tmp_path, head=HEAD, digest=default_entry().sha256)
    return tmp_path


# A GGUF file of version 3 without keys and tensors: enough to be one.
HEAD = b"GGUF" + (3).to_bytes(4, "little") + bytes(16)


def run(*words: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(build(words), list(words))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def drawn(found: Report, width: int = 100, *, terminal: bool = True, encoding: str = "utf-8") -> str:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    draw(Console(file=file, width=width, force_terminal=terminal, color_system=None, highlight=False), found)
    file.seek(0)
    return file.read()


def test_with_nothing_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXO_ENGINE", "mock")
    code, out, _ = run("doctor", "--json")
    data = json.loads(out)
    assert (code, data["ok"]) == (0, True)
    areas = {check["area"] for check in data["checks"]}
    assert areas == {
        "machine", "settings", "engine", "folder of models", "remote", "grammars", "folders",
    }  # fmt: skip
    grammars = {check["name"] for check in data["checks"] if check["area"] == "grammars"}
    assert {"python", "typescript", "kotlin", "cpp"} <= grammars
    code, text, _ = run("doctor")
    assert code == 0
    assert text.splitlines()[-1] == "All is well."


def test_a_wrong_setting_and_its_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXO_ENGINE", "mock")
    monkeypatch.setenv("NEXO_HOVER_WAIT_MS", "soon")
    code, out, _ = run("doctor", "--json")
    assert code == 1
    (wrong,) = [check for check in json.loads(out)["checks"] if check["state"] == "problem"]
    assert wrong["name"] == "nexo.hover.waitMs"
    assert wrong["mend"]
    code, text, _ = run("doctor")
    assert code == 1
    assert text.splitlines()[-1] == "1 thing is wrong: nexo.hover.waitMs."


def test_all_of_it_as_data(home: Path) -> None:
    gpu = Gpu(GpuBackend.VULKAN, "Iris", 1, 2, shares_memory=True)
    data = json.loads(json.dumps(as_data(report(home, replace(LAPTOP, gpus=(gpu,))))))
    assert list(data) == ["ok", "environment", "engines", "models", "checks"]
    assert data["environment"]["simd"] == ["avx2", "fma"]
    assert data["environment"]["gpus"][0]["backend"] == "vulkan"
    engines = {engine["name"]: engine for engine in data["engines"]}
    assert list(engines) == ["native", "mobile", "client-hosted", "docker", "remote", "mock"]
    cell = engines["native"]["operations"]["completion"]
    assert (cell["chosen"], cell["points"] > 100) == (True, True)
    assert engines["mock"]["operations"]["review"]["points"] is None
    (plan,) = data["models"]
    assert plan["operations"] == ["completion", "action", "review"]
    assert (plan["model"]["name"], plan["model"]["measured"]) == (SMALL, False)
    assert plan["model"]["better"]["name"] == "qwen2.5-coder-1.5b-instruct-q4_k_m"


def test_operations_that_differ_are_shown_one_by_one(home: Path) -> None:
    found = report(home, NEXO_REVIEW_MODEL=BIG, NEXO_COMPLETION_ENGINE="mock")
    assert [plan.operations for plan in found.plan.operations] == [
        (Operation.COMPLETION,),
        (Operation.ACTION,),
        (Operation.REVIEW,),
    ]
    completion, action, review = found.plan.operations
    assert (completion.engine, completion.model) == ("mock", None)
    assert action.model is not None
    assert review.model is not None
    assert (action.model.name, review.model.name) == (SMALL, BIG)
    assert review.model.why == "named by the settings"
    text = drawn(found)
    for title in ("\nCompletion\n", "\nActions\n", "\nReview\n"):
        assert title in text
    assert "\nCompletion, actions and review\n" in drawn(report(home))


def test_what_would_be_better_and_whether_it_comes(home: Path) -> None:
    def coming(**variables: str) -> str:
        (plan,) = report(home, given=variables).plan.operations
        assert plan.model is not None
        assert plan.model.better is not None
        assert plan.model.better.name == MIDDLE
        assert any(line.startswith(f"{BIG}: takes ") for line in plan.model.rejected)
        return plan.model.better.coming

    assert coming().startswith("is fetched, if you agree, in the background")
    assert coming(NEXO_MODELS_AUTO_DOWNLOAD="always").startswith("is fetched in the background")
    assert "nexo.models.autoDownload is `never`" in coming(NEXO_MODELS_AUTO_DOWNLOAD="never")
    assert "nexo.models.upgrade is off" in coming(NEXO_MODELS_UPGRADE="false")
    assert coming(NEXO_OFFLINE="true") == "is not fetched, since nexo.offline is on"


def test_a_speed_that_was_measured_is_told(home: Path) -> None:
    from datetime import date

    from nexo_lsp.engines.llama.tuning_file import Tuned, TuningFile

    figures = Figures(
        processors=8,
        steps=(StepTime(8, None, 0.02),),
        prompts=(PromptSpeed(8, 170),),
        batches=(BatchTime(1, 0.02),),
        others=0.0,
    )
    TuningFile(home / "state").remember(home / "models" / default_entry().file, Tuned(date.today(), figures))
    found = report(home)
    (plan,) = found.plan.operations
    assert plan.model is not None
    assert (round(plan.model.tokens_per_s), plan.model.measured, plan.threads) == (50, True, 8)
    assert "50 tokens/s, measured here" in drawn(found)


def test_threads_of_a_machine_of_two_kinds_of_cores(home: Path) -> None:
    found = report(home, replace(LAPTOP, performance_cores=2))
    (plan,) = found.plan.operations
    assert (plan.threads, plan.threads_why) == (2, "one for each performance core")
    assert "8 cores (2 for performance, 6 for efficiency); avx2, fma" in checks(found)["processor"].value
    named = report(home, NEXO_ENGINE_THREADS="3").plan.operations[0]
    assert (named.threads, named.threads_why) == (3, "3, set by nexo.engine.threads")


def test_the_machine(home: Path) -> None:
    own = Gpu(GpuBackend.CUDA, "RTX", 7_000_000_000, 8_000_000_000, device="CUDA0")
    battery = Battery(41, plugged=False)
    found = report(
        home, replace(LAPTOP, gpus=(own,), battery=battery, container="podman"), NEXO_OFFLINE="true"
    )
    machine = {check.name: check.value for check in found.checks if check.area == "machine"}
    assert machine["GPU"] == "RTX (cuda), 7.0 GB of 8.0 GB free"
    assert machine["battery"] == "41 %, in use; review pauses below 30 %"
    assert machine["container"] == "podman"
    assert machine["allowed"] == "no network (nexo.offline), processes"
    phone = report(home, replace(LAPTOP, platform=Platform.ANDROID, battery=battery))
    assert checks(phone)["battery"].value == "41 %, in use; review pauses below 40 %"
    calm = {check.name: check.value for check in report(home, NEXO_REVIEW_PAUSE_BELOW_BATTERY="0").checks}
    assert calm["battery"] == "none"


@pytest.mark.parametrize("width", [60, 80, 120])
def test_nothing_is_cut_off_on_a_terminal(home: Path, width: int) -> None:
    found = report(home, NEXO_REMOTE_ENABLED="true", NEXO_REMOTE_ENDPOINTS="https://a.example.org")
    text = drawn(found, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    flat = "".join(text.split())
    for check in found.checks:
        if check.area != "grammars":
            assert "".join(check.mend.split()) in flat
            assert width < 80 or "".join(check.value.split()) in flat
    for row in found.plan.engines:
        assert row.name in text
    assert "190 ✓" in text
    assert "only in workspaces that you trust" in text


def test_a_pipe_has_a_line_for_each_check(home: Path) -> None:
    found = report(home)
    lines = drawn(found, 80, terminal=False).splitlines()
    for check in found.checks:
        if check.area != "grammars":
            assert any(check.name in line and check.value in line for line in lines), check
    plain = drawn(found, 80, terminal=False, encoding="ascii")
    assert "190 *" in plain


def test_what_a_file_says_does_not_reach_the_terminal(home: Path) -> None:
    found = replace(report(home), checks=(Check("model", "x\x1b[2J", "problem", "a\x1b[31m", "b\x07"),))
    for terminal in (True, False):
        text = drawn(found, terminal=terminal)
        assert "\x1b" not in text
        assert "\x07" not in text


def test_without_the_engine(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    found = report(home)
    library, compiler = [check for check in found.checks if check.area == "engine"]
    assert library.state == "problem"
    assert 'pip install "nexo-lsp[native]"' in library.mend
    assert (compiler.name, compiler.state) == ("compiler", "ok")
    assert "none: nothing can be answered" in drawn(found)
    # Who has another engine may do without.
    other = report(home, NEXO_ENGINE="mock")
    assert other.well


@pytest.mark.parametrize(
    ("platform", "state", "mend"),
    [
        ("linux", "problem", "apt-get install gcc g++"),
        ("darwin", "problem", "xcode-select --install"),
        ("win32", "warning", "BuildTools"),
    ],
)
def test_without_a_compiler(
    home: Path, monkeypatch: pytest.MonkeyPatch, platform: str, state: str, mend: str
) -> None:
    plan = replace(report(home).plan.operations[0], engine="")
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    monkeypatch.setattr("shutil.which", lambda _name: None)
    monkeypatch.setattr("sys.platform", platform)
    _, compiler = engine(Settings(), LAPTOP, Plan((), (plan,)), QUICK)
    assert compiler.state == state
    assert mend in compiler.mend


def test_an_engine_that_does_not_load(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], -4, "", "")
    monkeypatch.setattr("nexo_lsp.cli.diagnosis.looks.subprocess.run", lambda *_words, **_options: failed)
    (check,) = engine(Settings(), LAPTOP, report(home).plan, Looks())
    assert check.state == "problem"
    assert "crashed (exit code -4)" in check.value
    assert check.mend.startswith("pip install")


def test_folders(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    found = {
        check.name: check
        for check in places(Folders(tmp_path / "m", tmp_path / "file" / "s", tmp_path, tmp_path), Looks())
    }
    assert found["models"].state == "ok"
    assert found["state"].state == "problem"
    assert "NEXO_HOME" in found["state"].mend
    assert list(tmp_path.iterdir()) == [tmp_path / "file"], "looking makes nothing"


def test_a_broken_database(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "nexo.db").mkdir()
    found = {check.name: check for check in places(Folders(tmp_path, tmp_path, tmp_path, tmp_path), Looks())}
    assert (found["database"].state, "move" in found["database"].mend) == ("problem", True)

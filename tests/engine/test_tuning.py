"""What follows from measured figures, how they are remembered, and the measuring itself on the tiny model."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import replace
from datetime import date
from pathlib import Path

import psutil
import pytest

from nexo_lsp.engines.llama import tuning_file
from nexo_lsp.engines.llama.messages import Load
from nexo_lsp.engines.llama.tuning import (
    BatchTime,
    Figures,
    Progress,
    PromptSpeed,
    StepTime,
    best_threads,
    drafting,
    measure,
    thread_counts,
    too_busy,
)
from nexo_lsp.engines.llama.tuning_file import Tuned, TuningFile, identity
from nexo_lsp.errors import EngineCrashed, EngineLoadFailed
from nexo_lsp.models.catalog import CATALOG
from nexo_lsp.runtime.providers.native import draft_for, tuning_of
from nexo_lsp.settings import EngineSettings

QUIET = Figures(
    processors=4,
    steps=(
        StepTime(1, None, 0.06),
        StepTime(2, False, 0.03),
        StepTime(2, True, 0.05),
        StepTime(4, False, 0.02),
    ),
    prompts=(PromptSpeed(1, 50), PromptSpeed(2, 100), PromptSpeed(4, 190)),
    batches=(BatchTime(1, 0.02), BatchTime(4, 0.05), BatchTime(8, 0.09), BatchTime(16, 0.17)),
    others=0.1,
)
DAY = date(2026, 11, 22)


def test_counts_that_are_worth_a_measurement() -> None:
    assert thread_counts(physical=2, logical=2) == (1, 2)
    assert thread_counts(physical=8, logical=16) == (1, 4, 8, 16)
    assert thread_counts(physical=1, logical=1) == (1,)
    assert thread_counts(physical=8, logical=2) == (1, 2)


def test_the_quickest_suggestion_decides() -> None:
    assert best_threads(QUIET) == 4
    slower = (*QUIET.steps[:3], StepTime(4, False, 0.2), StepTime(4, True, 0.3))
    assert best_threads(replace(QUIET, steps=slower)) == 2


def test_a_thread_that_brings_nearly_nothing_is_left_to_others() -> None:
    steps = (*QUIET.steps[:3], StepTime(4, False, 0.0299))
    prompts = (*QUIET.prompts[:2], PromptSpeed(4, 101))
    assert best_threads(replace(QUIET, steps=steps, prompts=prompts)) == 2


def test_a_machine_that_others_use_says_little() -> None:
    assert not too_busy(replace(QUIET, others=0.9))
    assert too_busy(replace(QUIET, others=1.1))


def test_times_between_the_measured_ones() -> None:
    assert QUIET.batch_s(1) == 0.02
    assert QUIET.batch_s(6) == pytest.approx(0.07)
    assert QUIET.batch_s(32) == pytest.approx(0.34)


def test_a_second_model_pays_only_where_verifying_and_guessing_are_cheap() -> None:
    assert drafting(QUIET) is None
    dear = drafting(replace(QUIET, draft_s=0.01))
    assert dear is not None
    assert not dear.pays
    cheap = replace(
        QUIET, batches=(BatchTime(1, 0.02), BatchTime(4, 0.021), BatchTime(16, 0.025)), draft_s=0.002
    )
    gain = drafting(cheap)
    assert gain is not None
    assert gain.pays
    assert gain.guesses > 1
    # Three guesses: 1 + 0.7 + 0.49 + 0.343 tokens for a step of four and three guesses.
    three = (1 + 0.7 + 0.49 + 0.343) * 0.02 / (0.021 + 3 * 0.002)
    assert gain.gain >= three
    rare = drafting(cheap, acceptance=0.05)
    assert rare is not None
    assert rare.gain < gain.gain


def test_figures_are_found_again_for_the_same_file_only(tmp_path: Path, tiny_model: Path) -> None:
    file = TuningFile(tmp_path / "state")
    assert file.find(tiny_model) is None
    file.remember(tiny_model, Tuned(DAY, QUIET, "d 1 2"))
    other = tmp_path / "other.gguf"
    other.write_bytes(b"GGUF")
    file.remember(other, Tuned(DAY, replace(QUIET, draft_s=0.5)))
    found = TuningFile(tmp_path / "state").find(tiny_model)
    assert found == Tuned(DAY, QUIET, "d 1 2")
    assert found.threads == 4
    other.write_bytes(b"GGUF, and more")
    assert file.find(other) is None
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["tuning.json"]


@pytest.mark.parametrize("what", ["build", "processors"])
def test_figures_of_another_build_or_machine_do_not_count(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    file = TuningFile(tmp_path)
    file.remember(tiny_model, Tuned(DAY, QUIET))
    if what == "build":
        monkeypatch.setattr("importlib.metadata.version", lambda _name: "9.9")
    else:
        monkeypatch.setattr(tuning_file, "processors", lambda: 77)
    assert file.find(tiny_model) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"version": 99, "models": {}}',
        '{"version": 1}',
        '{"version": 1, "models": {"x": {}}}',
        "\x00ÿ",
    ],
)
def test_a_file_that_is_none_of_ours_is_ignored_and_said(
    tmp_path: Path, tiny_model: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    file = TuningFile(tmp_path)
    file.path.write_text(text, encoding="latin-1")
    with caplog.at_level(logging.WARNING):
        assert file.find(tiny_model) is None
    assert "tuning.json" in caplog.text
    file.remember(tiny_model, Tuned(DAY, QUIET))
    assert file.find(tiny_model) is not None


def test_the_oldest_figures_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning_file, "_MOST", 2)
    file = TuningFile(tmp_path)
    models = [tmp_path / f"{name}.gguf" for name in "abc"]
    for model, day in zip(models, (3, 1, 2), strict=True):
        file.remember(model, Tuned(date(2026, 1, day), QUIET))
    assert [file.find(model) is not None for model in models] == [True, False, True]


def test_what_a_worker_is_started_with(tmp_path: Path, tiny_model: Path) -> None:
    before = tuning_of(EngineSettings(), tiny_model, tmp_path)
    assert (before.threads, before.threads_reason) == (0, "chosen from the machine")
    TuningFile(tmp_path).remember(tiny_model, Tuned(DAY, QUIET))
    after = tuning_of(EngineSettings(), tiny_model, tmp_path)
    assert (after.threads, after.threads_reason) == (4, "4, measured by doctor --tune on 2026-11-22")
    own = tuning_of(EngineSettings(threads=3), tiny_model, tmp_path)
    assert (own.threads, own.threads_reason) == (3, "3, set by nexo.engine.threads")
    assert after.draft is None
    assert "no smaller model" in after.draft_reason


def test_a_second_model_is_loaded_only_where_it_was_measured_to_pay(tmp_path: Path) -> None:
    small, large = (tmp_path / entry.file for entry in CATALOG[:2])
    large.write_bytes(b"large model")
    assert draft_for(large) is None
    small.write_bytes(b"small")
    assert draft_for(large) == small
    assert draft_for(small) is None
    unknown = next(tmp_path / entry.file for entry in CATALOG if not entry.size)
    unknown.write_bytes(b"of a size that nobody has told")
    assert draft_for(unknown) is None

    def chosen() -> tuple[Path | None, str]:
        tuning = tuning_of(EngineSettings(), large, tmp_path)
        return tuning.draft, tuning.draft_reason

    assert chosen()[0] is None
    assert "not measured" in chosen()[1]
    flat = replace(QUIET, batches=(BatchTime(1, 0.02), BatchTime(16, 0.025)), draft_s=0.002)
    for figures, used in ((flat, True), (replace(QUIET, draft_s=0.02), False)):
        TuningFile(tmp_path).remember(large, Tuned(DAY, figures, identity(small)))
        draft, reason = chosen()
        assert (draft == small) is used
        assert "2026-11-22" in reason
    TuningFile(tmp_path).remember(large, Tuned(DAY, flat, identity(small)))
    small.write_bytes(b"another one")
    assert chosen()[0] is None, "that file was not measured"


def test_the_tiny_model_is_measured_in_a_process_of_its_own(tiny_model: Path) -> None:
    seen: list[Progress] = []
    figures = measure(Load(str(tiny_model), 512, draft_path=str(tiny_model)), seen.append)
    counts = sorted({step.threads for step in figures.steps})
    assert counts[0] == 1
    assert [prompt.threads for prompt in figures.prompts] == counts
    assert [batch.tokens for batch in figures.batches] == [1, 4, 8, 16]
    times = [step.seconds for step in figures.steps] + [batch.seconds for batch in figures.batches]
    assert all(time > 0 for time in times)
    assert figures.draft_s is not None
    assert best_threads(figures) in counts
    assert [progress.done for progress in seen[1:]] == list(range(seen[-1].of + 1))


def test_why_there_are_no_figures(tmp_path: Path, half_a_model: Path, tiny_model: Path) -> None:
    with pytest.raises(EngineLoadFailed, match="cannot be read"):
        measure(Load(str(tmp_path / "none.gguf"), 512), lambda _progress: None)
    damaged = measure(Load(str(tiny_model), 512, draft_path=str(half_a_model)), lambda _progress: None)
    assert damaged.draft_s is None
    assert "damaged" in damaged.draft_note
    crash = [
        sys.executable,
        "-c",
        "import os, sys; sys.stderr.write('oh no'); sys.stderr.flush(); os._exit(3)",
    ]
    with pytest.raises(EngineCrashed, match="oh no"):
        measure(Load("x", 512), lambda _progress: None, command=crash)
    hang = [sys.executable, "-c", "input_ = __import__('threading').Event().wait()"]
    with pytest.raises(EngineCrashed):
        measure(Load("x", 512), lambda _progress: None, command=hang, timeout_s=0.5)


def test_an_interruption_ends_the_process_too() -> None:
    said = json.dumps({"done": 0, "of": 1, "doing": "%s"})
    code = f"import os, threading; print({said!r} % os.getpid(), flush=True); threading.Event().wait()"
    pids: list[int] = []

    def interrupt(progress: Progress) -> None:
        pids.append(int(progress.doing))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(Load("x", 512), interrupt, command=[sys.executable, "-c", code])
    assert not psutil.pid_exists(pids[0])

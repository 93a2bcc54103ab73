"""What `nexo-lsp doctor` says of memory and devices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nexo_lsp.cli.check import Check
from nexo_lsp.cli.diagnosis.bounds import ProbeFailed, bounds, probe
from nexo_lsp.engines.llama.messages import Load
from nexo_lsp.settings import EngineSettings
from tests.engine.tiny_gguf import write_tiny_model

OUTLOOK = {
    "device": "CPU, 2 threads",
    "plan": {"context_tokens": 8192, "kv_type": "f16", "total_bytes": 791 * 2**20},
    "why": "23,073 MB are free",
    "notes": [],
    "weights": "",
}


def said(**more: Any) -> dict[str, Any]:
    return {"devices": [], "offload": False, "outlook": OUTLOOK, "error": "", **more}


def checks(report: dict[str, Any], **settings: Any) -> list[Check]:
    return list(bounds(EngineSettings(**settings), Path("m.gguf"), lambda _wish: report))


def test_everything_fits() -> None:
    device, context = checks(said())
    assert device.value == "CPU, 2 threads"
    assert context.value == "8,192 tokens as f16, about 791 MB in all with the model; 23,073 MB are free"
    assert {check.state for check in (device, context)} == {"ok"}


def test_how_the_weights_are_kept_is_told() -> None:
    *_, weights = checks(said(outlook={**OUTLOOK, "weights": "kept in whole bytes"}))
    assert (weights.name, weights.state, weights.value) == ("weights", "ok", "kept in whole bytes")


def test_what_is_less_than_asked_for_is_seen() -> None:
    *_, less = checks(said(outlook={**OUTLOOK, "notes": ["the cache is kept as q8_0"]}))
    assert (less.state, less.value) == ("warning", "the cache is kept as q8_0")
    assert "nexo.engine.memoryLimitMb" in less.mend


def test_a_gpu_is_named_with_its_memory() -> None:
    device = {
        "name": "CUDA0", "description": "NVIDIA H200", "free_bytes": 100e9, "total_bytes": 150e9,
        "shares_memory": False,
    }  # fmt: skip
    assert checks(said(devices=[device], offload=True))[0].value == "NVIDIA H200, 100 GB of 150 GB free"
    assert checks(said(offload=True))[0].value == "none found, though this build could use one"


def test_a_model_that_does_not_fit_is_a_problem() -> None:
    *_, context = checks(said(outlook=None, error="m.gguf needs more."))
    assert (context.state, context.value) == ("problem", "m.gguf needs more.")


def test_a_library_that_crashes_is_survived() -> None:
    def ask(_wish: Load) -> dict[str, Any]:
        raise ProbeFailed("exit code -11")

    (check,) = bounds(EngineSettings(), None, ask)
    assert (check.state, "exit code -11" in check.value) == ("warning", True)


def test_the_settings_reach_the_library() -> None:
    asked: list[Load] = []

    def ask(wish: Load) -> dict[str, Any]:
        asked.append(wish)
        return said(outlook=None)

    settings = EngineSettings(gpu_layers="all", memory_limit_mb=900, context_tokens=2048, threads=3)
    assert list(bounds(settings, None, ask, unpack_folder=Path("copies"))) == []
    assert asked == [Load("", 2048, 3, gpu_layers=-1, memory_limit_mb=900, unpack_folder="copies")]


def test_the_library_can_be_asked(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    model = write_tiny_model(tmp_path / "tiny.gguf")
    report = probe(Load(str(model), 1024, threads=1, gpu_layers=0))
    assert report["error"] == ""
    assert report["outlook"]["device"] == "CPU, 1 thread"
    assert report["outlook"]["plan"]["context_tokens"] == 1024
    assert probe(Load("", 1024))["outlook"] is None
    small = probe(Load(str(model), 1024, memory_limit_mb=10))
    assert small["outlook"] is None
    assert "nexo.engine.memoryLimitMb is 10" in small["error"]

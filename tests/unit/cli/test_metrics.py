"""The engine's metrics in words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from nexo_lsp.app import Status, create_app
from nexo_lsp.cli.metrics import after_an_answer, metrics_rows, metrics_table
from nexo_lsp.engines.llama.messages import Metrics
from nexo_lsp.generation import EngineState
from nexo_lsp.offload import inline
from tests.unit.pipeline.conftest import QuietHost

STATUS = Status(True, "native", EngineState.READY, "m", "CPU", 2, 1, None, None, None, "")


def test_what_was_never_measured_is_left_out() -> None:
    assert metrics_rows(STATUS) == [("queue", "1 at work, 2 waiting")]
    assert [name for name, _ in metrics_rows(replace(STATUS, metrics=Metrics()))] == ["queue", "cells"]


def test_everything_in_words() -> None:
    metrics = Metrics(
        waiting=1, batch_fill=2.5, prompt_tokens=2000, cached_tokens=1500, drafted_tokens=40, accepted_tokens=30,
        overtaken=3, cancel_ms=12.4, cells=4096, swapped_bytes=5_000_000, threads=2,
    )  # fmt: skip
    status = replace(
        STATUS,
        prompt_tokens_per_s=123.4,
        decode_tokens_per_s=20.25,
        memory_bytes=700_000_000,
        metrics=metrics,
    )
    assert dict(metrics_rows(status)) == {
        "queue": "1 at work, 2 waiting",
        "reading": "123 tokens/s",
        "writing": "20.2 tokens/s for one answer",
        "memory": "700 MB",
        "batch": "2.5 answers written together",
        "cache": "1,500 of 2,000 (75 %) of all prompts' tokens",
        "cells": "4,096 tokens kept",
        "swapped out": "5.0 MB",
        "guesses": "30 of 40 (75 %) were right",
        "cancel": "12 ms to the next step",
        "overtaken": "3 steps given up for something more urgent",
        "threads": "2 for single tokens",
    }
    assert metrics_table(status).row_count == 12


async def test_an_answer_is_made_so_that_there_is_something_to_show(tmp_path: Path) -> None:
    app = create_app({"NEXO_HOME": str(tmp_path), "NEXO_ENGINE": "mock"}, QuietHost(), inline)
    status = await after_an_answer(app)
    assert status.state is EngineState.READY
    await app.close()

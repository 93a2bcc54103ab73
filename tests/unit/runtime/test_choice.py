"""Which model answers: named, here, better; what a form of machine allows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from nexo_lsp.generation import Operation
from nexo_lsp.models.catalog import CATALOG, DEFAULT_MODEL, CatalogEntry, find
from nexo_lsp.runtime.choice import ModelChoice, host_of, kind_of, memory_budget, model_for, reference_of
from nexo_lsp.runtime.environment import Environment, Gpu, GpuBackend, Platform
from nexo_lsp.settings import Settings
from tests.unit.runtime.machines import ENVIRONMENTS, GPUS

LAPTOP = ENVIRONMENTS["linux laptop on battery"]
GPU_DESKTOP = replace(ENVIRONMENTS["linux desktop"], gpus=GPUS["linux desktop"])
SMALL, MIDDLE, LARGE = (f"qwen2.5-coder-{size}-instruct-q4_k_m" for size in ("0.5b", "1.5b", "14b"))
ACTION, COMPLETION, REVIEW = Operation.ACTION, Operation.COMPLETION, Operation.REVIEW


def chosen(
    *here: str,
    machine: Environment = LAPTOP,
    operation: Operation = ACTION,
    measured: Callable[[CatalogEntry], float | None] = lambda _entry: None,
    **settings: Any,
) -> ModelChoice:
    wanted = Settings.model_validate(settings)
    return model_for(wanted, operation, machine, CATALOG, lambda entry: entry.name in here, measured)


def names(choice: ModelChoice) -> tuple[str, str | None]:
    return choice.reference, choice.better.name if choice.better is not None else None


def test_it_begins_with_what_is_small_and_names_the_better_one() -> None:
    found = chosen()
    assert names(found) == (DEFAULT_MODEL, MIDDLE)
    assert found.reasons[0] == f"model {SMALL}: quickly here"
    assert found.reasons[1].startswith(f"better would be {MIDDLE}: the best for desktop, balanced")
    assert f"not {LARGE}: takes" in found.reasons[2]
    assert found.entry == find(SMALL)
    assert 0 < found.least_bytes < 800_000_000


def test_it_takes_the_best_of_what_is_here() -> None:
    assert names(chosen(SMALL)) == (SMALL, MIDDLE)
    assert names(chosen(SMALL, MIDDLE)) == (MIDDLE, None)
    assert names(chosen(MIDDLE, LARGE)) == (MIDDLE, None)
    # A model that is not in the form's table is here for who names it.
    assert names(chosen("starcoder2-3b-q4_k_m")) == (SMALL, MIDDLE)


def test_what_is_hardly_larger_is_waited_for() -> None:
    browser = ENVIRONMENTS["browser"]
    assert names(chosen(machine=browser, models={"prefer": "quality"}))[0].endswith("q8_0")


def test_what_is_here_and_does_not_suit_is_used_only_where_nothing_may_be_fetched() -> None:
    assert names(chosen(LARGE)) == (MIDDLE, None), "what suits is fetched, and waited for"
    assert names(chosen(LARGE, offline=True)) == (LARGE, MIDDLE)
    assert names(chosen(LARGE, models={"autoDownload": "never"})) == (LARGE, MIDDLE)


def test_names_in_the_settings_count_for_their_operation() -> None:
    both: dict[str, Any] = {"model": "m", "review": {"model": "r"}}
    wanted = Settings.model_validate(both)
    assert [reference_of(wanted, one) for one in (ACTION, COMPLETION, REVIEW)] == ["m", "m", "r"]
    found = chosen(operation=REVIEW, **both)
    assert (found.reference, found.entry, found.least_bytes) == ("r", None, 0)
    assert found.reasons == ("model r: named by the settings",)
    known = chosen(model=f"{LARGE}.gguf")
    assert known.entry == find(LARGE)
    assert known.least_bytes > 9_000_000_000
    # Naming `auto` for one operation is no other choice than that of all.
    assert names(chosen(operation=REVIEW, review={"model": "auto"})) == (SMALL, MIDDLE)


def test_an_engine_named_for_one_operation_counts_for_it() -> None:
    wanted = Settings.model_validate({"engine": "native", "completion": {"engine": "mobile"}})
    assert [kind_of(wanted, one) for one in (COMPLETION, ACTION, REVIEW)] == ["mobile", "native", "native"]


def test_what_is_not_made_for_completion_leaves_it_to_another_where_both_fit() -> None:
    here = (SMALL, MIDDLE, LARGE)
    assert names(chosen(*here, machine=GPU_DESKTOP)) == (LARGE, None)
    assert names(chosen(*here, machine=GPU_DESKTOP, operation=COMPLETION)) == (MIDDLE, None)
    full = replace(GPU_DESKTOP, gpus=(Gpu(GpuBackend.CUDA, "x", 12_500_000_000, 13_000_000_000),))
    for operation in Operation:
        assert names(chosen(*here, machine=full, operation=operation)) == (LARGE, None)


@pytest.mark.parametrize(
    ("platform", "context"),
    [
        (Platform.LINUX, 0),
        (Platform.WEB, 4096),
        (Platform.CONSOLE, 4096),
        (Platform.ANDROID, 4096),
    ],
)
def test_the_form_bounds_the_context_whoever_chose_the_model(platform: Platform, context: int) -> None:
    machine = Environment(platform, "arm64")
    assert chosen(machine=machine).context_tokens == context
    assert chosen(machine=machine, model="/a/file.gguf").context_tokens == context


def test_memory_is_what_the_user_says_else_a_share_of_the_machine_up_to_the_forms_budget() -> None:
    def budget(machine: Environment, **settings: Any) -> int:
        wanted = Settings.model_validate(settings)
        host = host_of(machine, wanted)
        return memory_budget(machine, wanted, host.form)

    assert budget(LAPTOP) == 2_000_000_000
    assert budget(LAPTOP, models={"prefer": "quality"}) == LAPTOP.total_bytes // 4
    assert budget(replace(LAPTOP, total_bytes=10**9)) == 400_000_000
    assert budget(replace(LAPTOP, total_bytes=0)) == 2_000_000_000
    assert budget(LAPTOP, engine={"memoryLimitMb": 100}) == 100 * 2**20
    assert budget(ENVIRONMENTS["android, termux"], models={"prefer": "quality"}) == 1_000_000_000


def test_what_of_a_machine_counts() -> None:
    def host(name: str, **settings: Any) -> Any:
        machine = replace(ENVIRONMENTS[name], gpus=GPUS.get(name, ()))
        return host_of(machine, Settings.model_validate(settings))

    assert host("gpu server").gpu_bytes == 2 * 79 * 2**30
    assert host("gpu server", engine={"gpuLayers": "none"}).gpu_bytes == 0
    assert host("mac, apple silicon").shared_gpu
    assert host("mac, apple silicon").gpu_bytes == 0
    assert host("linux hybrid laptop").cores == 6
    narrow = [name for name in ENVIRONMENTS if host(name).narrow]
    assert narrow == [
        "linux old laptop",
        "raspberry pi",
        "docker on a mac, emulated by Rosetta",
        "mac, universal Python as Intel under Rosetta",
        "mac, Intel Python under Rosetta",
        "windows 8",
        "windows on arm, Intel Python",
    ]

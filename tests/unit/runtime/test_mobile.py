"""The native engine under a phone's rules."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nexo_lsp.engines.llama.engine import LlamaEngine
from nexo_lsp.engines.llama.messages import Load
from nexo_lsp.engines.llama.process import Hosted
from nexo_lsp.errors import EngineUnavailable
from nexo_lsp.folders import folders
from nexo_lsp.models.catalog import CATALOG
from nexo_lsp.runtime.environment import Environment, Gpu, GpuBackend
from nexo_lsp.runtime.providers.mobile import MobileProvider, PhoneRules
from nexo_lsp.runtime.providers.native import NativeProvider
from nexo_lsp.settings import EngineSettings
from tests.unit.runtime.machines import ENVIRONMENTS, GPUS

PHONE, IPHONE, DESKTOP = (
    ENVIRONMENTS[name] for name in ("android, termux", "iphone", "linux desktop")
)  # fmt: skip


async def no_model() -> Path:
    raise AssertionError("no model is needed here")


async def in_this_process(_wish: Load) -> Hosted:
    raise AssertionError("nothing is started here")


def mobile(environment: Environment = PHONE, *, installed: bool = True, **settings: Any) -> MobileProvider:
    native = NativeProvider(
        EngineSettings(**settings), no_model, installed=lambda: installed, home=lambda: folders({"NEXO_HOME": "/n"})
    )  # fmt: skip
    return MobileProvider(native, environment)


def options_of(provider: MobileProvider) -> Any:
    engine = provider.create_engine(lambda _status: None)
    assert isinstance(engine, LlamaEngine)
    return engine.options


def test_a_phone_gets_a_small_engine() -> None:
    options = options_of(mobile())
    assert options.context_tokens == 4096
    assert options.threads == PHONE.performance_cores == 5
    assert options.sequences == 2
    assert options.unpack_folder is None
    assert options.idle_unload_s == 120
    # With the server's share it stays below a gigabyte.
    assert options.memory_limit_mb * 2**20 + 150_000_000 <= 1_000_000_000
    assert mobile().capabilities().context_tokens == 4096


def test_what_is_set_to_less_stays_less_and_to_more_does_not() -> None:
    less = options_of(mobile(context_tokens=1024, threads=1, memory_limit_mb=500, idle_unload_minutes=1))
    assert (less.context_tokens, less.threads, less.memory_limit_mb, less.idle_unload_s) == (1024, 1, 500, 60)
    more = options_of(mobile(context_tokens=32768, memory_limit_mb=8000, idle_unload_minutes=0))
    assert (more.context_tokens, more.idle_unload_s) == (4096, 120)
    assert more.memory_limit_mb == options_of(mobile()).memory_limit_mb


def test_in_a_thread_the_limit_is_the_whole() -> None:
    options = options_of(replace(mobile(IPHONE), spawn=in_this_process))
    assert options.memory_limit_mb == 1_000_000_000 // 2**20
    assert options.threads == 2


def test_it_is_for_phones_or_by_name() -> None:
    assert mobile().probe().usable
    nowhere = mobile(DESKTOP).probe()
    assert not nowhere.usable
    assert "no phone" in nowhere.reason
    assert mobile(DESKTOP, kind="mobile").probe().usable
    assert replace(mobile(DESKTOP), named=True).probe().usable


def test_without_processes_a_thread_is_needed() -> None:
    without = mobile(IPHONE)
    assert not without.probe().usable
    assert "thread" in without.probe().reason
    assert without.traits().processes
    handed = replace(without, spawn=in_this_process)
    assert handed.probe().usable
    assert not handed.traits().processes


def test_without_the_library_it_says_how_to_get_it() -> None:
    found = mobile(installed=False).probe()
    assert not found.usable
    assert "nexo-lsp[native]" in found.reason


def test_delegates_are_reported_with_reasons() -> None:
    delegates = {item.name: item for item in mobile(replace(IPHONE, gpus=GPUS["iphone"])).delegates()}
    assert [name for name, item in delegates.items() if item.present] == ["Metal"]
    assert delegates["Metal"].reason == "Apple A16"
    assert all(item.reason for item in delegates.values())
    assert not delegates["Core ML"].present
    assert not delegates["NNAPI"].present

    qualcomm = (
        Gpu(GpuBackend.OTHER, "QUALCOMM Adreno(TM) 750", 1, 2, True, "GPUOpenCL"),
        Gpu(GpuBackend.OTHER, "Hexagon", 1, 2, True, "HTP0"),
    )
    phone = mobile(replace(PHONE, gpus=qualcomm))
    assert [item.name for item in phone.delegates() if item.present] == ["OpenCL", "Hexagon"]
    assert "OpenCL, Hexagon" in phone.probe().reason
    assert "the processor computes" in mobile().probe().reason
    # A backend of no phone's is none of the delegates.
    assert not any(
        item.present
        for item in mobile(replace(PHONE, gpus=(Gpu(GpuBackend.OTHER, "Arc", 1, 2),))).delegates()
    )


@pytest.mark.parametrize(("setting", "bound"), [(0, 0), (10, 40), (30, 40), (60, 60)])
def test_the_bound_of_the_battery(setting: int, bound: int) -> None:
    assert PhoneRules().pause_below(setting) == bound


def test_the_catalogue_has_a_model_for_phones() -> None:
    assert any(entry.size <= PhoneRules().model_bytes for entry in CATALOG)


async def test_too_large_a_model_is_refused_by_name(tmp_path: Path) -> None:
    large = tmp_path / "large.gguf"
    with large.open("wb") as file:
        file.truncate(500_000_001)

    async def model() -> Path:
        return large

    provider = mobile()
    engine = replace(provider, native=replace(provider.native, model=model)).create_engine(
        lambda _status: None
    )
    with pytest.raises(EngineUnavailable, match=r"large\.gguf has 500 MB.*at most 500 MB"):
        await engine.count_tokens("x")
    await engine.close()

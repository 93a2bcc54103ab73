"""Loading within bounds: the tiny model, on machines that are made up."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nexo_lsp.engines.llama.budget import MIB, VOCABULARY_BYTES, ModelFacts
from nexo_lsp.engines.llama.devices import RESERVE_BYTES, Device
from nexo_lsp.engines.llama.free_memory import Free
from nexo_lsp.engines.llama.loading import (
    LoadedModel,
    LoadError,
    Machine,
    default_threads,
    load,
    outlook,
)
from nexo_lsp.engines.llama.messages import Load, LoadFailure
from nexo_lsp.engines.llama.model_facts import facts_of, look_into
from nexo_lsp.engines.llama.native import Library

RESIDENT = 50 * MIB


def machine(free_mib: float = 10_000, *found: Device, resident: int = RESIDENT) -> Machine:
    free = Free(round(free_mib * MIB), f"{free_mib:,.0f} MB are free")
    return Machine(lambda: free, lambda: resident, lambda: found)


def attempt(library: Library, wish: Load, on: Machine) -> LoadedModel:
    return load(library, wish, lambda _progress: True, on)


def loaded_as(library: Library, wish: Load, on: Machine) -> LoadedModel:
    made = attempt(library, wish, on)
    made.close()
    return made


def test_the_facts_of_a_file(library: Library, tiny_model: Path) -> None:
    size = tiny_model.stat().st_size
    facts = look_into(library, tiny_model, size)
    # 2 layers, 4 heads of 16 values, K and V, 2 bytes each.
    expected = ModelFacts(
        size, 0, 2 * 2 * 2 * 4 * 16, trained_tokens=8192, head_size=16, layers=2, step_bytes=256 * 6 * 4
    )
    assert facts == expected
    model = attempt(library, Load(str(tiny_model), 512), machine())
    assert facts_of(library.c, model.model.handle, size) == expected
    model.close()


def test_a_damaged_file_has_no_facts(library: Library, half_a_model: Path) -> None:
    assert look_into(library, half_a_model, 1) is None


def test_with_room_everything_is_as_wished(library: Library, tiny_model: Path) -> None:
    made = loaded_as(library, Load(str(tiny_model), 4096, threads=1), machine())
    info = made.info
    assert (info.context_tokens, info.sequences, info.kv_type, info.notes) == (4096, 8, "f16", ())
    assert (info.gpu_layers, info.device) == (0, "CPU, 1 thread")


@pytest.mark.parametrize(
    ("limit", "free", "why"),
    [
        (366, 10_000, "nexo.engine.memoryLimitMb is 366"),
        (0, 266, "266 MB are free"),
        (400, 266, "266 MB are free"),
    ],
)
def test_little_memory_makes_the_context_smaller(
    library: Library, tiny_model: Path, capfd: pytest.CaptureFixture[str], limit: int, free: int, why: str
) -> None:
    # 100 MiB before the weights, 300 with them, some 65 to compute with: a few are left for the cache.
    sizes = iter([100 * MIB, 300 * MIB])
    on = Machine(lambda: Free(free * MIB, f"{free} MB are free"), lambda: next(sizes), lambda: ())
    made = loaded_as(library, Load(str(tiny_model), 8192, threads=1, memory_limit_mb=limit), on)
    (note,) = made.info.notes
    assert note == f"{made.info.context_tokens:,} tokens instead of 8,192: {why}"
    assert 1024 <= made.info.context_tokens < 8192
    assert made.plan.total_bytes <= 366 * MIB
    assert note in capfd.readouterr().err


def test_the_watch_knows_the_limit(library: Library, tiny_model: Path) -> None:
    sizes = iter([200 * MIB, 200 * MIB])
    on = Machine(lambda: Free(10**10, ""), lambda: next(sizes, 430 * MIB), lambda: ())
    made = loaded_as(library, Load(str(tiny_model), 1024, memory_limit_mb=400), on)
    assert made.memory.over() == 30 * MIB
    unlimited = loaded_as(library, Load(str(tiny_model), 1024), machine(resident=10**12))
    assert unlimited.memory.over() == 0


@pytest.mark.parametrize(
    ("limit", "free", "mend"),
    [
        (0, 10, "close something, or choose a smaller model"),
        (100, 10_000, "nexo.engine.memoryLimitMb is 100; raise it to "),
        (100, 10, "10 MB are free; close something"),
    ],
)
def test_too_little_memory_is_seen_before_it_is_used(
    library: Library, tiny_model: Path, limit: int, free: float, mend: str
) -> None:
    wish = Load(str(tiny_model), 2048, threads=1, memory_limit_mb=limit)
    with pytest.raises(LoadError, match="needs about") as caught:
        attempt(library, wish, machine(free))
    assert caught.value.failure is LoadFailure.MEMORY
    assert mend in str(caught.value)
    assert "1,024 tokens" in str(caught.value)


def test_weights_that_take_more_than_their_file_are_noticed(library: Library, tiny_model: Path) -> None:
    calls = iter([RESIDENT, 900 * MIB])
    on = Machine(lambda: Free(500 * MIB, "500 MB are free"), lambda: next(calls), lambda: ())
    with pytest.raises(LoadError, match="500 MB are free") as caught:
        attempt(library, Load(str(tiny_model), 2048), on)
    assert caught.value.failure is LoadFailure.MEMORY


@pytest.fixture
def with_gpu(library: Library, monkeypatch: pytest.MonkeyPatch) -> Library:
    """A build that says that it can use a GPU; the layers stay where they are all the same."""
    monkeypatch.setattr(Library, "uses_gpu", property(lambda _library: True))
    return library


def h200(free: int, *, shared: bool = False) -> Device:
    return Device("CUDA0", "NVIDIA H200", free, 10**11, shares_memory=shared)


def test_layers_go_to_a_gpu_with_room(with_gpu: Library, tiny_model: Path) -> None:
    wish = Load(str(tiny_model), 1024, threads=1)
    made = loaded_as(with_gpu, wish, machine(10_000, h200(10**10)))
    assert (made.info.gpu_layers, made.info.device) == (3, "GPU (NVIDIA H200), 3 of 3 layers")
    assert made.info.notes == ()
    assert made.plan.cache_bytes == 0, "the cache is in the GPU's memory"


def test_a_gpu_that_shares_the_memory_takes_it(with_gpu: Library, tiny_model: Path) -> None:
    wish = Load(str(tiny_model), 1024, threads=1)
    made = loaded_as(with_gpu, wish, machine(10_000, h200(10**10, shared=True)))
    assert made.plan.cache_bytes == 1024 * 512


def test_what_does_not_fit_stays_and_is_said(with_gpu: Library, tiny_model: Path) -> None:
    wish = Load(str(tiny_model), 1024, threads=1)
    a_layer = (tiny_model.stat().st_size + 512 * 1024) // 3
    made = loaded_as(with_gpu, wish, machine(10_000, h200(RESERVE_BYTES + a_layer + 10)))
    assert made.info.gpu_layers == 1
    assert made.info.device == "GPU (NVIDIA H200), 1 of 3 layers; CPU, 1 thread"
    assert made.info.notes[0].startswith("1 of 3 layers are on the GPU: 512 MB are free there")


def test_layers_that_no_gpu_takes_are_said(library: Library, tiny_model: Path) -> None:
    if library.uses_gpu:
        pytest.skip("this build has a GPU")
    made = loaded_as(library, Load(str(tiny_model), 1024, gpu_layers=-1), machine())
    assert made.info.gpu_layers == 0
    assert "no layer is on a GPU" in made.info.notes[0]
    assert loaded_as(library, Load(str(tiny_model), 1024, gpu_layers=0), machine()).info.notes == ()


def test_the_outlook_is_what_loading_does(library: Library, tiny_model: Path, half_a_model: Path) -> None:
    wish = Load(str(tiny_model), 1024, threads=1)
    # A process of no size, whose vocabulary is as large as is assumed.
    ahead = outlook(library, wish, machine(10_000, resident=0))
    made = loaded_as(library, wish, machine(10_000, resident=0))
    assert (ahead.device, ahead.notes) == (made.info.device, made.info.notes)
    assert ahead.plan.total_bytes == made.plan.total_bytes + VOCABULARY_BYTES
    assert ahead.why == "10,000 MB are free"
    with pytest.raises(LoadError, match="smaller model"):
        outlook(library, wish, machine(10))
    with pytest.raises(LoadError, match="damaged"):
        outlook(library, Load(str(half_a_model), 1024), machine())


def test_threads_are_chosen_within_what_the_machine_has() -> None:
    assert 1 <= default_threads() <= (os.cpu_count() or 1)

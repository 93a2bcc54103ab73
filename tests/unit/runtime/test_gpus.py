"""What GPUs the installed llama.cpp can use, and that it is asked once."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from nexo_lsp.engines.llama.asking import ProbeFailed, probe
from nexo_lsp.engines.llama.messages import Cancel, Load
from nexo_lsp.runtime.environment import Gpu, GpuBackend
from nexo_lsp.runtime.gpus import FILE_NAME, Found, backend_of, find_gpus, known_gpus, library_key

H100 = {
    "name": "CUDA0", "description": "NVIDIA H100", "free_bytes": 70, "total_bytes": 80, "shares_memory": False,
}  # fmt: skip
APPLE = {"name": "MTL0", "description": "Apple M2", "free_bytes": 7, "total_bytes": 8, "shares_memory": True}


def says(*devices: Mapping[str, Any], **more: Any) -> Callable[[Load], Mapping[str, Any]]:
    return lambda _wish: {"devices": list(devices), "offload": bool(devices), **more}


def key() -> str:
    return "one"


def test_what_was_found_is_known_from_then_on(tmp_path: Path) -> None:
    state = tmp_path / "state"
    assert known_gpus(state, key) is None
    found = find_gpus(state, says(H100, APPLE), key)
    assert found.gpus == (
        Gpu(GpuBackend.CUDA, "NVIDIA H100", 70, 80, device="CUDA0"),
        Gpu(GpuBackend.METAL, "Apple M2", 7, 8, shares_memory=True, device="MTL0"),
    )
    assert found.reason == "NVIDIA H100 (cuda), Apple M2 (metal)"
    assert known_gpus(state, key) == found.gpus
    assert [path.name for path in state.iterdir()] == [FILE_NAME]


def test_another_library_or_driver_is_asked_again(tmp_path: Path) -> None:
    find_gpus(tmp_path, says(H100), key)
    assert known_gpus(tmp_path, lambda: "two") is None
    find_gpus(tmp_path, says(), lambda: "two")
    assert known_gpus(tmp_path, lambda: "two") == ()
    assert known_gpus(tmp_path, key) is None


def test_none_has_a_reason(tmp_path: Path) -> None:
    assert find_gpus(tmp_path, says(), key) == Found((), "none that this build can use")
    assert "though this build could" in find_gpus(tmp_path, says(offload=True), key).reason


def broken(_wish: Load) -> Mapping[str, Any]:
    raise ProbeFailed("Segmentation fault")


@pytest.mark.parametrize(
    "ask", [broken, lambda _wish: {}, says({"name": "CUDA0"}), lambda _wish: {"devices": None}]
)
def test_a_library_that_cannot_be_asked_has_none_and_is_asked_again(
    tmp_path: Path, ask: Callable[[Load], Mapping[str, Any]]
) -> None:
    found = find_gpus(tmp_path, ask, key)
    assert found.gpus == ()
    assert "could not be" in found.reason
    assert known_gpus(tmp_path, key) is None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"version": 0}', '{"version": 1, "key": "one", "gpus": [{}]}', "[" * 100_000]
)  # fmt: skip
def test_a_damaged_file_is_as_good_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE_NAME).write_text(text, encoding="utf-8")
    assert known_gpus(tmp_path, key) is None
    find_gpus(tmp_path, says(H100), key)
    assert known_gpus(tmp_path, key)


def test_a_folder_that_cannot_be_written_costs_nothing(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.write_text("a file", encoding="utf-8")
    assert len(find_gpus(state, says(H100), key).gpus) == 1
    assert known_gpus(state, key) is None


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        ("CUDA0", "cuda"), ("Metal", "metal"), ("MTL0", "metal"), ("Vulkan1", "vulkan"), ("ROCm0", "rocm"),
        ("HIP0", "rocm"), ("SYCL0", "other"), ("GPUOpenCL", "other"), ("CANN0", "other"), ("", "other"),
    ],
)  # fmt: skip
def test_devices_are_told_apart_by_their_names(name: str, backend: str) -> None:
    assert backend_of(name) == backend


def test_the_key_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    before = library_key()
    monkeypatch.setenv("EDITOR", "ed")
    assert library_key() == before
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert library_key() != before


def test_the_installed_library_answers(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    found = find_gpus(tmp_path)
    assert "could not be" not in found.reason
    assert known_gpus(tmp_path) == found.gpus
    if not Path("/dev/dri").exists() and not Path("/dev/nvidia0").exists() and os.name == "posix":
        assert json.loads((tmp_path / FILE_NAME).read_text(encoding="utf-8"))["gpus"] == []


def test_a_probe_that_dies_is_a_reason() -> None:
    with pytest.raises(ProbeFailed, match="load"):
        probe(Cancel(1))  # type: ignore[arg-type]

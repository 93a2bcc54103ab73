"""How many layers go where; the GPUs are injected, down to ggml's own functions."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import pytest

from nexo_lsp.engines.llama.devices import RESERVE_BYTES, Device, devices, gpu_layers
from nexo_lsp.engines.llama.native import Library

GIB = 2**30


def layers(setting: int | None, *, offload: bool = True, free: int | None = 24 * GIB) -> int:
    return gpu_layers(setting, offload=offload, free_bytes=free, layers=28, weights=4 * GIB, cache=GIB // 2)


@pytest.mark.parametrize(
    ("setting", "expected"), [(None, 29), (-1, 29), (0, 0), (12, 12), (29, 29), (99, 29)]
)
def test_a_gpu_with_room(setting: int | None, expected: int) -> None:
    assert layers(setting) == expected


@pytest.mark.parametrize("setting", [None, -1, 0, 12])
def test_a_build_without_gpu(setting: int | None) -> None:
    assert layers(setting, offload=False) == 0


def test_as_many_as_fit() -> None:
    a_layer = (4 * GIB + GIB // 2) // 29
    assert layers(None, free=RESERVE_BYTES + 10 * a_layer) == 10
    assert layers(None, free=RESERVE_BYTES + a_layer - 1) == 0
    assert layers(None, free=RESERVE_BYTES // 2) == 0
    assert layers(None, free=0) == 0
    assert layers(12, free=0) == 12, "who names a number gets it"


def test_an_unknown_device_gets_all() -> None:
    assert layers(None, free=None) == 29


class Ggml:
    """ggml's functions over made-up devices: (type, name, description, free, total)."""

    def __init__(self, *found: tuple[int, bytes, bytes, int, int]) -> None:
        self.found = found
        size = ctypes.POINTER(ctypes.c_size_t)
        pointer = ctypes.c_void_p
        self.functions: dict[str, Any] = {
            "count": ctypes.CFUNCTYPE(ctypes.c_size_t)(lambda: len(found)),
            # A handle is the index and one, since 0 is no handle.
            "get": ctypes.CFUNCTYPE(pointer, ctypes.c_size_t)(lambda index: index + 1),
            "type": ctypes.CFUNCTYPE(ctypes.c_int, pointer)(lambda handle: found[handle - 1][0]),
            "name": ctypes.CFUNCTYPE(pointer, pointer)(self._text(1)),
            "description": ctypes.CFUNCTYPE(pointer, pointer)(self._text(2)),
            "memory": ctypes.CFUNCTYPE(None, pointer, size, size)(self._memory),
        }
        self._kept: list[Any] = []

    def _text(self, part: int) -> Callable[[int], int]:
        def text(handle: int) -> int:
            value = self.found[handle - 1][part]
            assert isinstance(value, bytes)
            buffer = ctypes.create_string_buffer(value)
            self._kept.append(buffer)
            return ctypes.addressof(buffer)

        return text

    def _memory(self, handle: int, free: Any, total: Any) -> None:
        free[0], total[0] = self.found[handle - 1][3:]

    def find(self, name: str) -> Any:
        return self.functions.get(name.removeprefix("ggml_backend_dev_"))


def test_gpus_are_found_among_all_devices() -> None:
    ggml = Ggml(
        (0, b"CPU", b"a processor", 8 * GIB, 16 * GIB),
        (1, b"CUDA0", b"NVIDIA H200", 100 * GIB, 139 * GIB),
        (2, b"Vulkan0", b"Intel Iris", 4 * GIB, 8 * GIB),
        (3, b"BLAS", b"accelerator", 0, 0),
        (1, b"Metal", b"Apple M2", 10 * GIB, 12 * GIB),
    )
    assert devices(ggml.find) == (
        Device("CUDA0", "NVIDIA H200", 100 * GIB, 139 * GIB),
        Device("Vulkan0", "Intel Iris", 4 * GIB, 8 * GIB, shares_memory=True),
        Device("Metal", "Apple M2", 10 * GIB, 12 * GIB, shares_memory=True),
    )


def test_a_build_that_lacks_a_function_has_no_devices() -> None:
    ggml = Ggml((1, b"CUDA0", b"NVIDIA H200", GIB, GIB))
    del ggml.functions["memory"]
    assert devices(ggml.find) == ()


def test_this_build_can_be_asked(library: Library) -> None:
    assert bool(devices()) == library.uses_gpu

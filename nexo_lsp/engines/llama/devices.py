"""What this build of llama.cpp can put layers on, and how many layers fit there.

llama-cpp-python binds llama.cpp and not ggml, which knows the devices; its functions are looked up in the
libraries that are loaded anyway. Where they are missing (another build) nothing is known, and nothing breaks.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# `enum ggml_backend_dev_type` in ggml-backend.h (llama-cpp-python 0.3.36).
_GPU, _INTEGRATED_GPU = 1, 2

RESERVE_BYTES = 512 * 2**20
"""What is left free on a device: compute buffers, and what shows the desktop. Not measured."""

ALL_LAYERS = -1


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU, as ggml sees it."""

    name: str
    description: str
    free_bytes: int
    total_bytes: int
    shares_memory: bool = False
    """Whether its memory is the machine's own."""


def devices(find: Callable[[str], Any] | None = None) -> tuple[Device, ...]:
    """The GPUs that this build knows. `find` gives a C function by its name, or None."""
    find = find or _finder()
    names = ("count", "get", "type", "name", "description", "memory")
    functions = {name: find(f"ggml_backend_dev_{name}") for name in names}
    if any(function is None for function in functions.values()):
        return ()
    count, get, kind = functions["count"], functions["get"], functions["type"]
    count.restype, get.restype, kind.restype = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_int
    get.argtypes, kind.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
    functions["name"].restype = functions["description"].restype = ctypes.c_char_p
    functions["name"].argtypes = functions["description"].argtypes = [ctypes.c_void_p]
    functions["memory"].restype = None
    size = ctypes.POINTER(ctypes.c_size_t)
    functions["memory"].argtypes = [ctypes.c_void_p, size, size]
    handles = [get(index) for index in range(count())]
    return tuple(_device(functions, handle) for handle in handles if kind(handle) in {_GPU, _INTEGRATED_GPU})


def _device(functions: dict[str, Any], handle: Any) -> Device:
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    functions["memory"](handle, ctypes.byref(free), ctypes.byref(total))
    name, description = functions["name"](handle) or b"", functions["description"](handle) or b""
    return Device(
        name=name.decode("utf-8", "replace"),
        description=description.decode("utf-8", "replace"),
        free_bytes=free.value,
        total_bytes=total.value,
        # Metal calls the GPU of an Apple chip a plain GPU; its memory is the machine's all the same.
        shares_memory=functions["type"](handle) == _INTEGRATED_GPU or name.startswith((b"Metal", b"MTL")),
    )


def _finder() -> Callable[[str], Any]:
    """Looks in both of ggml's libraries: Windows finds a function only in the one that has it."""
    libraries: list[Any] = []
    try:
        libraries.append(importlib.import_module("llama_cpp._ggml").libggml)
        loader: Any = importlib.import_module("llama_cpp._ctypes_extensions")
        package = Path(str(importlib.import_module("llama_cpp").__file__)).parent
        libraries.append(loader.load_shared_library("ggml-base", package / "lib"))
    except (ImportError, AttributeError, OSError, RuntimeError):
        pass
    return lambda name: next(
        (getattr(library, name) for library in libraries if hasattr(library, name)), None
    )


def gpu_layers(
    setting: int | None, *, offload: bool, free_bytes: int | None, layers: int, weights: int, cache: int
) -> int:
    """How many layers go to the GPU, the output layer counted as one more than the model's `layers`.

    `setting` None takes as many as fit into `free_bytes` (None: unknown, then all), `ALL_LAYERS` all. A build
    that cannot (`offload`) gets none, whatever was asked for. `weights` and `cache` are those of the whole
    model, in bytes.
    """
    if not offload:
        return 0
    everything = layers + 1
    if setting is not None:
        return everything if setting < 0 else min(setting, everything)
    if free_bytes is None:
        return everything
    room = free_bytes - RESERVE_BYTES
    a_layer = max(1, (weights + cache) // everything)
    return max(0, min(everything, room // a_layer))

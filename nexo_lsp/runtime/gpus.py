"""The GPUs that the installed llama.cpp can use: asked of it in a child process, and remembered.

To ask takes about a second, and has the library load its drivers. So what it said is written down, together
with what it depends on; as long as that stays the same nobody asks again.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import platform
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from nexo_lsp.engines.llama.asking import Probe, ProbeFailed, probe
from nexo_lsp.engines.llama.control_groups import read_file
from nexo_lsp.engines.llama.messages import Load
from nexo_lsp.runtime.environment import Gpu, GpuBackend
from nexo_lsp.runtime.readings.readings import known, listing

_log = logging.getLogger(__name__)

FILE_NAME = "gpus.json"
_VERSION = 1

# How ggml's backends name their devices: `CUDA0`, `MTL0` (older builds: `Metal`), `Vulkan1`, `ROCm0`, …
_BACKENDS = (
    ("cuda", GpuBackend.CUDA),
    ("metal", GpuBackend.METAL),
    ("mtl", GpuBackend.METAL),
    ("vulkan", GpuBackend.VULKAN),
    ("rocm", GpuBackend.ROCM),
    ("hip", GpuBackend.ROCM),
)
# Which devices a library sees follows from these, as their makers document it.
_VARIABLES = ("CUDA_", "GGML_", "GPU_", "HIP_", "HSA_", "ONEAPI_", "ROCR_", "VK_", "ZE_")
_DRIVER_TEXTS = ("/proc/driver/nvidia/version",)
_DRIVER_FOLDERS = (
    "/dev/dri", "/proc/driver/nvidia/gpus", "/etc/vulkan/icd.d", "/usr/share/vulkan/icd.d",
)  # fmt: skip
_DRIVER_FILES = ("/dev/kfd", "/dev/dxg", "/dev/nvidia0")
_DRIVER_LIBRARIES = ("nvcuda.dll", "vulkan-1.dll", "amdhip64.dll")
"""On Windows, in the system's folder: replaced with the driver."""


@dataclass(frozen=True, slots=True)
class Found:
    """What llama.cpp can use, and how that is known."""

    gpus: tuple[Gpu, ...]
    reason: str
    """For people: "none that this build of llama.cpp can use"."""


def known_gpus(state: Path, key: Callable[[], str] | None = None) -> tuple[Gpu, ...] | None:
    """What was found before by the same library with the same drivers; None: ask (`find_gpus`).

    Reads one small file of the folder `state`. `free_bytes` are those of then.
    """
    text = read_file(str(state / FILE_NAME))
    if text is None:
        return None
    try:
        content: Any = json.loads(text)
        if content["version"] != _VERSION or content["key"] != (key or library_key)():
            return None
        return _type().validate_python(content["gpus"])  # pyright: ignore[reportUnknownMemberType]
    except (LookupError, TypeError, ValueError, ValidationError, RecursionError) as error:
        _log.debug("%s is ignored: %s", state / FILE_NAME, error)
        return None


def find_gpus(state: Path, ask: Probe = probe, key: Callable[[], str] | None = None) -> Found:
    """Ask the library, and write down what it says. Blocks for about a second: hand it to an `Offload`.

    Never raises. A library that is missing, or that cannot be asked, has no GPUs and a reason; that is not
    written down, so that the next start asks again.
    """
    if ask is probe and _spec() is None:
        return Found((), "llama-cpp-python is not installed")
    # Taken first: a library that is replaced meanwhile is asked again at the next start.
    now = (key or library_key)()
    try:
        said = ask(Load(path="", context_tokens=0))
        gpus = tuple(_gpu(device) for device in said["devices"])
    except ProbeFailed as error:
        return Found((), f"llama.cpp could not be asked: {error}")
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        return Found((), f"llama.cpp's answer could not be read: {error!r}")
    _remember(state, now, gpus)
    if gpus:
        return Found(gpus, ", ".join(f"{gpu.name} ({gpu.backend.value})" for gpu in gpus))
    able = bool(said.get("offload"))
    return Found(
        gpus, "none found, though this build could use one" if able else "none that this build can use"
    )


def backend_of(device: str) -> GpuBackend:
    """What a device named so by ggml computes with."""
    lower = device.lower()
    return next((backend for start, backend in _BACKENDS if lower.startswith(start)), GpuBackend.OTHER)


def library_key() -> str:
    """Stands for the installed library and the drivers: other ones have another key."""
    return hashlib.sha256("\n".join(_facts(os.environ)).encode("utf-8", "replace")).hexdigest()[:32]


def _facts(environ: Mapping[str, str]) -> Iterator[str]:
    try:
        yield importlib.metadata.version("llama-cpp-python")
    except importlib.metadata.PackageNotFoundError:
        yield "no llama-cpp-python"
    # The kernel of Linux, or the version of macOS and Windows: drivers come with it.
    yield f"{platform.system()} {platform.release()} {platform.machine()}"
    spec = _spec()
    for folder in spec.submodule_search_locations or () if spec is not None else ():
        yield from _identities(Path(folder) / "lib", listing(str(Path(folder) / "lib")))
    yield from sorted(f"{name}={value}" for name, value in environ.items() if name.startswith(_VARIABLES))
    yield from (f"{path}: {read_file(path)}" for path in _DRIVER_TEXTS)
    yield from (f"{path}: {listing(path)}" for path in _DRIVER_FOLDERS)
    yield from (f"{path}: {Path(path).exists()}" for path in _DRIVER_FILES)
    if root := environ.get("SystemRoot"):
        yield from _identities(Path(root) / "System32", _DRIVER_LIBRARIES)


def _spec() -> ModuleSpec | None:
    """Where the library is installed; it is not imported."""
    return known("llama_cpp", lambda: importlib.util.find_spec("llama_cpp"))


def _identities(folder: Path, names: Sequence[str]) -> Iterator[str]:
    for name in names:
        with suppress(OSError):
            status = (folder / name).stat()
            yield f"{folder / name} {status.st_size} {status.st_mtime_ns}"


def _gpu(device: Mapping[str, Any]) -> Gpu:
    return Gpu(
        backend=backend_of(str(device["name"])),
        name=str(device["description"] or device["name"]),
        free_bytes=int(device["free_bytes"]),
        total_bytes=int(device["total_bytes"]),
        shares_memory=bool(device["shares_memory"]),
        device=str(device["name"]),
    )


def _remember(state: Path, key: str, gpus: tuple[Gpu, ...]) -> None:
    content = {"version": _VERSION, "key": key, "gpus": [asdict(gpu) for gpu in gpus]}
    name = ""
    try:
        state.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f"{FILE_NAME}.", dir=state)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)
        Path(name).replace(state / FILE_NAME)
    except OSError as error:
        # It is only asked again.
        _log.info("the GPUs found could not be written down: %s", error)
        if name:
            with suppress(OSError):
                Path(name).unlink()


@cache
def _type() -> TypeAdapter[tuple[Gpu, ...]]:
    return TypeAdapter(tuple[Gpu, ...])

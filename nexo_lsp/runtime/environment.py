"""What machine this is, as far as the choice of an engine and a model depends on it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Platform(StrEnum):
    """Where the server runs."""

    LINUX = "linux"
    MACOS = "macos"
    WINDOWS = "windows"
    WEB = "web"
    """In a browser (Pyodide)."""
    ANDROID = "android"
    IOS = "ios"
    CONSOLE = "console"
    """A game console or a set-top box."""


class GpuBackend(StrEnum):
    """What llama.cpp computes with on a GPU."""

    CUDA = "cuda"
    METAL = "metal"
    VULKAN = "vulkan"
    ROCM = "rocm"
    OTHER = "other"
    """SYCL, OpenCL, CANN, …"""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU that the installed llama.cpp can use."""

    backend: GpuBackend
    name: str
    free_bytes: int
    total_bytes: int
    shares_memory: bool = False
    """Whether its memory is the machine's own."""
    device: str = ""
    """What ggml calls it: `CUDA0`, `Vulkan1`, `HTP0`, …"""


@dataclass(frozen=True, slots=True)
class Battery:
    """The charge at one moment."""

    percent: float
    plugged: bool


@dataclass(frozen=True, slots=True)
class Environment:
    """A profile of one machine."""

    platform: Platform
    architecture: str
    """`x86_64`, `arm64`, `wasm32`, … of the machine, not of the Python that runs on it."""
    emulated: bool = False
    """Whether this Python was built for another processor (Rosetta, Windows on ARM): then so is llama.cpp."""
    physical_cores: int = 1
    performance_cores: int = 1
    """Those that are not efficiency cores; all of them where there is only one kind."""
    simd: frozenset[str] = frozenset()
    """`avx2`, `avx512f`, `neon`, `sve`, …"""
    total_bytes: int = 0
    """Memory of the machine, or what its container is allowed."""
    free_bytes: int = 0
    battery: Battery | None = None
    gpus: tuple[Gpu, ...] = ()
    container: str = ""
    """`docker`, `podman`, `kubernetes`, `wsl`, …; empty outside."""
    network: bool = True
    """Whether using one is allowed."""
    processes: bool = True
    """Whether processes can be started: not on iOS, nor in a browser."""

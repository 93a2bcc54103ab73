"""What the doctor says of the machine: all that a choice of an engine or a model may depend on."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator

from nexo_lsp import __version__
from nexo_lsp.cli.check import Check
from nexo_lsp.cli.diagnosis.looks import Looks
from nexo_lsp.models.catalog import size_text
from nexo_lsp.runtime.environment import Environment
from nexo_lsp.settings import Settings

_SIMD = ("avx512f", "avx2", "avx", "sve", "neon", "sse4_2")
"""What is worth naming, the best first; where there is one of these, those behind it are there too."""
_ALSO = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "f16c", "fma", "dotprod", "i8mm", "bf16", "fp16"})


def machine(environment: Environment, settings: Settings, pause_below: int, looks: Looks) -> Iterator[Check]:
    """The machine and its Python. Below `pause_below` percent of its battery review pauses; 0 is never."""
    yield _ok("nexo-lsp", __version__)
    yield _system(environment, looks)
    old = sys.version_info < (3, 11)
    python = looks.python()
    yield (
        Check("machine", "Python", "problem", python, "install Python 3.11") if old else _ok("Python", python)
    )
    yield _ok("processor", _processor(environment))
    yield _ok("memory", _memory(environment))
    yield from _gpus(environment)
    yield _ok("battery", _battery(environment, pause_below))
    yield _ok("container", environment.container or "none")
    yield _allowed(environment, settings)


def _ok(name: str, value: str) -> Check:
    return Check("machine", name, "ok", value)


def _system(environment: Environment, looks: Looks) -> Check:
    system, platform = looks.system(), environment.platform.value
    kind = "" if platform in system.lower() else f", {platform}"
    text = f"{system}{kind}, {environment.architecture}"
    if not environment.emulated:
        return _ok("system", text)
    return Check(
        "machine",
        "system",
        "warning",
        f"{text}; this Python was built for another processor, and llama.cpp is several times as slow so",
        f"install a Python for {environment.architecture}, and nexo-lsp in it",
    )


def _processor(environment: Environment) -> str:
    cores, fast = environment.physical_cores, environment.performance_cores
    text = f"{cores} core{'s' if cores > 1 else ''}"
    if fast < cores:
        text = f"{text} ({fast} for performance, {cores - fast} for efficiency)"
    best = next((name for name in _SIMD if name in environment.simd), "")
    names = [name for name in (best, *sorted(environment.simd & _ALSO)) if name]
    return f"{text}; {', '.join(names) or 'no SIMD that is known of'}"


def _memory(environment: Environment) -> str:
    if not environment.total_bytes:
        return "not known"
    whose = f", what the {environment.container} container may take" if environment.container else ""
    return f"{size_text(environment.free_bytes)} of {size_text(environment.total_bytes)} free{whose}"


def _gpus(environment: Environment) -> Iterator[Check]:
    for gpu in environment.gpus:
        memory = f"{size_text(gpu.free_bytes)} of {size_text(gpu.total_bytes)} free"
        shared = ", shared with the processor" if gpu.shares_memory else ""
        yield _ok("GPU", f"{gpu.name} ({gpu.backend.value}), {memory}{shared}")
    if not environment.gpus:
        asked = importlib.util.find_spec("llama_cpp") is not None
        none = "none that the installed llama.cpp can use"
        yield _ok("GPU", none if asked else "not known: llama.cpp, which would be asked, is not installed")


def _battery(environment: Environment, below: int) -> str:
    battery = environment.battery
    if battery is None:
        return "none"
    care = (
        f"review pauses below {below} %" if below else "review never pauses (nexo.review.pauseBelowBattery)"
    )
    return f"{battery.percent:.0f} %, {'plugged in' if battery.plugged else 'in use'}; {care}"


def _allowed(environment: Environment, settings: Settings) -> Check:
    network = environment.network and not settings.offline
    said = (
        "network" if network else "no network (nexo.offline)",
        "processes" if environment.processes else f"no processes on {environment.platform.value}",
    )
    return _ok("allowed", ", ".join(said))

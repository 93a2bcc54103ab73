"""The machine that everything runs on: what it is, and how it is kept busy."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path

import psutil

from nexo_lsp.folders import folders


def cores() -> int:
    """Processor cores, which is how many threads every competitor gets."""
    return psutil.cpu_count(logical=False) or os.cpu_count() or 1


def describe() -> str:
    """One line for the results: what was measured on, and how busy it was."""
    load = f", load {os.getloadavg()[0]:.1f} before" if hasattr(os, "getloadavg") else ""
    memory = psutil.virtual_memory().total / 2**30
    return (
        f"{_processor()}, {cores()} cores, {memory:.0f} GiB, {platform.system()} {platform.machine()}, "
        f"Python {platform.python_version()}, llama-cpp-python {version('llama-cpp-python')}{load}"
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown processor"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "unknown processor"


def cache_folder(environ: Mapping[str, str]) -> Path:
    """Where what is built for measuring is kept: beside the models, since it can be made again as well."""
    return folders(environ).models.parent / "benchmarks"


@contextlib.contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Other programs that never rest, one for each core if `count` is that."""
    started = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def memory_of(pid: int) -> dict[str, float]:
    """Memory of a process in MiB: `rss`; where the system tells it, `uss` (its own) and `pss` (its share)."""
    process = psutil.Process(pid)
    found = {"rss": process.memory_info().rss}
    with contextlib.suppress(psutil.Error):
        full = process.memory_full_info()
        found |= {name: getattr(full, name) for name in ("uss", "pss") if hasattr(full, name)}
    return {name: size / 2**20 for name, size in found.items()}

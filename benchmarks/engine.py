"""How quickly the embedded engine loads, reads, writes and stops, on a quiet and on a busy machine.

    python benchmarks/engine.py [--model FILE] [--busy N] [--rounds N] [--json]

Without `--model` the default model is taken, and fetched if need be. "Busy" means `--busy` other processes
(default 1) that never rest. Goal: the cached model loads in under 5 s.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from nexo_lsp.engines.llama.engine import LlamaEngine, LlamaOptions
from nexo_lsp.folders import folders
from nexo_lsp.generation import ChatPrompt, Message, Piece, Request, Role, Usage
from nexo_lsp.models.store import ModelStore

Figures = dict[str, float]

FUNCTION = '''def merge_{n}(left, right):
    """Two sorted lists as one, number {n}."""
    merged = []
    while left and right:
        merged.append(left.pop(0) if left[0] <= right[0] else right.pop(0))
    return merged + left + right

'''
SYSTEM = "You are a careful reviewer of Python code. " + " ".join(f"Rule {n}: be precise." for n in range(40))


def ask(text: str, tokens: int, *, system: str = SYSTEM) -> Request:
    messages = (Message(Role.SYSTEM, system), Message(Role.USER, text))
    return Request(ChatPrompt(messages), max_tokens=tokens, session="benchmark")


async def run(engine: LlamaEngine, request: Request) -> tuple[float, Usage]:
    """Seconds to the first text, and what it cost."""
    began = time.perf_counter()
    first: float | None = None
    last: Piece | None = None
    async for piece in engine.stream(request):
        first = first or time.perf_counter() - began
        last = piece
    assert last is not None
    assert last.usage is not None
    return first or 0.0, last.usage


async def cancel(engine: LlamaEngine, request: Request, *, decoding: bool) -> float:
    """Seconds from leaving a stream until the worker takes the next message."""
    stream = engine.stream(request)
    reading = asyncio.ensure_future(anext(stream))
    if decoding:
        await reading
    else:
        # Long enough to be inside the prompt, far too short to be through it.
        await asyncio.sleep(0.3)
        reading.cancel()
        await asyncio.wait({reading})
    began = time.perf_counter()
    await stream.aclose()
    await engine.count_tokens("ready?")
    return time.perf_counter() - began


async def measure(path: Path, options: LlamaOptions, rounds: int) -> Figures:
    async def model() -> Path:
        return path

    engine = LlamaEngine(model, options)
    began = time.perf_counter()
    await engine.count_tokens("load")
    figures: Figures = {"start and load, s": time.perf_counter() - began}
    figures["load, s"] = float(engine.status().extra["loadS"])
    cold: list[float] = []
    warm: list[float] = []
    reading: list[float] = []
    writing: list[float] = []
    stop_reading: list[float] = []
    stop_writing: list[float] = []
    for number in range(rounds):
        # A prompt that begins differently each time shares nothing with what is cached.
        system = f"{number} {time.time()} {SYSTEM}"
        code = "".join(FUNCTION.format(n=n) for n in range(3))
        first, usage = await run(engine, ask(code, 48, system=system))
        cold.append(first)
        reading.append((usage.prompt_tokens - usage.cached_tokens) / usage.prompt_s)
        writing.append(usage.completion_tokens / usage.decode_s)
        first, usage = await run(engine, ask(code + "Is it right?", 8, system=system))
        warm.append(first)
        long = "".join(FUNCTION.format(n=n) for n in range(60))
        stop_reading.append(
            await cancel(engine, ask(long, 16, system=f"{number} {time.time()}"), decoding=False)
        )
        stop_writing.append(await cancel(engine, ask(code, 400, system=system), decoding=True))
    figures |= {
        "prompt, tokens/s": statistics.median(reading),
        "decode, tokens/s": statistics.median(writing),
        "first text, nothing cached, s": statistics.median(cold),
        "first text, prompt cached, s": statistics.median(warm),
        "ready after cancel in prompt, ms": statistics.median(stop_reading) * 1000,
        "ready after cancel in prompt, worst, ms": max(stop_reading) * 1000,
        "ready after cancel in decode, ms": statistics.median(stop_writing) * 1000,
        "memory of the worker, MB": (engine.status().memory_bytes or 0) / 2**20,
    }
    await engine.close()
    return figures


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    started = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def machine() -> str:
    load = f", load {os.getloadavg()[0]:.1f} before" if hasattr(os, "getloadavg") else ""
    return (
        f"{platform.system()} {platform.machine()}, {psutil.cpu_count(logical=False)} cores, "
        f"Python {platform.python_version()}, llama-cpp-python {version('llama-cpp-python')}{load}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--busy", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    path = arguments.model or ModelStore(folders(os.environ).models, os.environ).pull("auto")
    options = LlamaOptions(context_tokens=8192, threads=arguments.threads)
    where = machine()
    quiet = asyncio.run(measure(path, options, arguments.rounds))
    with busy_processes(arguments.busy):
        busy = asyncio.run(measure(path, options, arguments.rounds))
    if arguments.json:
        print(json.dumps({"machine": where, "model": path.name, "quiet": quiet, "busy": busy}, indent=2))
        return
    table = Table("figure", "quiet", f"with {arguments.busy} busy", title=f"{path.name}\n{where}")
    for name, value in quiet.items():
        table.add_row(name, f"{value:.2f}", f"{busy[name]:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()

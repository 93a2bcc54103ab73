"""How quickly edits of large files are parsed, and how little the event loop feels of it.

    python benchmarks/parse.py [--json]

Goal: in a Python file of 10,000 lines an edit (change and parse) takes under 5 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import random
import statistics
import time
from collections.abc import Awaitable
from importlib.metadata import version

import psutil
from rich.console import Console
from rich.table import Table

from nexo_lsp.documents import DocumentStore
from nexo_lsp.offload import in_thread
from nexo_lsp.text import Change, Position, Range

URI = "file:///large.py"
EDITS = 200
# A line that is valid Python only when its bracket and quote are closed, and one that is valid almost always.
STATEMENT = "        total = compute(item, 'x')\n"
PLAIN = "        # a remark about the total\n"

Times = dict[str, float]


def source(lines: int, *, ascii_only: bool = True) -> str:
    """A Python file of about `lines` lines: functions and classes with calls, strings and comments."""
    word = "value" if ascii_only else "größe"
    parts: list[str] = ["import os", "from typing import Any", ""]
    number = 0
    while len(parts) < lines:
        number += 1
        parts += [
            f"class Thing{number}(Base):",
            f'    """What a thing {number} is."""',
            "",
            f"    def method_{number}(self, {word}: int, *rest: Any) -> dict[str, int]:",
            f"        # Adds {number} to what it is given.",
            f"        total = self.helper({word}) + {number}",
            "        for item in rest:",
            f"            total += compute(item, {word}) if item is not None else len('{word}')",
            f"        return {{'{word}': total, 'n': {number}}}",
            "",
        ]
    return "\n".join(parts[:lines]) + "\n"


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def typing(lines: int, *, ascii_only: bool = True, outline: bool = False, text: str = STATEMENT) -> Times:
    """Somebody types a line into methods here and there, a letter at a time, and takes it back.

    While a statement is unfinished the file does not parse, and incremental parsing has the most to do.
    """
    chance = random.Random(7)
    store = DocumentStore()
    snapshot = store.open(URI, "python", 0, source(lines, ascii_only=ascii_only))
    if snapshot.tree is not None:
        snapshot.tree.outline()
    took: list[float] = []
    number = 0
    while len(took) < EDITS:
        line = chance.randrange(lines // 10 - 1) * 10 + 9  # below a method's `total = …`
        changes = [
            Change(Range(Position(line, column), Position(line, column)), letter)
            for column, letter in enumerate(text)
        ]
        changes.append(Change(Range(Position(line, 0), Position(line + 1, 0)), ""))
        for change in changes:
            number += 1
            start = time.perf_counter()
            snapshot, _ = store.change(URI, number, [change])
            tree = snapshot.tree
            if outline and tree is not None:
                tree.outline()
            took.append((time.perf_counter() - start) * 1000)
    return {"median": statistics.median(took), "p99": percentile(took, 0.99), "worst": max(took)}


async def opening(lines: int) -> Times:
    """A large file is opened and parsed away from the loop, while the loop counts how late it comes."""
    text = source(lines)
    store = DocumentStore(offload=in_thread)
    start = time.perf_counter()
    store.open(URI, "python", 0, text)
    opened = (time.perf_counter() - start) * 1000
    late: list[float] = []
    # What the loop is late by itself, with nothing else to do, is measured first.
    idle = await lags(asyncio.sleep(0.5), [])
    start = time.perf_counter()
    await lags(store.parsed(URI), late)
    parsed = (time.perf_counter() - start) * 1000
    return {
        "open": opened,
        "parse and outline": parsed,
        "loop lag p99": percentile(late, 0.99),
        "loop lag worst": max(late),
        "idle lag worst": max(idle),
    }


async def lags(work: Awaitable[object], late: list[float]) -> list[float]:
    """How late (ms) a timer of 1 ms comes while `work` runs."""
    task = asyncio.ensure_future(work)
    while not task.done():
        start = time.perf_counter()
        await asyncio.sleep(0.001)
        late.append((time.perf_counter() - start) * 1000 - 1)
    await task
    return late


def machine() -> str:
    return (
        f"{platform.processor() or platform.machine()}, {psutil.cpu_count()} CPUs, load "
        f"{psutil.getloadavg()[0]:.1f}, Python {platform.python_version()}, "
        f"tree-sitter {version('tree-sitter')}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    wanted = parser.parse_args()
    results = {
        "10,000 lines, a comment is typed": typing(10_000, text=PLAIN),
        "10,000 lines, a statement is typed": typing(10_000),
        "10,000 lines, the same, not ASCII": typing(10_000, ascii_only=False),
        "10,000 lines, the same, and the outline": typing(10_000, outline=True),
        "2,000 lines, a statement and the outline": typing(2_000, outline=True),
        "50,000 lines, a statement is typed": typing(50_000),
        "50,000 lines, the first parse": asyncio.run(opening(50_000)),
    }
    if wanted.json:
        print(json.dumps({"machine": machine(), "milliseconds": results}, indent=2))
        return
    table = Table("what", "measure", "ms", title=f"Parsing ({machine()})")
    for what, values in results.items():
        for measure, value in values.items():
            table.add_row(what, measure, f"{value:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()

"""Whether models keep to their budgets: how long a cached one takes to load, and what server and engine hold.

    python -m benchmarks.budgets [--model NAME]... [--write]

For each model of the catalogue that is here (and once more for the small one under a phone's rules) a real
server is asked for what users ask: completions, a review, generations. Meanwhile the resident memory of the
server and of the engine's process is read every 50 ms; the highest sum counts. The engine is the server's own
(`nexo.engine.shared` off), so that nobody else's requests are in it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.engine.machine import describe
from benchmarks.server import FUNCTIONS, Client, completing, generating, loading
from nexo_lsp.folders import folders
from nexo_lsp.models.catalog import CATALOG, CatalogEntry
from nexo_lsp.models.store import ModelStore
from nexo_lsp.models.variants import Form, tables

PAGE = Path(__file__).parent / "results" / "budgets.md"
LOOK_S = 0.05
LOADS = 3
LOAD_GOAL_S = 5.0
ROUNDS = 5


@dataclass(frozen=True)
class Case:
    """One model under the rules of one kind of machine."""

    entry: CatalogEntry
    path: Path
    form: Form

    @property
    def engine(self) -> str:
        return "mobile" if self.form == "mobile" else "native"


@dataclass(frozen=True)
class Result:
    case: Case
    load_s: float
    """The slowest of `LOADS`."""
    server: int
    worker: int
    """Bytes, at the moment when the sum was highest."""

    @property
    def budget(self) -> int:
        return tables()[self.case.form].memory_bytes

    @property
    def verdict(self) -> str:
        return "ok" if self.load_s < LOAD_GOAL_S and self.server + self.worker < self.budget else "missed"

    @property
    def cells(self) -> tuple[str, ...]:
        both = self.server + self.worker
        figures = (self.server, self.worker, both, self.budget, self.case.entry.memory_bytes)
        return (
            self.case.entry.name,
            self.case.engine,
            f"{self.load_s:.2f} s",
            *(f"{figure / 1e6:,.0f} MB" for figure in figures),
            self.verdict,
        )


HEAD = ("model", "engine", "load (goal 5 s)", "server", "engine", "both", "budget", "reckoned (engine)", "")


class Watch:
    """The highest sum of the server's and its children's memory."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self.server = self.worker = 0
        self._task = asyncio.ensure_future(self._look())

    async def _look(self) -> None:
        while True:
            with contextlib.suppress(psutil.Error):
                server = self._process.memory_info().rss
                worker = sum(child.memory_info().rss for child in self._process.children(recursive=True))
                if server + worker > self.server + self.worker:
                    self.server, self.worker = server, worker
            await asyncio.sleep(LOOK_S)

    def stop(self) -> None:
        self._task.cancel()


async def measured(case: Case) -> Result:
    with tempfile.TemporaryDirectory() as base:
        folder = Path(base) / "project"
        folder.mkdir()
        clean = {name: value for name, value in os.environ.items() if not name.startswith("NEXO_")}
        environ = {**clean, "NEXO_HOME": str(Path(base) / "home")}
        settings = {
            "engine": {"kind": case.engine, "shared": False},
            "model": str(case.path),
            "review": {"trigger": "manual"},
        }
        loads: list[float] = []
        for number in range(LOADS):
            client = await Client.start(environ, settings)
            await client.initialize(folder)
            client.notify("initialized", {})
            watch = Watch(client.process.pid)
            loads.append(await loading(client, folder, number))
            if number == LOADS - 1:
                await work(client, folder)
            watch.stop()
            await client.leave()
    # The first one may make a copy of the weights, once for all.
    return Result(case, max(loads[1:]), watch.server, watch.worker)


async def work(client: Client, folder: Path) -> None:
    """What fills the engine's caches."""
    for number in range(ROUNDS):
        await completing(client, folder, 100 + number)
        await generating(client, folder, number)
        uri = (folder / f"reviewed{number}.py").as_uri()
        client.open(uri, f"import csv\n{FUNCTIONS.replace('def ', f'def r{number}_')}")
        await client.request("nexo/review", {"textDocument": {"uri": uri}})


def cases(names: Sequence[str]) -> list[Case]:
    store = ModelStore(folders(os.environ).models, os.environ)
    here = [
        Case(entry, model.path.resolve(), "desktop")
        for entry in CATALOG
        if not names or entry.name in names
        for model in store.installed()
        if model.entry is not None and model.entry.name == entry.name
    ]
    small = [Case(case.entry, case.path, "mobile") for case in here if case.entry.size <= 500_000_000]
    return [*here, *small]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", action="append", default=[])
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    arguments = parser.parse_args()
    where = describe()
    results = [asyncio.run(measured(case)) for case in cases(arguments.model)]
    table = Table(*HEAD, title=f"Budgets\n{where}")
    for result in results:
        table.add_row(*result.cells)
    Console().print(table)
    if arguments.write:
        lines = [
            "# Models within their budgets",
            "",
            "Written by `python -m benchmarks.budgets --write`; its head says what is measured.",
            "",
            where,
            "",
            f"| {' | '.join(HEAD)} |",
            "|" + "---|" * len(HEAD),
            *(f"| {' | '.join(result.cells)} |" for result in results),
        ]
        PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

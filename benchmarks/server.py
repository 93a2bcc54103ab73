"""What an editor feels of the server: start, lists, lag, memory, generation, with the real model.

    python -m benchmarks.server [--model FILE] [--rounds N] [--json | --markdown]

Without `--model` the default model is taken, and fetched if need be. Everything is measured from outside, at
the client's end of the pipe, so the numbers hold the pipe and the client's own turns too. In particular the
loop lag is the round trip of a request that the server does not know: its loop answers that at once, with
nothing to look up, so what it takes longer under load is what the loop was late. It is asked every 10 ms
while a review and then a generation are under way.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.parse import source
from nexo_lsp.folders import folders
from nexo_lsp.models.store import ModelStore
from nexo_lsp.server.framing import FrameParser, frame

STARTS = 15
LISTS = 200
TYPED = "        total = compute(total)\n"
UNKNOWN = "$/ping"
PING_S = 0.01
PATIENCE_S = 300.0
CAPABILITIES: dict[str, Any] = {
    "general": {"positionEncodings": ["utf-16"]},
    "workspace": {"applyEdit": True, "workspaceEdit": {"documentChanges": True}},
    "textDocument": {"codeAction": {"codeActionLiteralSupport": {"codeActionKind": {"valueSet": [""]}}}},
    "window": {"workDoneProgress": True},
    "experimental": {"nexo": {"status": True}},
}

# Functions as they stand in many programs, so that prompts are as long as real ones.
FUNCTIONS = '''
def mean(values: list[float]) -> float:
    """The arithmetic mean of `values`."""
    if not values:
        raise ValueError("no values")
    return sum(values) / len(values)


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file, by the names in its first line."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def group_by_city(rows: list[dict[str, str]]) -> dict[str, list[dict[str, str]]]:
    """The rows of each city."""
    groups: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        groups.setdefault(row["city"], []).append(row)
    return groups


def chunked(items: list[str], size: int) -> Iterator[list[str]]:
    """`items` in lists of at most `size`."""
    for start in range(0, len(items), size):
        yield items[start : start + size]

'''
STUBS = (
    ("is_palindrome(text: str) -> bool", "Whether `text` reads the same backwards."),
    ("factorial(number: int) -> int", "The product of all numbers from 1 to `number`."),
    ("count_vowels(text: str) -> int", "How many vowels are in `text`."),
    (
        "clamp(value: float, low: float, high: float) -> float",
        "`value`, but not below `low` or above `high`.",
    ),
    ("unique(items: list[str]) -> list[str]", "The items without repetitions, in their order."),
)


@dataclass(frozen=True)
class Figure:
    """One measured number, and what it should be below."""

    name: str
    measured: float
    unit: str
    goal: float | None = None

    @property
    def verdict(self) -> str:
        return "" if self.goal is None else "ok" if self.measured < self.goal else "missed"


class Client:
    """The client's end of one server process: JSON messages, and answers to what the server asks."""

    def __init__(self, process: asyncio.subprocess.Process, settings: dict[str, Any]) -> None:
        self.process = process
        self.statuses: list[tuple[float, str]] = []
        self.applied: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._settings = settings
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._reader = asyncio.ensure_future(self._read())

    @classmethod
    async def start(cls, environ: dict[str, str], settings: dict[str, Any]) -> Client:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "nexo_lsp", "serve",
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environ,
        )  # fmt: skip
        return cls(process, settings)

    def notify(self, method: str, params: Any) -> None:
        self._send({"method": method, "params": params})

    async def request(self, method: str, params: Any = None) -> Any:
        identity = next(self._ids)
        self._waiting[identity] = answer = asyncio.get_running_loop().create_future()
        self._send({"id": identity, "method": method, "params": params})
        message = await asyncio.wait_for(answer, PATIENCE_S)
        if "error" in message and method != UNKNOWN:
            raise RuntimeError(f"{method}: {message['error']['message']}")
        return message.get("result")

    async def initialize(self, folder: Path) -> None:
        params = {"processId": None, "rootUri": folder.as_uri(), "capabilities": CAPABILITIES}
        await self.request("initialize", {**params, "initializationOptions": self._settings})

    def open(self, uri: str, text: str) -> None:
        item = {"uri": uri, "languageId": "python", "version": 1, "text": text}
        self.notify("textDocument/didOpen", {"textDocument": item})

    async def leave(self) -> None:
        await self.request("shutdown")
        self.notify("exit", None)
        await self._reader
        await self.process.wait()

    async def kill(self) -> None:
        self.process.kill()
        await self._reader
        await self.process.wait()

    def _send(self, message: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(frame({"jsonrpc": "2.0", **message}))

    async def _read(self) -> None:
        assert self.process.stdout is not None
        parser = FrameParser()
        while data := await self.process.stdout.read(65536):
            for body in parser.feed(data):
                self._take(json.loads(body))

    def _take(self, message: dict[str, Any]) -> None:
        method = message.get("method")
        if method is None:
            self._waiting.pop(message["id"]).set_result(message)
        elif method == "nexo/status":
            self.statuses.append((time.perf_counter(), message["params"]["state"]))
        elif "id" in message:
            self._send({"id": message["id"], "result": self._answer(method, message["params"])})

    def _answer(self, method: str, params: dict[str, Any]) -> Any:
        if method == "workspace/applyEdit":
            self.applied.put_nowait(params)
            return {"applied": True}
        return [self._settings for _ in params["items"]] if method == "workspace/configuration" else None


async def timed(work: Awaitable[Any]) -> float:
    """How long `work` takes, in milliseconds."""
    began = time.perf_counter()
    await work
    return (time.perf_counter() - began) * 1000


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


async def starting(environ: dict[str, str], folder: Path) -> list[Figure]:
    """From the start of the process to the answer of `initialize`, and to that of the request after it."""
    took: list[float] = []
    ready: list[float] = []
    for _ in range(STARTS + 1):
        began = time.perf_counter()
        client = await Client.start(environ, {})
        await client.initialize(folder)
        took.append((time.perf_counter() - began) * 1000)
        await client.request(UNKNOWN)
        ready.append((time.perf_counter() - began) * 1000)
        await client.kill()
    del took[0], ready[0]  # the first start reads the files from the disk
    return [
        Figure("answer to `initialize`, median", statistics.median(took), "ms", 400),
        Figure("answer to `initialize`, worst", max(took), "ms", 400),
        Figure("answer to the request after it, median", statistics.median(ready), "ms"),
    ]


async def listing(client: Client, folder: Path) -> list[Figure]:
    """Code actions on 2,000 lines: of which the tree is there already, and just after a keystroke."""
    uri, chance = (folder / "large.py").as_uri(), random.Random(7)
    client.open(uri, source(2000))

    async def ask(line: int) -> None:
        place = {"line": line, "character": 4}
        params = {"range": {"start": place, "end": place}, "context": {"diagnostics": []}}
        await client.request("textDocument/codeAction", {"textDocument": {"uri": uri}, **params})

    async def type_and_ask(line: int, column: int, letter: str, version: int) -> None:
        place = {"line": line, "character": column}
        change = {"range": {"start": place, "end": place}, "text": letter}
        document = {"uri": uri, "version": version}
        client.notify("textDocument/didChange", {"textDocument": document, "contentChanges": [change]})
        await ask(line)

    await ask(0)
    took = [await timed(ask(chance.randrange(1990))) for _ in range(LISTS)]
    typed: list[float] = []
    for _ in range(LISTS // len(TYPED)):
        line = chance.randrange(198) * 10 + 12  # behind a `return`
        for column, letter in enumerate(TYPED):
            typed.append(await timed(type_and_ask(line, column, letter, len(typed) + 2)))
    return [
        Figure("code actions on 2,000 lines, median", statistics.median(took), "ms", 20),
        Figure("code actions on 2,000 lines, p95", percentile(took, 0.95), "ms", 20),
        Figure("a keystroke and code actions on 2,000 lines, median", statistics.median(typed), "ms"),
        Figure("a keystroke and code actions on 2,000 lines, p95", percentile(typed, 0.95), "ms"),
    ]


async def completing(client: Client, folder: Path, number: int, spot: str = "    return ") -> float:
    """One explicit inline completion behind `spot`, in milliseconds."""
    uri = (folder / f"complete{number}.py").as_uri()
    before, after = f"{program()}\n\ndef half_{number}(number):\n{spot}", "\n"
    client.open(uri, before + after)
    place = {"line": before.count("\n"), "character": len(spot)}
    params = {"textDocument": {"uri": uri}, "position": place, "context": {"triggerKind": 1}}
    return await timed(client.request("textDocument/inlineCompletion", params))


def program(stub: tuple[str, str] | None = None) -> str:
    """A file of about 150 lines, with a function that has no body yet in its middle."""
    head = "import csv\nfrom collections.abc import Iterator\nfrom pathlib import Path\n\n"
    blocks = [FUNCTIONS.replace("def ", f"def v{n}_") for n in range(5)]
    if stub is not None:
        blocks.insert(3, f'\ndef {stub[0]}:\n    """{stub[1]}"""\n    ...\n\n')
    return head + "\n".join(blocks)


async def generating(client: Client, folder: Path, number: int) -> float:
    """From the command that implements a stub to the edit, in seconds."""
    stub = STUBS[number % len(STUBS)]
    uri, text = (folder / f"generate{number}.py").as_uri(), program(stub)
    client.open(uri, text)
    place = {"line": text[: text.index(f"def {stub[0]}")].count("\n"), "character": 6}
    params = {
        "textDocument": {"uri": uri},
        "range": {"start": place, "end": place},
        "context": {"diagnostics": [], "only": ["refactor.rewrite.nexo.generate"]},
    }
    (action,) = await client.request("textDocument/codeAction", params)

    async def generate() -> None:
        await client.request("workspace/executeCommand", action["command"])
        await asyncio.wait_for(client.applied.get(), PATIENCE_S)

    return await timed(generate()) / 1000


async def lag(client: Client, work: Callable[[], Awaitable[Any]]) -> list[float]:
    """Round trips (ms) of a request that nobody knows, every 10 ms while `work` goes on."""
    late: list[float] = []
    task = asyncio.ensure_future(work())
    while not task.done():
        late.append(await timed(client.request(UNKNOWN)))
        await asyncio.sleep(PING_S)
    await task
    return late


async def lagging(client: Client, folder: Path) -> list[Figure]:
    async def work() -> None:
        uri = (folder / "reviewed.py").as_uri()
        client.open(uri, f"import csv\n{FUNCTIONS}")
        await client.request("nexo/review", {"textDocument": {"uri": uri}})
        await generating(client, folder, 100)

    idle = await lag(client, lambda: asyncio.sleep(2))
    busy = await lag(client, work)
    return [
        Figure("loop lag, nothing to do, p99", percentile(idle, 0.99), "ms"),
        Figure("loop lag, engine at work, median", statistics.median(busy), "ms"),
        Figure("loop lag, engine at work, p99", percentile(busy, 0.99), "ms", 20),
        Figure("loop lag, engine at work, worst", max(busy), "ms"),
    ]


async def loading(client: Client, folder: Path, number: int) -> float:
    """From the first need of the model until it is loaded, in seconds, by what the server tells of itself."""
    await completing(client, folder, number)
    (began, _), *_ = (item for item in client.statuses if item[1] == "loading")
    (ended, _), *_ = (item for item in client.statuses if item[1] in {"ready", "busy"} and item[0] > began)
    return ended - began


def resident_mb(client: Client) -> float:
    return psutil.Process(client.process.pid).memory_info().rss / 2**20


async def measure(model: Path, rounds: int) -> list[Figure]:
    with tempfile.TemporaryDirectory() as base:
        home, folder = Path(base) / "home", Path(base) / "project"
        folder.mkdir()
        clean = {name: value for name, value in os.environ.items() if not name.startswith("NEXO_")}
        environ = {**clean, "NEXO_HOME": str(home)}
        settings = {"engine": "native", "model": str(model), "review": {"trigger": "manual"}}

        async def begin() -> Client:
            client = await Client.start(environ, settings)
            await client.initialize(folder)
            client.notify("initialized", {})
            return client

        figures = await starting(environ, folder)
        loads: list[float] = []
        for number in range(rounds - 1):
            client = await begin()
            loads.append(await loading(client, folder, number))
            await client.leave()
        client = await begin()
        figures += await listing(client, folder)
        before = resident_mb(client)
        loads.append(await loading(client, folder, rounds))
        completions = [await completing(client, folder, 50 + number) for number in range(10)]
        generations = [await generating(client, folder, number) for number in range(len(STUBS))]
        lags = await lagging(client, folder)
        after = resident_mb(client)
        await client.leave()
    return [
        *figures,
        *lags,
        Figure("memory of the server, 2,000 lines open, no model", before, "MB", 150),
        Figure("memory of the server after all of this, without the worker", after, "MB", 150),
        Figure("start of the worker and load of the cached model, median", statistics.median(loads), "s", 5),
        Figure("a generation (a stub in 150 lines), median", statistics.median(generations), "s", 10),
        Figure("a generation, worst", max(generations), "s", 10),
        Figure("inline completion of an expression, warm, median", statistics.median(completions), "ms"),
        Figure("inline completion, warm, worst", max(completions), "ms"),
    ]


def machine(model: Path) -> str:
    load = f"load {os.getloadavg()[0]:.1f} before, " if hasattr(os, "getloadavg") else ""
    memory = round(psutil.virtual_memory().total / 2**30)
    return (
        f"{processor()}, {psutil.cpu_count(logical=False)} cores, {memory} GB, {platform.system()}, {load}"
        f"{datetime.now(UTC):%Y-%m-%d}, Python {platform.python_version()}, "
        f"llama-cpp-python {version('llama-cpp-python')}, {model.name}"
    )


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def rows(figures: list[Figure]) -> list[tuple[str, str, str, str]]:
    return [
        (f.name, "" if f.goal is None else f"< {f.goal:g} {f.unit}", f"{f.measured:.1f} {f.unit}", f.verdict)
        for f in figures
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--rounds", type=int, default=3, help="how many times the model is loaded")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true")
    form.add_argument("--markdown", action="store_true")
    arguments = parser.parse_args()
    path = arguments.model or ModelStore(folders(os.environ).models, os.environ).pull("auto")
    where = machine(path)
    figures = asyncio.run(measure(path.resolve(), arguments.rounds))
    if arguments.json:
        named = [{**asdict(figure), "verdict": figure.verdict} for figure in figures]
        print(json.dumps({"machine": where, "figures": named}, indent=2))
    elif arguments.markdown:
        print(f"{where}\n\n| figure | goal | measured | |\n|---|---|---|---|")
        for row in rows(figures):
            print(f"| {' | '.join(row)} |")
    else:
        table = Table("figure", "goal", "measured", "", title=f"The server\n{where}")
        for row in rows(figures):
            table.add_row(*row)
        Console().print(table)


if __name__ == "__main__":
    main()

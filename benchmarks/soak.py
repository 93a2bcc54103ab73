"""Minutes of mixed work with random cancels and kills: nothing may be lost, and memory may not grow.

    python -m benchmarks.soak [--requests N] [--kills N] [--tiny | --model FILE] [--seed N] [--json]

Completions, chats, reviews with a schema and rewrites with a prediction are put to the engine, several at
once. One in four is left at a random moment; in the first third the worker is killed some times. Each request
has to end exactly once: with its answer, with an error, or by being left. Memory of the worker is looked at
between requests: until half of its life is over it may fill its caches, which are bounded; from then on it
may grow by 5 %. The last worker has the longest life, and is the one that tells. `--tiny` takes a made-up
model that is quick and knows nothing. Ends with status 1 if something is not as it should be.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.engine import material
from benchmarks.engine.machine import describe
from nexo_lsp.engines.llama.engine import LlamaEngine, LlamaOptions
from nexo_lsp.errors import NexoError
from nexo_lsp.folders import folders
from nexo_lsp.generation import ChatPrompt, Priority, Request
from nexo_lsp.models.store import ModelStore

AT_ONCE = 6
PATIENCE_S = 300.0
LEFT_SHARE, LEFT_WITHIN_S = 0.25, 1.5
MOST_TOKENS = 40
NEW_SHARE = 0.3
WARM_UP, LEAST_LIFE = 0.5, 400
"""The share of a worker's life that fills its caches, and the requests that a life needs to tell anything."""
MOST_GROWTH = 0.05
FINISHED, LEFT, LOST, TWICE = "finished", "left by us", "lost", "ended twice"


@dataclass
class Life:
    """One worker, from its start to its end: how many requests had ended, and its memory then (MiB)."""

    sizes: list[tuple[int, float]] = field(default_factory=list[tuple[int, float]])

    @property
    def most(self) -> float:
        return max(size for _, size in self.sizes)

    @property
    def requests(self) -> int:
        return self.sizes[-1][0] - self.sizes[0][0]

    def growth(self) -> float | None:
        """From the end of the warm-up to the last fifth; None if the life was too short to tell."""
        if self.requests < LEAST_LIFE:
            return None
        first, last = self.sizes[0][0], self.sizes[-1][0]
        settled = [size for at, size in self.sizes if at - first <= WARM_UP * (last - first)]
        late = [size for at, size in self.sizes if at >= last - (last - first) // 5]
        return statistics.median(late) / max(settled) - 1


@dataclass
class Soak:
    """What happened so far."""

    endings: Counter[str] = field(default_factory=Counter[str])
    lives: dict[int, Life] = field(default_factory=dict[int, Life])
    kills: int = 0
    seconds: float = 0.0
    left_over: int = 0
    """Requests that the engine still counted when all had ended."""

    @property
    def ended(self) -> int:
        return sum(self.endings.values())

    def problems(self, requests: int) -> list[str]:
        """What is not as it should be."""
        found = [f"{self.endings[name]} {name}" for name in (LOST, TWICE) if self.endings[name]]
        if self.ended != requests:
            found.append(f"{requests} were asked and {self.ended} ended")
        if self.left_over:
            found.append(f"{self.left_over} left over")
        others = {name for name in self.endings if name not in (FINISHED, LEFT, LOST, TWICE, _CRASHED)}
        found += [f"{self.endings[name]} {name}" for name in others]
        growths = [growth for life in self.lives.values() if (growth := life.growth()) is not None]
        found += [f"memory grew by {growth:.1%}" for growth in growths if growth > MOST_GROWTH]
        return found


_CRASHED = "error: EngineCrashed"


async def mixture(chance: random.Random, count: int) -> list[Request]:
    """Requests of all kinds in random order; many share a beginning, as in an editor."""
    infill = [request for place in range(6) for request in await material.keystrokes(place)]
    rewrites = [
        # Until the actions say so themselves, the code at hand is what their answers repeat.
        request if request.prediction else replace(request, prediction=material.last_code(request))
        for request in await material.rewrites()
    ]
    reviews, chats = material.reviews(), list(material.long_chats(20))
    asked: list[Request] = []
    while len(asked) < count:
        kind = chance.choices((infill, chats, reviews, rewrites), (6, 1, 3, 1))[0]
        request = chance.choice(kind)
        tokens = min(request.max_tokens, chance.randint(1, MOST_TOKENS))
        priority = request.priority if chance.random() < 0.8 else chance.choice(list(Priority))
        if chance.random() < NEW_SHARE:
            request = _unlike(request, len(asked))
        asked.append(replace(request, max_tokens=tokens, priority=priority))
    return asked


def _unlike(request: Request, number: int) -> Request:
    """The request with a question that was never put before, so that there is always more to remember."""
    if not isinstance(request.prompt, ChatPrompt):
        return request
    *before, last = request.prompt.messages
    said = replace(last, content=f"Question {number}. {last.content}")
    return replace(request, prompt=replace(request.prompt, messages=(*before, said)))


async def ask(engine: LlamaEngine, request: Request) -> str:
    """Put a request; how it ended."""
    endings = 0
    try:
        async with asyncio.timeout(PATIENCE_S), aclosing(engine.stream(request)) as stream:
            async for piece in stream:
                endings += piece.finish is not None
    except TimeoutError:
        return LOST
    except NexoError as error:
        return TWICE if endings else f"error: {type(error).__name__}"
    return {0: LOST, 1: FINISHED}.get(endings, TWICE)


async def ask_or_leave(engine: LlamaEngine, request: Request, after_s: float | None) -> str:
    """The same; it is left after some time, if that is told and it has not ended by then."""
    task = asyncio.ensure_future(ask(engine, request))
    await asyncio.wait({task}, timeout=after_s)
    task.cancel()
    await asyncio.wait({task})
    return LEFT if task.cancelled() else task.result()


async def soak(engine: LlamaEngine, requests: list[Request], kills: int, chance: random.Random) -> Soak:
    """Put all requests, several at once."""
    record = Soak()
    waiting = iter(requests)
    kill_at = [len(requests) * (number + 1) // (3 * kills) for number in range(kills)]
    began = time.perf_counter()

    async def one_after_the_other() -> None:
        for request in waiting:
            after_s = chance.uniform(0, LEFT_WITHIN_S) if chance.random() < LEFT_SHARE else None
            ending = await ask_or_leave(engine, request, after_s)
            record.endings[ending] += 1
            if ending.startswith("error"):
                # What failed is asked again by nobody at once; a start after a crash has its back-off.
                await asyncio.sleep(1.0)
            _look(engine, record)
            if kill_at and record.ended >= kill_at[0]:
                kill_at.pop(0)
                record.kills += _kill(engine)

    await asyncio.gather(*(one_after_the_other() for _ in range(AT_ONCE)))
    record.seconds = time.perf_counter() - began
    record.left_over = await _left_over(engine)
    return record


async def _left_over(engine: LlamaEngine) -> int:
    """What the engine still counts; its worker tells now and then how much is under way."""
    left = 0
    for _ in range(50):
        await engine.count_tokens("settled?")
        left = engine.status().queued + engine.status().running
        if not left:
            break
        await asyncio.sleep(0.1)
    return left


def _look(engine: LlamaEngine, record: Soak) -> None:
    status = engine.status()
    if status.memory_bytes is not None and "pid" in status.extra:
        life = record.lives.setdefault(int(status.extra["pid"]), Life())
        life.sizes.append((record.ended, status.memory_bytes / 2**20))


def _kill(engine: LlamaEngine) -> int:
    pid = engine.status().extra.get("pid")
    if pid is None:
        return 0
    try:
        psutil.Process(int(pid)).kill()
    except psutil.NoSuchProcess:
        return 0
    return 1


async def run(path: Path, wanted: argparse.Namespace, folder: Path) -> Soak:
    """Soak an engine of its own."""

    async def model() -> Path:
        return path

    chance = random.Random(wanted.seed)
    # The tiny model has a token for each byte, so the same prompts are four times as long.
    options = LlamaOptions(
        context_tokens=32768 if wanted.tiny else 8192, idle_unload_s=0, prefix_folder=folder / "prefixes"
    )
    engine = LlamaEngine(model, options)
    try:
        return await soak(engine, await mixture(chance, wanted.requests), wanted.kills, chance)
    finally:
        await engine.close()


def table(record: Soak, title: str) -> Table:
    """The record for people."""
    made = Table("what", "", title=title)
    made.add_row("requests", str(record.ended))
    for name, count in record.endings.most_common():
        made.add_row(f"  {name}", str(count))
    made.add_row("workers killed", str(record.kills))
    made.add_row("left over in the engine", str(record.left_over))
    made.add_row("seconds", f"{record.seconds:.0f}")
    for pid, life in record.lives.items():
        growth = life.growth()
        told = "too short to tell" if growth is None else f"{growth:+.1%} after warm-up"
        made.add_row(f"worker {pid}", f"{life.requests} requests, {life.most:.0f} MiB at most, {told}")
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--json", action="store_true")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        path: Path | None = wanted.model
        if wanted.tiny:
            from tests.engine.tiny_gguf import write_tiny_model

            path = write_tiny_model(Path(name) / "tiny.gguf", context=32768)
        path = path or ModelStore(folders(os.environ).models, os.environ).pull("auto")
        record = asyncio.run(run(path, wanted, Path(name)))
    problems = record.problems(wanted.requests)
    if wanted.json:
        lives = {pid: life.sizes for pid, life in record.lives.items()}
        print(json.dumps({"endings": record.endings, "lives": lives, "problems": problems}, indent=2))
    else:
        Console().print(table(record, f"{path.name}\n{describe()}"))
        Console().print("\n".join(problems) or "Nothing was lost, and memory did not grow.")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()

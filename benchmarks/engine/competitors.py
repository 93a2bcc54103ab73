"""Who is measured: each takes our `Request`s and asks its engine for them in the engine's own way."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from benchmarks.engine.llama_python import LlamaPython
from benchmarks.engine.llama_server import LlamaServer
from nexo_lsp.engines.llama.engine import LlamaEngine, LlamaOptions
from nexo_lsp.generation import ChatPrompt, InfillPrompt, Message, Request, Role


@dataclass(frozen=True, slots=True)
class Setting:
    """What is the same for all."""

    model: Path
    threads: int
    scratch: Path
    """A folder that is empty at first and goes away with the run."""
    unpacked: Path
    """Where our engine keeps its copy of the model in the form that it computes with."""
    server: Path | None = None
    """The program `llama-server`, if there is one."""
    context_tokens: int = 8192


@dataclass(frozen=True, slots=True)
class Sample:
    """One measured thing: seconds from the request to the end, and what was made in them."""

    seconds: float
    tokens: int = 0
    first_s: float = 0.0
    """Seconds to the first token."""
    note: dict[str, float] = field(default_factory=dict[str, float])


_TYPED_AT_MOST = 8
"""A suggestion made so many characters ago may still be what comes next."""


class Missing(Exception):
    """A competitor is not on this machine; the text says what to do about it."""


class Competitor(Protocol):
    """An engine in a process of its own, which can be started again after it was closed."""

    name: str

    async def start(self) -> None:
        """Start it and have the model loaded. Raises `Missing`."""
        ...

    def stream(self, request: Request) -> AsyncGenerator[int, None]:
        """Ask, and give the number of tokens made so far as they come; closing it cancels the request."""
        ...

    async def ready(self) -> None:
        """Return once the engine takes the next message and nothing is left of what was cancelled."""
        ...

    @property
    def pid(self) -> int:
        """The process that holds the model."""
        ...

    async def close(self) -> None:
        """End it."""
        ...


class Ours:
    """The engine of this package, with its worker."""

    def __init__(self, setting: Setting, name: str = "nexo-lsp") -> None:
        self.name = name
        self._setting = setting
        self._engine: LlamaEngine | None = None
        self._shown: tuple[InfillPrompt, str] | None = None

    async def start(self) -> None:
        async def model() -> Path:
            return self._setting.model

        options = LlamaOptions(
            context_tokens=self._setting.context_tokens,
            threads=self._setting.threads,
            idle_unload_s=0,
            prefix_folder=self._setting.scratch / "prefixes",
            unpack_folder=self._setting.unpacked,
        )
        self._engine = LlamaEngine(model, options)
        await self._engine.count_tokens("load")

    @property
    def engine(self) -> LlamaEngine:
        """The engine; there is one between `start` and `close`."""
        if self._engine is None:
            raise RuntimeError("not started")
        return self._engine

    async def stream(self, request: Request) -> AsyncGenerator[int, None]:
        text = ""
        request = self._with_prediction(request)
        async with contextlib.aclosing(self.engine.stream(request)) as pieces:
            async for piece in pieces:
                text += piece.text
                if isinstance(request.prompt, InfillPrompt):
                    self._shown = request.prompt, text
                yield piece.usage.completion_tokens if piece.usage is not None else piece.tokens

    def _with_prediction(self, request: Request) -> Request:
        """A completion comes with the suggestion before it, as `CompletionService` does it.

        (The service would not even ask while somebody types along a suggestion; here every keystroke asks.)
        """
        prompt = request.prompt
        if self._shown is None or not isinstance(prompt, InfillPrompt):
            return request
        before, text = self._shown
        typed = prompt.prefix.removeprefix(before.prefix)
        if prompt.suffix != before.suffix or len(typed) > _TYPED_AT_MOST:
            return request
        return replace(request, prediction=text.removeprefix(typed))

    async def ready(self) -> None:
        await self.engine.count_tokens("ready?")

    @property
    def pid(self) -> int:
        return int(self.engine.status().extra["pid"])

    async def close(self) -> None:
        if self._engine is not None:
            await self._engine.close()
            self._engine = None


async def prepare(setting: Setting) -> None:
    """What our engine does once for each model file, like fetching it: no start pays for it again."""
    ours = Ours(setting)
    await ours.start()
    await ours.close()


async def timed(competitor: Competitor, request: Request) -> Sample:
    """Put one request and wait for its end."""
    began = time.perf_counter()
    first, tokens = 0.0, 0
    async with contextlib.aclosing(competitor.stream(request)) as stream:
        async for made in stream:
            tokens = made
            first = first or time.perf_counter() - began
    return Sample(time.perf_counter() - began, tokens, first)


async def cancelled(competitor: Competitor, request: Request, after_s: float) -> Sample:
    """Leave a request after some time, wherever it is then: seconds until the engine is ready again."""
    task = asyncio.ensure_future(timed(competitor, request))
    await asyncio.wait({task}, timeout=after_s)
    done = task.done()
    began = time.perf_counter()
    task.cancel()
    await asyncio.wait({task})
    await competitor.ready()
    return Sample(time.perf_counter() - began, note={"ended before": float(done)})


async def warm_up(competitor: Competitor) -> None:
    """A first small request, so that no measure pays for what a process does once."""
    messages = (Message(Role.USER, "Say yes."),)
    await timed(competitor, Request(ChatPrompt(messages), max_tokens=2))


OURS = "nexo-lsp"
SERVER, SERVER_LINE, SERVER_SPM = "llama-server", "llama-server, line apart", "llama-server --spm-infill"
SERVER_SLOTS = "llama-server -np 4"
SERVER_NGRAM, SERVER_NGRAM_MOD = "llama-server, ngram-simple", "llama-server, ngram-mod"
PYTHON, PYTHON_LOOKUP = "llama_cpp.Llama", "llama_cpp.Llama, prompt lookup"

# Measured, but no option that anybody would choose for this model: the table shows it, no goal refers to it.
UNCOUNTED = frozenset({SERVER_SPM})

# What the fill-in-the-middle presets of llama-server set, which its editor plug-ins tell users to start.
_PRESET = ("-b", "1024", "-ub", "1024", "--cache-reuse", "256")

_MAKE: dict[str, Callable[[Setting], Competitor]] = {
    OURS: Ours,
    SERVER: lambda setting: LlamaServer(SERVER, _server(setting), *_common(setting), options=_PRESET),
    # llama.vim and its like send the line that is being written apart (the server puts it before the suffix).
    SERVER_LINE: lambda setting: LlamaServer(
        SERVER_LINE, _server(setting), *_common(setting), options=_PRESET, line_apart=True
    ),
    # The suffix comes first, so it stays cached; no preset for this model family does so, since its answers
    # are much worse then (see `UNCOUNTED`).
    SERVER_SPM: lambda setting: LlamaServer(
        SERVER_SPM, _server(setting), *_common(setting), options=(*_PRESET, "--spm-infill")
    ),
    SERVER_SLOTS: lambda setting: LlamaServer(
        SERVER_SLOTS, _server(setting), *_common(setting), options=("-np", "4")
    ),
    SERVER_NGRAM: lambda setting: LlamaServer(
        SERVER_NGRAM, _server(setting), *_common(setting), options=("--spec-type", "ngram-simple")
    ),
    SERVER_NGRAM_MOD: lambda setting: LlamaServer(
        SERVER_NGRAM_MOD, _server(setting), *_common(setting), options=("--spec-type", "ngram-mod")
    ),
    PYTHON: lambda setting: LlamaPython(PYTHON, *_common(setting), lookup=False),
    PYTHON_LOOKUP: lambda setting: LlamaPython(PYTHON_LOOKUP, *_common(setting), lookup=True),
}


def make(name: str, setting: Setting) -> Competitor:
    """The competitor of that name, not started. Raises `Missing`."""
    return _MAKE[name](setting)


def _common(setting: Setting) -> tuple[Path, int, int]:
    return setting.model, setting.threads, setting.context_tokens


def _server(setting: Setting) -> Path:
    if setting.server is None:
        raise Missing("no llama-server; run with --build, or set NEXO_LLAMA_SERVER")
    return setting.server

"""What is asked: the requests that our own pipelines make, caught before they reach an engine.

So the competitors get the very texts, bounds and stop strings that an editor's user would cause, and this
file need not know how prompts are made. The code comes from this repository and from Python's own library.
"""

from __future__ import annotations

import contextlib
import sysconfig
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from pathlib import Path

from nexo_lsp.context.gather import Gatherer, outline_of
from nexo_lsp.context.prompts import Prompts
from nexo_lsp.documents import DocumentStore, Snapshot
from nexo_lsp.errors import NexoError
from nexo_lsp.generation import (
    Capabilities,
    ChatPrompt,
    EngineState,
    EngineStatus,
    FinishReason,
    Message,
    Piece,
    Priority,
    Request,
    Role,
    Usage,
)
from nexo_lsp.memory.answers import Answers
from nexo_lsp.offload import inline
from nexo_lsp.pipeline.actions import ActionKind, Offer, Task
from nexo_lsp.pipeline.complete import CompletionService
from nexo_lsp.pipeline.document import Documenter
from nexo_lsp.pipeline.review import NOTHING_FOUND
from nexo_lsp.pipeline.rewrite import Rewriter
from nexo_lsp.pipeline.step import Workbench
from nexo_lsp.pipeline.units import review_units
from nexo_lsp.settings import Settings
from nexo_lsp.storage import Database
from nexo_lsp.syntax.outline import SymbolKind
from nexo_lsp.text import Change, Range

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = Path(sysconfig.get_path("stdlib"))
URI = "file:///benchmark.py"

FILE_LINES = 400
TYPED_CHARACTERS, STEP = 60, 2
SUGGESTED_TOKENS = 16
LEAST_LINES, MOST_LINES = 40, 80
REVIEW_TOKENS = 200
"""What one review may answer at the most; the product's bound is higher, and answers seldom reach it."""

# What somebody begins to write between two methods. Each is cut to 60 characters, in the middle of a line.
_TYPED = (
    "    def line_count(self) -> int:\n        return len(self._lines_of(text))\n",
    "    def words(self, text: str) -> list[str]:\n        found = [word for word in text]\n",
    "    def is_empty(self, uri: str) -> bool:\n        document = self._documents[uri]\n",
    "    def longest(self) -> str:\n        names = sorted(self._names, key=len, reverse=True)\n",
    "    def rename(self, old: str, new: str) -> None:\n        if old not in self._names:\n",
    "    def total_size(self) -> int:\n        size = 0\n        for item in self.all():\n",
)
# One function of each is rewritten: the first that is neither too short nor too long.
_MODULES = (
    "argparse", "configparser", "difflib", "heapq", "json/decoder", "random", "shlex", "statistics",
    "tarfile", "textwrap", "fractions", "zipfile", "csv", "string",
)  # fmt: skip


class _Recorder:
    """An engine that notes what it is asked and answers nothing."""

    def __init__(self) -> None:
        self.asked: list[Request] = []

    def capabilities(self) -> Capabilities:
        return Capabilities(infill=True, json_schema=True, context_tokens=8192)

    def status(self) -> EngineStatus:
        return EngineStatus(EngineState.READY, "recorder")

    async def count_tokens(self, text: str) -> int:
        return len(text) // 3

    async def stream(self, request: Request) -> AsyncGenerator[Piece, None]:
        self.asked.append(request)
        yield Piece("", 0, FinishReason.STOP, Usage())

    async def close(self) -> None:
        return


def _bench(documents: DocumentStore, engine: _Recorder) -> Workbench:
    async def refresh(*_snapshots: Snapshot) -> None:
        return

    return Workbench(
        documents=documents,
        # Neither rewrites nor completions look for remembered answers, so this file is never made.
        answers=Answers(Database(Path("unused.db")), inline),
        gatherer=Gatherer(),
        prompts=Prompts(),
        offload=inline,
        engine=lambda: engine,
        settings=Settings,
        model_key=lambda: "benchmark",
        permitted=lambda _snapshot: None,
        context_of=lambda _snapshot: True,
        refresh=refresh,
    )


def long_file() -> str:
    """A Python file of 400 lines, from this package's own sources."""
    names = ("documents.py", "ignore.py")
    text = "".join((ROOT / "nexo_lsp" / name).read_text("utf-8") for name in names)
    return "".join(text.splitlines(keepends=True)[:FILE_LINES])


async def keystrokes(place: int, count: int = TYPED_CHARACTERS // STEP) -> list[Request]:
    """One request before the first keystroke and `count` after every second character that is typed.

    `place` chooses where in the middle of the file and what is written, so that nothing of an earlier place
    helps, but the parts of the file that both show. Nothing but the number of tokens ends an answer.
    """
    documents, recorder = DocumentStore(), _Recorder()
    service = CompletionService(_bench(documents, recorder))
    lines = long_file().splitlines(keepends=True)
    methods = [number for number, line in enumerate(lines) if line.startswith("    def ")]
    later = [number for number in methods if number >= FILE_LINES // 3]
    before = "".join(lines[: later[place % len(later)]])
    typed = _TYPED[place % len(_TYPED)][:TYPED_CHARACTERS]
    after = "\n\n" + "".join(lines[later[place % len(later)] :])
    documents.open(URI, "python", 0, before + after)
    for number in range(count + 1):
        offset = len(before) + number * STEP
        if number:
            snapshot = documents.get(URI)
            at = snapshot.position(offset - STEP)
            new = typed[(number - 1) * STEP : number * STEP]
            documents.change(URI, number, [Change(Range(at, at), new)])
            service.changed(URI)
        await service.complete(URI, offset, explicit=True)
    if len(recorder.asked) != count + 1:
        raise RuntimeError(f"{len(recorder.asked)} requests were made for {count + 1} keystrokes")
    return [
        replace(request, max_tokens=SUGGESTED_TOKENS, stop=(), deadline_s=None) for request in recorder.asked
    ]


async def rewrites(count: int = 10) -> list[Request]:
    """To optimise and to document `count` functions of 40 to 80 lines, as the code actions ask for it."""
    asked: list[Request] = []
    for name in _MODULES:
        path = LIBRARY / f"{name}.py"
        if len(asked) < 2 * count and path.exists():
            asked += await _rewrites_of(path.read_text("utf-8"))
    return asked[: 2 * count]


async def _rewrites_of(text: str) -> list[Request]:
    documents, recorder = DocumentStore(), _Recorder()
    bench = _bench(documents, recorder)
    snapshot = documents.open(URI, "python", 0, text)
    for symbol in outline_of(snapshot).symbols:
        code = text[symbol.span.start : symbol.span.end]
        function = symbol.kind in (SymbolKind.FUNCTION, SymbolKind.METHOD) and not symbol.stub
        if not function or not LEAST_LINES <= code.count("\n") + 1 <= MOST_LINES:
            continue
        for kind, worker in (
            (ActionKind.OPTIMIZE, Rewriter(bench)),
            (ActionKind.DOCUMENT, Documenter(bench)),
        ):
            before = len(recorder.asked)
            task = Task(snapshot, Offer(kind, str(kind), symbol.span), symbol.span, symbol)
            # The recorder's answer is empty, which no action accepts.
            with contextlib.suppress(NexoError):
                await worker(task, lambda _progress: None)
            del recorder.asked[before + 1 :]
        break
    return recorder.asked


def last_code(request: Request) -> str:
    """The code that a chat is about: what stands in the last code block of its question."""
    if not isinstance(request.prompt, ChatPrompt):
        return ""
    return request.prompt.messages[-1].content.rstrip("`").rpartition("```")[2].partition("\n")[2]


def reviews(count: int = 40) -> list[Request]:
    """A review of the first `count` functions of one file, each shown with the same head of the file."""
    text = (ROOT / "nexo_lsp" / "documents.py").read_text("utf-8")
    snapshot = DocumentStore().open(URI, "python", 0, text)
    prompts, most = Prompts(), Settings().review.max_findings
    imports = outline_of(snapshot).imports
    header = "\n".join(text[span.start : span.end] for span in imports)
    requests = [
        Request(
            prompt=prompts.review(snapshot.language, unit.code, header),
            max_tokens=REVIEW_TOKENS,
            session="review",
            json_schema=prompts.review_schema(unit.code, most),
            logit_bias=prompts.review_bias(unit.code),
            prediction=NOTHING_FOUND,
            priority=Priority.BACKGROUND,
        )
        for unit in review_units(snapshot)
    ]
    return requests[:count]


def chat(question: str, tokens: int, *, code: str = "") -> Request:
    """A question without anything around it."""
    messages = (Message(Role.SYSTEM, "You are a helpful programmer."), Message(Role.USER, question + code))
    return Request(ChatPrompt(messages), max_tokens=tokens, session="chat")


def long_chats(count: int) -> Sequence[Request]:
    """Questions about long code that begin differently, so that nothing of them is in any cache."""
    lines = long_file().splitlines(keepends=True)
    return [
        chat(
            f"Number {number}: explain this code line by line.\n",
            64,
            code="".join(lines[number : number + 90]),
        )
        for number in range(count)
    ]

"""What a review under way consists of: its run over a document, what it has found, what it waits for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from nexo_lsp.documents import Snapshot
from nexo_lsp.errors import BadAnswer
from nexo_lsp.generation import Priority
from nexo_lsp.pipeline.findings import Finding
from nexo_lsp.pipeline.step import Pool
from nexo_lsp.pipeline.units import Unit
from nexo_lsp.text import Span

# Functions that are asked about at once: an engine that writes several answers in one step is quicker so,
# and one that does not lets them wait.
AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class ReviewReport:
    """The findings of a review; incomplete if the document changed or the job was stopped on the way."""

    version: int
    findings: tuple[Finding, ...]
    complete: bool


@dataclass(frozen=True, slots=True)
class ReviewProgress:
    """How far a review is: units done and in all, the function at hand, tokens made for it so far."""

    done: int
    total: int
    symbol: str
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Remark:
    """A finding as it is stored: without its place, which follows from the quote."""

    quote: str
    category: str
    severity: str
    message: str
    suggestion: str


@dataclass(slots=True)
class Run:
    """A review of one document that is under way."""

    version: int
    priority: Priority
    task: asyncio.Task[ReviewReport] | None = None
    listeners: list[Callable[[ReviewProgress], None]] = field(
        default_factory=list[Callable[[ReviewProgress], None]]
    )
    held: dict[str, Span] = field(default_factory=dict[str, Span])
    """The keys and places of functions at work: this run's, and what a run before it had begun."""
    wanted: asyncio.Event = field(default_factory=asyncio.Event)
    """Set as soon as somebody waits for it."""

    def urge(self, priority: Priority) -> None:
        """Somebody asks for it with this priority."""
        self.priority = min(self.priority, priority)
        if self.priority < Priority.BACKGROUND:
            self.wanted.set()

    def tell(self, progress: ReviewProgress) -> None:
        """Let all listeners know."""
        for listener in self.listeners:
            listener(progress)


@dataclass(slots=True)
class Pass:
    """What a run has found and is asking for."""

    snapshot: Snapshot
    run: Run
    units: Sequence[Unit]
    others: Sequence[Snapshot]
    asking: Pool[tuple[Remark, ...] | None]
    found: dict[int, tuple[Finding, ...]] = field(default_factory=dict[int, tuple[Finding, ...]])
    """By the unit's index; those that are missing have no answer yet, or will have none."""
    asked: dict[str, list[int]] = field(default_factory=dict[str, list[int]])
    """The units that wait for an answer, by its key."""
    complete: bool = True

    def teller(self, unit: Unit) -> Callable[[str, int], None]:
        """Tells the run's listeners how far `unit` is."""

        def tell(_text: str, tokens: int) -> None:
            self.run.tell(ReviewProgress(len(self.found), len(self.units), unit.symbol, tokens))

        return tell


def parse_remarks(text: str) -> tuple[Remark, ...]:
    """The remarks of an answer. Raises `BadAnswer`."""
    try:
        answer: Any = json.loads(text)
        return tuple(
            Remark(*(str(item[name]) for name in ("quote", "category", "severity", "message", "suggestion")))
            for item in answer["findings"]
        )
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise BadAnswer(f"The model's review could not be read and was left out ({error}).") from error

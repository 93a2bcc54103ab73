"""Inline completion: ghost text at the cursor, by fill-in-the-middle."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from nexo_lsp.context.budget import first_lines, last_lines
from nexo_lsp.generation import Priority, Request
from nexo_lsp.pipeline.code import ends_of_block, without_repetition
from nexo_lsp.pipeline.step import Workbench, infer
from nexo_lsp.text import Span

_BEFORE_TOKENS, _AFTER_TOKENS = 700, 250
_DEADLINE_S = 15.0
# Suggestions remembered for each document; each is a few hundred bytes and the text before it.
_SHOWN_KEPT = 8
_LEAST_DEBOUNCE_S, _MOST_DEBOUNCE_S = 0.05, 0.8


@dataclass(frozen=True, slots=True)
class Selected:
    """The entry that is selected in the editor's own completion list, and what it would replace."""

    span: Span
    text: str


@dataclass(frozen=True, slots=True)
class Completion:
    """A suggestion: replace `span` (usually empty) by `text`."""

    id: str
    text: str
    span: Span


@dataclass(frozen=True, slots=True)
class _Shown:
    """A suggestion that was made, with the text on both sides of it."""

    before: str
    after: str
    text: str


class Rhythm:
    """How fast the user types and how long answers take, and the pause that follows from both."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._last: float | None = None
        self._gaps: deque[float] = deque(maxlen=10)
        self._latency: float | None = None

    def keystroke(self) -> None:
        """A request came; the time since the one before tells the rhythm if it is short enough for typing."""
        now = self._clock()
        if self._last is not None and now - self._last < 1.0:
            self._gaps.append(now - self._last)
        self._last = now

    def answered(self, seconds: float) -> None:
        """An answer took so long; later ones count more."""
        self._latency = seconds if self._latency is None else 0.7 * self._latency + 0.3 * seconds

    def pause_s(self) -> float:
        """How long to wait for the next keystroke before the engine is asked.

        A bit more than the usual gap between keystrokes, so that the engine starts when the typing stops. A
        slow engine makes it longer still, since each start in vain costs more then; a quick one shorter.
        """
        gap = sum(self._gaps) / len(self._gaps) if self._gaps else 0.15
        latency = self._latency if self._latency is not None else 0.5
        return min(_MOST_DEBOUNCE_S, max(_LEAST_DEBOUNCE_S, 1.2 * gap * min(2.0, max(0.3, latency / 0.5))))


class CompletionService:
    """Answers inline completion requests, at most one at a time for each document."""

    def __init__(self, bench: Workbench, clock: Callable[[], float] = time.monotonic) -> None:
        self._bench = bench
        self._clock = clock
        self.rhythm = Rhythm(clock)
        self._ids = itertools.count(1)
        self._newest: dict[str, asyncio.Future[None]] = {}
        self._shown: dict[str, deque[_Shown]] = {}
        self.accepted_count = 0

    async def complete(
        self, uri: str, offset: int, *, explicit: bool, selected: Selected | None = None
    ) -> Completion | None:
        """A suggestion at `offset`, or None.

        A newer call for the same document makes this one answer None at once. An `explicit` call does not
        wait for a pause in typing. Cancelling ends the engine's work.
        """
        superseded = self._supersede(uri)
        bench = self._bench
        snapshot = bench.documents.get(uri)
        settings = bench.settings().completion
        if not settings.enabled or bench.permitted(snapshot):
            return None
        before, after = snapshot.text[:offset], snapshot.text[offset:]
        span = Span(offset, offset)
        lead = ""
        if selected is not None:
            before = snapshot.text[: selected.span.start] + selected.text
            after = snapshot.text[selected.span.end :]
            span, lead = selected.span, selected.text
        self.rhythm.keystroke()
        remembered = self._remembered(uri, before, after)
        if remembered is not None:
            return Completion(self._id(), lead + remembered, span) if remembered else None
        if not explicit and not _worth_asking(before, after):
            return None
        if not explicit and await self._pause(superseded, settings.debounce_ms):
            return None
        await bench.refresh(snapshot)
        if superseded.done() or bench.permitted(snapshot):
            return None
        text = await self._ask(before, after, superseded, settings.max_tokens)
        if not text:
            return None
        self._shown.setdefault(uri, deque(maxlen=_SHOWN_KEPT)).appendleft(_Shown(before, after, text))
        return Completion(self._id(), lead + text, span)

    def accepted(self, completion_id: str) -> None:
        """The user took the suggestion `completion_id`."""
        del completion_id
        self.accepted_count += 1

    def closed(self, uri: str) -> None:
        """The document was closed."""
        self._supersede(uri)
        self._newest.pop(uri, None)
        self._shown.pop(uri, None)

    def stop(self) -> None:
        """Answer every waiting request with None and end the engine's work on it."""
        for uri in list(self._newest):
            self._supersede(uri)

    def _supersede(self, uri: str) -> asyncio.Future[None]:
        older = self._newest.get(uri)
        if older is not None and not older.done():
            older.set_result(None)
        newest: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._newest[uri] = newest
        return newest

    async def _pause(self, superseded: asyncio.Future[None], debounce_ms: int | None) -> bool:
        """Wait for a pause in typing; True if a newer request came meanwhile."""
        seconds = self.rhythm.pause_s() if debounce_ms is None else debounce_ms / 1000
        if seconds > 0:
            await asyncio.wait({superseded}, timeout=seconds)
        return superseded.done()

    async def _ask(
        self, before: str, after: str, superseded: asyncio.Future[None], max_tokens: int
    ) -> str | None:
        """The engine's suggestion, fitted into its place; None if a newer request came meanwhile."""
        task = asyncio.get_running_loop().create_task(
            self._generate(before, after, max_tokens), name="nexo:complete"
        )
        try:
            await asyncio.wait({task, superseded}, return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() else None
        finally:
            if not task.done():
                task.cancel()

    async def _generate(self, before: str, after: str, max_tokens: int) -> str:
        bench = self._bench
        shown_before, shown_after = _window(before, after)
        multiline = _wants_block(before, after)
        indent = _indent_of_block(before)
        request = Request(
            prompt=bench.prompts.infill("", shown_before, shown_after),
            max_tokens=max_tokens,
            session="infill",
            stop=() if multiline else ("\n",),
            priority=Priority.INTERACTIVE,
            deadline_s=_DEADLINE_S,
        )

        def on_piece(text: str, _tokens: int) -> bool:
            return multiline and ends_of_block(text, indent) < len(text.rstrip())

        started = self._clock()
        answer = await infer(bench.engine(), request, on_piece)
        self.rhythm.answered(self._clock() - started)
        text = answer.text
        if multiline:
            text = text[: ends_of_block(text, indent)]
        text = without_repetition(text.rstrip(), after)
        return text if text.strip() else ""

    def _remembered(self, uri: str, before: str, after: str) -> str | None:
        """What is left of a suggestion that the user is typing along; empty if all of it has been typed."""
        for shown in self._shown.get(uri, ()):
            typed = before[len(shown.before) :]
            if (
                len(before) >= len(shown.before)
                and after == shown.after
                and shown.text.startswith(typed)
                and before.startswith(shown.before)
            ):
                return shown.text[len(typed) :]
        return None

    def _id(self) -> str:
        return f"c{next(self._ids)}"


def _window(before: str, after: str) -> tuple[str, str]:
    """The parts of `before` and `after` nearest to the cursor that fit the prompt, in whole lines."""
    # Counting tokens in all of a huge file would cost more than the rest; these ends are more than enough.
    limit = 24_000
    return last_lines(before[-limit:], _BEFORE_TOKENS), first_lines(after[:limit], _AFTER_TOKENS)


def _worth_asking(before: str, after: str) -> bool:
    """Whether a suggestion could fit here: not inside a word, and not in an empty file."""
    if not before.strip() and not after.strip():
        return False
    return not (after[:1].isalnum() or after[:1] == "_")


def _wants_block(before: str, after: str) -> bool:
    """Whether several lines may be suggested: the cursor stands on an otherwise empty line."""
    line_before = before[max(before.rfind("\n"), before.rfind("\r")) + 1 :]
    rest_of_line = after.partition("\n")[0]
    return not line_before.strip() and not rest_of_line.strip()


def _indent_of_block(before: str) -> str:
    """The indentation that the lines of a suggested block have at least."""
    line = before[max(before.rfind("\n"), before.rfind("\r")) + 1 :]
    return line[: len(line) - len(line.lstrip())]

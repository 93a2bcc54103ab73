"""Inline completion: ghost text at the cursor, by fill-in-the-middle."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from nexo_lsp.context.budget import estimate_tokens
from nexo_lsp.context.window import Windows
from nexo_lsp.generation import FinishReason, Operation, Priority, Request
from nexo_lsp.pipeline.closers import closers_behind, until_closed
from nexo_lsp.pipeline.code import end_of_definition, ends_of_block, unix, without_repetition
from nexo_lsp.pipeline.step import Workbench, infer
from nexo_lsp.syntax.languages import Language
from nexo_lsp.text import Span

_BEFORE_TOKENS, _AFTER_TOKENS = 700, 250
_DEADLINE_S = 15.0
# Suggestions remembered for each document, and how much of the text on both sides each is known by.
_SHOWN_KEPT, _SIDE = 8, 500
# Of a huge file only what is near the cursor is looked at; this is more than any prompt holds.
_NEAR = 24_000
_LEAST_DEBOUNCE_S, _MOST_DEBOUNCE_S = 0.05, 0.8


@dataclass(frozen=True, slots=True)
class Selected:
    """The entry that is selected in the editor's own completion list, and what it would replace."""

    span: Span
    text: str


@dataclass(frozen=True, slots=True)
class Completion:
    """A suggestion: replace `span` (usually empty) by `text`, whose lines end with line feeds."""

    id: str
    """What remains of one suggestion, as it is typed along, keeps its id."""
    text: str
    span: Span


@dataclass(frozen=True, slots=True)
class _Cursor:
    """What is near the cursor, with line feeds, and with the editor's selected entry taken for typed."""

    before: str
    after: str
    offset: int
    """How much text there is before the cursor in all, in code points of the document."""
    left: int
    """How much there is behind it in all."""
    raw: str
    """`before` as it stands in the document."""

    @staticmethod
    def at(text: str, span: Span, lead: str) -> _Cursor:
        """The cursor at the end of `span`, which `lead` stands for."""
        raw = text[max(0, span.start - _NEAR) : span.start] + lead
        after = text[span.end : span.end + _NEAR]
        return _Cursor(unix(raw), unix(after), span.start + len(lead), len(text) - span.end, raw)


@dataclass(frozen=True, slots=True)
class _Shown:
    """A suggestion that was made, with some text on both sides of it."""

    id: str
    cursor: int
    left: int
    before: str
    after: str
    text: str

    @staticmethod
    def of(identity: str, cursor: _Cursor, text: str) -> _Shown:
        """The suggestion `text` at `cursor`."""
        return _Shown(
            identity, cursor.offset, cursor.left, cursor.before[-_SIDE:], cursor.after[:_SIDE], text
        )

    def leads_to(self, cursor: _Cursor) -> bool:
        """Whether it was suggested in front of the same text that is behind `cursor`."""
        return cursor.left == self.left and cursor.after.startswith(self.after)

    def rest(self, cursor: _Cursor) -> str | None:
        """What is left of it if the user has typed along up to `cursor`, else None."""
        typed = cursor.offset - self.cursor
        if not 0 <= typed <= len(cursor.raw):
            return None
        split = len(cursor.raw) - typed
        along = unix(cursor.raw[split:])
        if (
            self.leads_to(cursor)
            and self.text.startswith(along)
            and unix(cursor.raw[:split]).endswith(self.before)
        ):
            return self.text[len(along) :]
        return None


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
        self._windows: dict[str, Windows] = {}

    async def complete(
        self, uri: str, offset: int, *, explicit: bool, selected: Selected | None = None
    ) -> Completion | None:
        """A suggestion at `offset`, or None.

        A newer call for the same document makes this one answer None at once. An `explicit` call does not
        wait for a pause in typing. Cancelling ends the engine's work.
        """
        bench = self._bench
        snapshot = bench.documents.get(uri)
        superseded = self._supersede(uri)
        settings = bench.settings().completion
        if not settings.enabled or bench.permitted(snapshot):
            return None
        span, lead = (selected.span, selected.text) if selected is not None else (Span(offset, offset), "")
        cursor = _Cursor.at(snapshot.text, span, lead)
        self.rhythm.keystroke()
        for shown in self._shown.get(uri, ()):
            rest = shown.rest(cursor)
            if rest:
                return Completion(shown.id, lead + rest, span)
            if rest is not None and not explicit:
                # It was typed to its end, which is where the model would have stopped.
                return None
        if not _fits(cursor) or not (explicit or _worth_asking(cursor)):
            return None
        if not explicit and await self._pause(superseded, settings.debounce_ms):
            return None
        await bench.refresh(snapshot)
        if superseded.done() or bench.permitted(snapshot):
            return None
        request = self._request(uri, cursor, settings.max_tokens)
        text = await self._ask(snapshot.language, cursor, request, superseded)
        if not text or superseded.done():
            return None
        shown = _Shown.of(f"c{next(self._ids)}", cursor, text)
        self._shown.setdefault(uri, deque(maxlen=_SHOWN_KEPT)).appendleft(shown)
        return Completion(shown.id, lead + text, span)

    def accepted(self, completion_id: str) -> None:
        """The user took the suggestion: at its end the next one is asked for."""
        for kept in self._shown.values():
            for shown in [shown for shown in kept if shown.id == completion_id]:
                kept.remove(shown)

    def changed(self, uri: str) -> None:
        """The document was edited: what is being worked on is for a text that is gone."""
        waiting = self._newest.get(uri)
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    def closed(self, uri: str) -> None:
        """The document was closed."""
        self._supersede(uri)
        self._newest.pop(uri, None)
        self._shown.pop(uri, None)
        self._windows.pop(uri, None)

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
        self,
        language: Language | None,
        cursor: _Cursor,
        request: Request,
        superseded: asyncio.Future[None],
    ) -> str | None:
        """The engine's suggestion, fitted into its place; None if a newer request came meanwhile."""
        task = asyncio.get_running_loop().create_task(
            self._generate(language, cursor, request), name="nexo:complete"
        )
        # Nobody looks at an error that comes while the task is being cancelled.
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            await asyncio.wait({task, superseded}, return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() else None
        finally:
            if not task.done():
                task.cancel()

    def _request(self, uri: str, cursor: _Cursor, max_tokens: int) -> Request:
        windows = self._windows.setdefault(uri, Windows(_BEFORE_TOKENS, _AFTER_TOKENS))
        window = windows.around(cursor.before, cursor.after.removeprefix(closers_behind(cursor.after)))
        # Whoever departs from a suggestion mostly does so in a few characters of it.
        near = (shown.text for shown in self._shown.get(uri, ()) if shown.leads_to(cursor))
        return Request(
            prompt=self._bench.prompts.infill(
                window.prefix, window.suffix, *self._bench.infill_of(Operation.COMPLETION)
            ),
            max_tokens=max_tokens,
            session="infill",
            stop=() if _wants_block(cursor) else ("\n",),
            prediction=next(near, ""),
            priority=Priority.INTERACTIVE,
            deadline_s=_DEADLINE_S,
        )

    async def _generate(self, language: Language | None, cursor: _Cursor, request: Request) -> str:
        multiline = _wants_block(cursor)
        indent = _indent_of_block(cursor.before)
        closers = closers_behind(cursor.after)

        def end(text: str) -> int:
            """Where the block that the cursor stands in ends, by indentation and by syntax."""
            end = ends_of_block(text, indent)
            return min(end, end_of_definition(language, text[:end], indent))

        def on_piece(text: str, _tokens: int) -> bool:
            if closers:
                return len(until_closed(text, closers)) < len(text)
            return multiline and "\n" in text and end(text) < len(text.rstrip())

        started = self._clock()
        answer = await infer(self._bench.engine(Operation.COMPLETION), request, on_piece)
        self.rhythm.answered(self._clock() - started)
        text = unix(answer.text)
        if multiline:
            whole, text = text, text[: end(text)]
            if answer.finish is not FinishReason.STOP and text == whole:
                # The last line may be half a line.
                text = text.rpartition("\n")[0] or text
        if closers:
            text = until_closed(text, closers)
        text = without_repetition(text.rstrip(), cursor.after)
        return text if text.strip() else ""


def _fits(cursor: _Cursor) -> bool:
    """Whether the line that is written on fits the prompt (minified code does not)."""
    before, after = _line_before(cursor.before), cursor.after.partition("\n")[0]
    return estimate_tokens(before) <= _BEFORE_TOKENS and estimate_tokens(after) <= _AFTER_TOKENS


def _line_before(before: str) -> str:
    return before[before.rfind("\n") + 1 :]


def _worth_asking(cursor: _Cursor) -> bool:
    """Whether a suggestion could fit here: not inside a word, and not in an empty file."""
    if not cursor.before.strip() and not cursor.after.strip():
        return False
    return not (cursor.after[:1].isalnum() or cursor.after[:1] == "_")


def _wants_block(cursor: _Cursor) -> bool:
    """Whether several lines may be suggested: the cursor stands on an otherwise empty line."""
    return not _line_before(cursor.before).strip() and not cursor.after.partition("\n")[0].strip()


def _indent_of_block(before: str) -> str:
    """The indentation that the lines of a suggested block have at least."""
    line = _line_before(before)
    return line[: len(line) - len(line.lstrip())]

"""Docs as hover: what the tree knows at once, and a short explanation by the model."""

from __future__ import annotations

import asyncio
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nexo_lsp.context.gather import outline_of
from nexo_lsp.context.index import DefinitionIndex
from nexo_lsp.documents import Snapshot
from nexo_lsp.errors import NexoError
from nexo_lsp.generation import Operation, Priority, Request
from nexo_lsp.memory.answers import answer_key
from nexo_lsp.pipeline.step import SharedJobs, Workbench, infer, joined
from nexo_lsp.pipeline.units import dedented
from nexo_lsp.syntax.outline import CodeKind, Symbol
from nexo_lsp.text import Edit, Span, shift_span

_CONTEXT_TOKENS = 200
_MAX_TOKENS = 96
# A huge file that was just opened is being parsed: the hover after this one finds it done.
_PARSE_S = 2.0
# Failures that nobody hovered over again are kept up to this number.
_MOST_FAILED = 64
# More than this much code is not read for two sentences; its beginning says what it does.
_MOST_CODE = 3000


@dataclass(frozen=True, slots=True)
class HoverAnswer:
    """What is known of a symbol."""

    snapshot: Snapshot
    """The document as it was when the symbol was looked up."""
    span: Span
    """The word that the cursor is on, in `snapshot`."""
    language_id: str
    signature: str
    doc: str | None
    explanation: str | None
    pending: bool
    """The explanation is on its way: the next hover has it."""
    note: str | None = None
    """Why there is no explanation and will be none, if that is worth saying."""


class HoverService:
    """Answers hovers. Explanations are shared by all who ask for the same code."""

    def __init__(self, bench: Workbench) -> None:
        self._bench = bench
        self._jobs: SharedJobs[str] = SharedJobs()
        self._index = DefinitionIndex()
        self._places: dict[str, dict[str, Span]] = {}
        self._failed: dict[str, str] = {}
        self.on_failure: Callable[[NexoError], None] = lambda _error: None
        """Called when an explanation could not be made."""

    async def hover(self, uri: str, offset: int) -> HoverAnswer | None:
        """What is known of the symbol at `offset`; waits for the model at most `hover.waitMs`."""
        bench = self._bench
        asked = bench.documents.get(uri)
        await bench.refresh(*bench.documents.all())
        snapshot = await self._parsed(uri)
        edits = bench.documents.edits_after(asked)
        place = None if edits is None else shift_span(Span(offset, offset), edits)
        found = None if snapshot is None or place is None else await self._symbol(snapshot, place.start)
        if snapshot is None or found is None:
            return None
        word, home, symbol = found

        def answer(explanation: str | None, *, pending: bool = False, note: str | None = None) -> HoverAnswer:
            return HoverAnswer(
                snapshot,
                word,
                home.language_id,
                textwrap.dedent(symbol.signature),
                symbol.doc,
                explanation,
                pending,
                note,
            )

        settings = bench.settings()
        if not settings.hover.explain or bench.permitted(snapshot) or bench.permitted(home):
            return answer(None)
        key, request = self._request(home, symbol)
        cached = await bench.answers.get(key)
        if cached is not None:
            return answer(cached)
        if (reason := self._failed.pop(key, None)) is not None:
            # Said once; the hover after this one tries again.
            return answer(None, note=reason)
        edits = bench.documents.edits_after(home)
        place = None if edits is None else shift_span(symbol.span, edits)
        if place is None:
            return answer(None)
        job = self._jobs.start(key, lambda: self._explain(key, request))
        places = self._places.setdefault(home.uri, {})
        places[key] = place
        job.add_done_callback(lambda _job: places.pop(key, None))
        done, _ = await asyncio.wait({job}, timeout=settings.hover.wait_ms / 1000)
        if not done or job.cancelled():
            return answer(None, pending=not done)
        try:
            return answer(await joined(job))
        except NexoError as error:
            self._failed.pop(key, None)
            return answer(None, note=str(error))

    def changed(self, snapshot: Snapshot, edits: Sequence[Edit]) -> None:
        """The document was edited: work on explanations of code that was touched ends."""
        places = self._places.get(snapshot.uri, {})
        for key, span in list(places.items()):
            moved = shift_span(span, edits)
            if moved is None:
                del places[key]
                self._jobs.cancel(key)
            else:
                places[key] = moved

    def closed(self, uri: str) -> None:
        """The document was closed: the work on its explanations ends."""
        for key in list(self._places.pop(uri, {})):
            self._jobs.cancel(key)

    def stop(self) -> None:
        """End all work."""
        self._jobs.cancel_all()
        self._places.clear()

    async def _parsed(self, uri: str) -> Snapshot | None:
        """The document with its tree; None if that takes longer than anyone keeps the mouse still."""
        try:
            return await asyncio.wait_for(self._bench.documents.parsed(uri), _PARSE_S)
        except TimeoutError:
            return None

    async def _symbol(self, snapshot: Snapshot, offset: int) -> tuple[Span, Snapshot, Symbol] | None:
        """The word at `offset`, and the definition that it names, with the document that holds it."""
        word = _word_at(snapshot.text, offset)
        if word is None or snapshot.tree is None or snapshot.tree.code_kind_at(offset) is not CodeKind.CODE:
            return None
        name = snapshot.text[word.start : word.end]
        outline = outline_of(snapshot)
        for symbol in outline.symbols:
            if symbol.name_span == word:
                return word, snapshot, symbol
        definitions = self._index.find(name, (snapshot,))
        if not definitions:
            others = await self._bench.others(snapshot)
            same_language = [other for other in others if other.language == snapshot.language]
            definitions = self._index.find(name, same_language)
        return (word, definitions[0].snapshot, definitions[0].symbol) if definitions else None

    def _request(self, home: Snapshot, symbol: Symbol) -> tuple[str, Request]:
        bench = self._bench
        around = bench.gatherer.surroundings(home, symbol.span, (), _CONTEXT_TOKENS)
        code = dedented(home, symbol.span)
        if len(code) > _MOST_CODE:
            code = code[:_MOST_CODE].rsplit("\n", 1)[0]
        prompt = bench.prompts.action(
            "hover", home.language, code, context=around.enclosing, words={"name": symbol.name}
        )
        key = answer_key(
            "hover",
            bench.model_key(Operation.ACTION),
            bench.prompts.version,
            *(message.content for message in prompt.messages),
        )
        return key, Request(
            prompt=prompt, max_tokens=_MAX_TOKENS, session="hover", priority=Priority.FOREGROUND
        )

    async def _explain(self, key: str, request: Request) -> str:
        try:
            answer = await infer(self._bench.engine(Operation.ACTION), request)
        except NexoError as error:
            self._failed[key] = str(error)
            if len(self._failed) > _MOST_FAILED:
                del self._failed[next(iter(self._failed))]
            self.on_failure(error)
            raise
        text = _whole_sentences(answer.text.strip())
        if not answer.stand_in:
            await self._bench.answers.put(key, "hover", text)
        return text


def _word_at(text: str, offset: int) -> Span | None:
    """The identifier around `offset`."""

    def part(index: int) -> bool:
        return 0 <= index < len(text) and (text[index].isalnum() or text[index] in "_$")

    start = end = offset
    while part(start - 1):
        start -= 1
    while part(end):
        end += 1
    return Span(start, end) if end > start and not text[start].isdigit() else None


def _whole_sentences(text: str) -> str:
    """`text` up to its last full stop, if it was cut off behind one."""
    if text.endswith((".", "!", "?", "`")):
        return text
    end = text.rfind(". ")
    return text[: end + 1] if end > 0 else text

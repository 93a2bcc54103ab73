"""The open documents: their texts, versions, line indexes and trees.

A `Snapshot` is a document at one version and never changes. Opening, changing and closing are synchronous and
in order; a parse happens when somebody asks for the tree, from the tree before it and the edits in between.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote, urlsplit

from nexo_lsp.errors import DocumentError, DocumentNotOpen
from nexo_lsp.offload import Offload, inline
from nexo_lsp.syntax.languages import Language, language_for
from nexo_lsp.syntax.parsing import StaleTree, SyntaxTree, parse
from nexo_lsp.text import Change, Edit, LineIndex, Position, PositionEncoding, Range, Span

_log = logging.getLogger(__name__)

# From this size on (in code points; some 1,800 lines) a first parse takes long enough to be felt in typing.
LARGE_TEXT = 65_536
# How many edits a document remembers; what was asked further back than that is stale.
_HISTORY = 1_000
# Views that an editor shows and nobody can write to.
_READ_ONLY_SCHEMES = frozenset({"git", "gitlens", "gitlens-git", "review", "nexo", "output", "jdt", "deno"})


class _TreeSlot:
    """Where one snapshot's tree is, or what it will be made from. Used on the event loop only."""

    __slots__ = ("done", "language", "old", "text", "tree")

    def __init__(self, language: Language | None, text: str, old: StaleTree | None) -> None:
        self.language = language
        self.text = text
        self.old = old
        self.tree: SyntaxTree | None = None
        self.done = language is None

    def get(self) -> SyntaxTree | None:
        if not self.done and self.language is not None:
            self.settle(parse(self.language, self.text, self.old))
        return self.tree

    def settle(self, tree: SyntaxTree | None) -> None:
        if not self.done:
            self.tree, self.done, self.old = tree, True, None

    def edited(self, edit: Edit, text: str) -> StaleTree | None:
        """What a parse of the text after `edit` may start from; `text` is the one before it."""
        if self.tree is not None:
            return self.tree.edited(edit)
        return None if self.old is None else self.old.edited(edit, text)


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A document at one version. Two are equal only if they are the same object."""

    uri: str
    language_id: str
    """As the client named it."""
    language: Language | None
    """None where the language is not known: there is a text, and no tree."""
    version: int
    text: str
    encoding: PositionEncoding
    opened: int = 0
    """Tells one opening of a document from the next, whose versions may start from the same number."""
    _lines: LineIndex | None = field(default=None, repr=False)
    _old: StaleTree | None = field(default=None, repr=False)

    @cached_property
    def lines(self) -> LineIndex:
        """Where the lines start."""
        return self._lines if self._lines is not None else LineIndex(self.text)

    @cached_property
    def slot(self) -> _TreeSlot:
        """Where the tree is kept; for the store."""
        return _TreeSlot(self.language, self.text, self._old)

    @property
    def tree(self) -> SyntaxTree | None:
        """The syntax tree, parsed now if it was not yet; None where there is no grammar.

        For large texts await `DocumentStore.parsed` first.
        """
        return self.slot.get()

    @property
    def is_parsed(self) -> bool:
        """Whether `tree` answers at once."""
        return self.slot.done

    @property
    def is_large(self) -> bool:
        """Whether a parse is worth leaving the event loop for."""
        return len(self.text) > LARGE_TEXT

    @cached_property
    def scheme(self) -> str:
        """The URI's scheme: `file`, `untitled`, `git`, `vscode-notebook-cell`, …"""
        return scheme_of(self.uri)

    @property
    def read_only(self) -> bool:
        """Whether this is only a view of something (`git:`), which no edit may be offered for."""
        return self.scheme in _READ_ONLY_SCHEMES

    @cached_property
    def path(self) -> Path | None:
        """The file behind a `file:` URI; None for every other document."""
        name = file_name_of(self.uri, windows=os.name == "nt")
        return None if name is None else Path(name)

    def position(self, offset: int) -> Position:
        """The client's position of an offset."""
        return self.lines.position(offset, self.encoding)

    def offset(self, position: Position) -> int:
        """The offset of a client's position (clamped to its line and to the text)."""
        return self.lines.offset(position, self.encoding)

    def span(self, range_: Range) -> Span:
        """The span of a client's range."""
        return self.lines.span(range_, self.encoding)

    def range(self, span: Span) -> Range:
        """The client's range of a span."""
        return self.lines.range(span, self.encoding)


@dataclass(slots=True)
class _Step:
    """What one change message did."""

    before: int
    after: int
    edits: tuple[Edit, ...]


@dataclass(slots=True)
class _Document:
    snapshot: Snapshot
    history: deque[_Step] = field(default_factory=deque[_Step])
    remembered: int = 0

    def remember(self, step: _Step) -> None:
        self.history.append(step)
        self.remembered += len(step.edits)
        while self.remembered > _HISTORY and self.history:
            self.remembered -= len(self.history.popleft().edits)

    def forget(self) -> None:
        self.history.clear()
        self.remembered = 0

    def since(self, version: int) -> tuple[Edit, ...] | None:
        if version == self.snapshot.version:
            return ()
        steps = list(self.history)
        for index, step in enumerate(steps):
            if step.before == version:
                return tuple(edit for later in steps[index:] for edit in later.edits)
        return None


class DocumentStore:
    """All open documents. Used on the event loop only; `offload` is where large texts are parsed."""

    def __init__(
        self, encoding: PositionEncoding = PositionEncoding.UTF16, offload: Offload = inline
    ) -> None:
        self._encoding = encoding
        self._offload = offload
        self._documents: dict[str, _Document] = {}
        self._parses: dict[Snapshot, asyncio.Task[None]] = {}
        self._openings = 0

    @property
    def encoding(self) -> PositionEncoding:
        """The client's unit of columns."""
        return self._encoding

    @encoding.setter
    def encoding(self, encoding: PositionEncoding) -> None:
        if self._documents:
            raise DocumentError("the position encoding is agreed on before the first document is opened")
        self._encoding = encoding

    def open(self, uri: str, language_id: str, version: int, text: str) -> Snapshot:
        """Take a document in. A client that opens one twice means its second text."""
        if uri in self._documents:
            _log.warning("%s was opened twice; its newest text counts", uri)
        self._openings += 1
        language = language_for(language_id, uri)
        snapshot = Snapshot(uri, language_id, language, version, text, self._encoding, opened=self._openings)
        self._documents[uri] = _Document(snapshot)
        return snapshot

    def change(self, uri: str, version: int, changes: Sequence[Change]) -> tuple[Snapshot, tuple[Edit, ...]]:
        """Apply one message's changes, each to the text that those before it left.

        The edits say the same in code points; a replacement of the whole text becomes one edit of what really
        differs. A version that does not grow is logged and taken: the client's text is right by definition.
        Raises `DocumentNotOpen`.
        """
        document = self._document(uri)
        before = document.snapshot
        text, lines = before.text, before.lines
        old: StaleTree | None = None
        edits: list[Edit] = []
        for change in changes:
            edit = self._edit(text, lines, change)
            old = _stale(before, old, edit, text, first=not edits)
            text = text[: edit.span.start] + edit.text + text[edit.span.end :]
            lines = lines.edited(edit, text)
            edits.append(edit)
        if not edits:
            old = before.slot.edited(Edit(Span(0, 0), ""), text)
        after = Snapshot(
            uri,
            before.language_id,
            before.language,
            version,
            text,
            before.encoding,
            before.opened,
            _lines=lines,
            _old=old,
        )
        document.snapshot = after
        if version <= before.version:
            _log.warning("%s went from version %d to %d", uri, before.version, version)
            document.forget()
        else:
            document.remember(_Step(before.version, version, tuple(edits)))
        return after, tuple(edits)

    def close(self, uri: str) -> None:
        """Let a document go; closing one that is not open is logged only."""
        if self._documents.pop(uri, None) is None:
            _log.warning("%s was closed but not open", uri)

    def get(self, uri: str) -> Snapshot:
        """The newest snapshot. Raises `DocumentNotOpen`."""
        return self._document(uri).snapshot

    def find(self, uri: str) -> Snapshot | None:
        """The newest snapshot, None if the document is not open."""
        document = self._documents.get(uri)
        return None if document is None else document.snapshot

    def all(self) -> tuple[Snapshot, ...]:
        """The newest snapshot of every open document, in the order in which they were opened."""
        return tuple(document.snapshot for document in self._documents.values())

    def edits_since(self, uri: str, version: int) -> tuple[Edit, ...] | None:
        """The edits from `version` to the newest one, each relative to the text before it.

        None if that is not known: too long ago, never seen, or the document is not open.
        """
        document = self._documents.get(uri)
        return None if document is None else document.since(version)

    def edits_after(self, snapshot: Snapshot) -> tuple[Edit, ...] | None:
        """`edits_since` for a snapshot, which also tells a document that was closed and opened again."""
        newest = self.find(snapshot.uri)
        if newest is None or newest.opened != snapshot.opened:
            return None
        return self.edits_since(snapshot.uri, snapshot.version)

    async def parsed(self, uri: str) -> Snapshot:
        """The newest snapshot with its tree ready; of a large text also its outline, both made off the loop.

        Changes that arrive meanwhile are waited for too. Raises `DocumentNotOpen`, also when the document is
        closed meanwhile.
        """
        while True:
            snapshot = self.get(uri)
            if snapshot.is_parsed:
                return snapshot
            if not snapshot.is_large:
                snapshot.slot.get()
                return snapshot
            running = self._parses.get(snapshot)
            if running is None:
                running = asyncio.ensure_future(self._parse_away(snapshot))
                self._parses[snapshot] = running
            # Several may wait for one parse; that one of them gives up does not end it.
            await asyncio.shield(running)

    async def _parse_away(self, snapshot: Snapshot) -> None:
        slot = snapshot.slot
        language, text = slot.language, slot.text
        # The tree that the parse starts from may meanwhile be edited here: a copy goes to the other thread.
        old = None if slot.old is None else slot.old.copy()

        def work() -> SyntaxTree | None:
            tree = None if language is None else parse(language, text, old, in_thread=True)
            if tree is not None:
                tree.outline()
            return tree

        try:
            slot.settle(await self._offload(work))
            self._hand_on(snapshot)
        finally:
            del self._parses[snapshot]

    def _hand_on(self, snapshot: Snapshot) -> None:
        """Let a newer snapshot, whose changes came while `snapshot` was parsed, start from that tree."""
        newest = self.find(snapshot.uri)
        tree = snapshot.slot.tree
        if newest is None or newest is snapshot or tree is None or newest.slot.done:
            return
        edits = self.edits_after(snapshot)
        if not edits:
            return
        text = snapshot.text
        old = tree.edited(edits[0])
        for index, edit in enumerate(edits):
            if index:
                old = old.edited(edit, text)
            text = text[: edit.span.start] + edit.text + text[edit.span.end :]
        newest.slot.old = old

    def _document(self, uri: str) -> _Document:
        document = self._documents.get(uri)
        if document is None:
            raise DocumentNotOpen(f"{uri} is not open in the editor")
        return document

    def _edit(self, text: str, lines: LineIndex, change: Change) -> Edit:
        if change.range is not None:
            return Edit(lines.span(change.range, self._encoding), change.text)
        return minimal_edit(text, change.text)


def _stale(
    before: Snapshot, old: StaleTree | None, edit: Edit, text: str, *, first: bool
) -> StaleTree | None:
    if first:
        return before.slot.edited(edit, text)
    return None if old is None else old.edited(edit, text)


def minimal_edit(before: str, after: str) -> Edit:
    """The one edit that makes `after` out of `before` and leaves their common beginning and end alone."""
    start = _common_prefix(before, after)
    shorter = min(len(before), len(after)) - start
    tail = 0
    low, high = 0, shorter
    while low < high:
        tail = (low + high + 1) // 2
        if before[len(before) - tail : len(before) - low] == after[len(after) - tail : len(after) - low]:
            low = tail
        else:
            high = tail - 1
    return Edit(Span(start, len(before) - low), after[start : len(after) - low])


def _common_prefix(one: str, other: str) -> int:
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def scheme_of(uri: str) -> str:
    """The scheme of a URI in lower case; a Windows path without one (`c:\\x`) is a `file`."""
    scheme, colon, _ = uri.partition(":")
    return scheme.lower() if colon and len(scheme) > 1 else "file"


def file_name_of(uri: str, *, windows: bool) -> str | None:
    """The path in a `file:` URI as that kind of system writes it, None for other URIs and foreign hosts."""
    if scheme_of(uri) != "file" or not uri.lower().startswith("file:"):
        return None
    parts = urlsplit(uri)
    host = "" if parts.netloc.lower() == "localhost" else unquote(parts.netloc)
    # A query or fragment in a file's URI can only be an unescaped `?` or `#` of its name.
    name = unquote(uri[5:].removeprefix("//" + parts.netloc) if uri[5:].startswith("//") else uri[5:])
    if not windows:
        return None if host else name
    if host:
        return f"//{host}{name}".replace("/", "\\")
    drive = name.removeprefix("/")
    if len(drive) > 1 and drive[1] == ":":
        name = drive[0].upper() + drive[1:]
    return name.replace("/", "\\")


def local_place(uri: str) -> Path | None:
    """The file that a document is, or is a view of (`git:`, a notebook's cell, `untitled:` with a path).

    For rules about files, which a change of scheme must not get around; it may not exist. None where the URI
    has no absolute path.
    """
    if scheme_of(uri) == "file":
        name = file_name_of(uri, windows=os.name == "nt")
    else:
        path = urlsplit(uri).path
        name = file_name_of(f"file://{path}", windows=os.name == "nt") if path.startswith("/") else None
    return None if name is None else Path(name)

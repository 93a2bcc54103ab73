"""Syntax trees of texts, incremental, with the parser hidden behind them.

Outside this package all places are code-point offsets. tree-sitter counts bytes of UTF-8 and rows that end at
"\\n" only (LSP lines also end at a lone "\\r"), so it gets its own numbers here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import tree_sitter

from nexo_lsp.syntax.byte_index import ByteIndex, encode
from nexo_lsp.syntax.languages import Language, grammar_of
from nexo_lsp.syntax.outline import CodeKind, Outline
from nexo_lsp.syntax.symbols import Memo, outline_of
from nexo_lsp.text import Edit

# Where a text does not parse, tree-sitter's error recovery depends on the tree that the parse started from.
# Up to this size (in code points) such a text is parsed once more from nothing, which takes a few
# milliseconds at most, so that the tree is a function of the text alone.
_REPARSE_LIMIT = 8_192
# How much of the text the parser gets at a time when it runs in a thread (bytes).
_READ_SIZE = 4_096

# Node types are named by the authors of some fifteen grammars; these words are what they have in common.
_COMMENT_TYPE = re.compile(r"comment")
_CODE_IN_STRING_TYPE = re.compile(
    r"^(interpolation|interpolated_expression|template_substitution)$|expansion|_substitution$"
)
_STRING_TYPE = re.compile(
    r"string|^(char|char_literal|character_literal|rune_literal|heredoc_body|template_literal)$|^regex"
)


@dataclass(frozen=True, slots=True)
class StaleTree:
    """A tree that knows of edits since its parse: what the next parse starts from. Never changed in place."""

    raw: tree_sitter.Tree
    memo: Memo

    def copy(self) -> StaleTree:
        """The same for another thread: one tree is not for two threads at once."""
        return StaleTree(self.raw.copy(), self.memo)

    def edited(self, edit: Edit, text: str) -> StaleTree:
        """This tree after one more edit; `text` is the text before it, which its span refers to."""
        raw = self.raw.copy()
        start, end = edit.span
        removed = text[start:end]
        start_byte = start if text.isascii() else len(encode(text[:start]))
        start_point = _point(text, start)
        raw.edit(
            start_byte,
            start_byte + len(encode(removed)),
            start_byte + len(encode(edit.text)),
            start_point,
            _advance(start_point, removed),
            _advance(start_point, edit.text),
        )
        return StaleTree(raw, self.memo)


class SyntaxTree:
    """The tree of one text. What it tells is computed once, on first use. Not for several threads at once."""

    def __init__(self, language: Language, text: str, raw: tree_sitter.Tree, data: bytes, memo: Memo) -> None:
        self.language = language
        self.text = text
        self._raw = raw
        self._data = data
        self._memo = memo

    @cached_property
    def _index(self) -> ByteIndex:
        return ByteIndex(self.text, self._data)

    def edited(self, edit: Edit) -> StaleTree:
        """What the next parse starts from after `edit`."""
        return StaleTree(self._raw, self._memo).edited(edit, self.text)

    @property
    def has_errors(self) -> bool:
        """Whether anything in the text does not parse."""
        return self._raw.root_node.has_error

    def error_count(self) -> int:
        """How many places do not parse: nodes that are errors, and nodes the parser had to make up."""
        count = 0
        pending = [self._raw.root_node]
        while pending:
            node = pending.pop()
            if not node.has_error:
                continue
            count += node.is_error or node.is_missing
            pending.extend(node.children)
        return count

    def outline(self) -> Outline:
        """The definitions, imports, calls and comments of the text; empty where the language has no query."""
        return self._outline

    @cached_property
    def _outline(self) -> Outline:
        outline, self._memo = outline_of(self.language, self._raw, self.text, self._index, self._memo)
        return outline

    def code_kind_at(self, offset: int) -> CodeKind:
        """What stands around `offset`: the end of a line comment is in it, a string's quotes are not."""
        byte = self._index.byte(offset)
        for node in self._around(byte):
            kind = _kind(node.type)
            if kind is None:
                continue
            inside = node.start_byte < byte < node.end_byte
            at_line_end = kind is CodeKind.COMMENT and byte == node.end_byte and not self._closed(node)
            if inside or at_line_end:
                return kind
        return CodeKind.CODE

    def sexp(self) -> str:
        """The tree as an S-expression, for tests."""
        return str(self._raw.root_node)

    def _around(self, byte: int) -> Iterator[tree_sitter.Node]:
        """The nodes that hold or touch `byte`, innermost first; at a border those before it come first."""
        seen: set[int] = set()
        for low, high in ((max(0, byte - 1), byte), (byte, min(byte + 1, len(self._data)))):
            node = self._raw.root_node.descendant_for_byte_range(low, high)
            chain: list[tree_sitter.Node] = []
            while node is not None:
                chain.append(node)
                node = node.parent
            for node in chain:
                if node.id not in seen:
                    seen.add(node.id)
                    yield node

    def _closed(self, comment: tree_sitter.Node) -> bool:
        data = self._data[comment.start_byte : comment.end_byte]
        return data.startswith((b"/*", b"--[", b"=begin")) or data.endswith(b"\n")


def parse(
    language: Language, text: str, old: StaleTree | None = None, *, in_thread: bool = False
) -> SyntaxTree | None:
    """Parse `text`; with `old`, a tree that knows of every edit up to `text`, only what changed.

    None where there is no grammar.

    py-tree-sitter holds the interpreter's lock while it parses bytes. `in_thread` makes it call back into
    Python as it goes, which is where other threads (the event loop) get their turn; it costs some speed.
    """
    grammar = grammar_of(language)
    if grammar is None:
        return None
    parser = tree_sitter.Parser(grammar)
    data = encode(text)
    raw = _run(parser, data, None if old is None else old.raw, in_thread)
    if old is not None and raw.root_node.has_error and len(text) <= _REPARSE_LIMIT:
        parser.reset()
        raw = _run(parser, data, None, in_thread)
    return SyntaxTree(language, text, raw, data, {} if old is None else old.memo)


def _run(
    parser: tree_sitter.Parser, data: bytes, old: tree_sitter.Tree | None, in_thread: bool
) -> tree_sitter.Tree:
    # py-tree-sitter refuses None where it allows the tree to be left out.
    if not in_thread:
        return parser.parse(data) if old is None else parser.parse(data, old)

    def read(byte: int, _point: tree_sitter.Point) -> bytes:
        return data[byte : byte + _READ_SIZE]

    def go_on(_byte: int, _has_error: bool) -> bool:
        return False

    if old is None:
        return parser.parse(read, progress_callback=go_on)
    return parser.parse(read, old, progress_callback=go_on)


def _kind(node_type: str) -> CodeKind | None:
    if _COMMENT_TYPE.search(node_type):
        return CodeKind.COMMENT
    if _CODE_IN_STRING_TYPE.search(node_type):
        return CodeKind.CODE
    if _STRING_TYPE.search(node_type):
        return CodeKind.STRING
    return None


def _point(text: str, offset: int) -> tuple[int, int]:
    """The tree-sitter point (row, column in bytes) of an offset."""
    line_start = text.rfind("\n", 0, offset) + 1
    return text.count("\n", 0, offset), len(encode(text[line_start:offset]))


def _advance(point: tuple[int, int], text: str) -> tuple[int, int]:
    """The tree-sitter point (row, column in bytes) after `text` when it starts at `point`."""
    rows = text.count("\n")
    if not rows:
        return point[0], point[1] + len(encode(text))
    return point[0] + rows, len(encode(text[text.rfind("\n") + 1 :]))

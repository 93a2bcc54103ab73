"""From a tree to an outline: one query file a language finds the nodes, and this code reads them all alike.

The captures of the query files are explained in `queries/python.scm`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

import tree_sitter

from nexo_lsp.syntax.byte_index import ByteIndex
from nexo_lsp.syntax.comments import merge_comments
from nexo_lsp.syntax.definitions import BETWEEN, Found, Reader, span_of
from nexo_lsp.syntax.languages import Language, grammar_of
from nexo_lsp.syntax.outline import Outline, Reference, Symbol
from nexo_lsp.text import Span

_log = logging.getLogger(__name__)

# A definition or statement larger than this is searched piece by piece, so that no single call into the query
# engine, which lets no other thread run, takes longer than some milliseconds (bytes).
_PIECE = 65_536
# Behind so many bytes on its line, a unit's key would take longer to make than the unit.
_LONGEST_INDENT = 256


@dataclass(frozen=True, slots=True)
class Unit:
    """What is known of one top-level piece of a text: a definition or statement, and comments above it."""

    base: int
    """The offset at which the piece starts; everything in it is counted from the start of the text."""
    first: int
    """How many symbols come before it in the text, which its symbols' parents are counted with."""
    outline: Outline

    def at(self, base: int, first: int) -> Unit:
        """The same piece of text at another place."""
        by, parents = base - self.base, first - self.first
        if not by and not parents:
            return self
        outline = self.outline
        return Unit(
            base,
            first,
            Outline(
                tuple([_moved(symbol, by, parents) for symbol in outline.symbols]),
                tuple([_shifted(span, by) for span in outline.imports]),
                tuple([Reference(call.name, _shifted(call.span, by)) for call in outline.calls]),
                tuple([_shifted(span, by) for span in outline.comments]),
            ),
        )


# Units by their node types and bytes: a piece that an edit did not touch is not read again.
Memo = Mapping[tuple[str, bytes], Unit]


def outline_of(
    language: Language, raw: tree_sitter.Tree, text: str, index: ByteIndex, memo: Memo
) -> tuple[Outline, Memo]:
    """The outline of a tree, and what the next tree may use of it; `memo` is that of the tree before.

    Empty where the language has no query, or one that no longer fits its grammar.
    """
    query = _query(language)
    if query is None:
        return Outline(), {}
    known: dict[tuple[str, bytes], Unit] = {}
    symbols: list[Symbol] = []
    imports: list[Span] = []
    calls: list[Reference] = []
    comments: list[Span] = []
    for nodes in _units(raw.root_node):
        key = _key(nodes, index)
        base = index.offset(nodes[0].start_byte)
        unit = None if key is None else memo.get(key)
        if unit is None:
            unit = Unit(base, 0, _read_unit(language, query, nodes, text, index))
        unit = unit.at(base, len(symbols))
        if key is not None:
            known[key] = unit
        symbols += unit.outline.symbols
        imports += unit.outline.imports
        calls += unit.outline.calls
        comments += unit.outline.comments
    return Outline(tuple(symbols), tuple(imports), tuple(calls), tuple(comments)), known


def _units(root: tree_sitter.Node) -> Iterator[list[tree_sitter.Node]]:
    """The nodes at the top, each with the comments and annotations before it."""
    nodes: list[tree_sitter.Node] = []
    for child in root.children:
        nodes.append(child)
        if child.type not in BETWEEN:
            yield nodes
            nodes = []
    if nodes:
        yield nodes


def _key(nodes: list[tree_sitter.Node], index: ByteIndex) -> tuple[str, bytes] | None:
    """What a unit is known by; None where its text alone does not say what it is."""
    start, end = nodes[0].start_byte, nodes[-1].end_byte
    # What stands before a comment on its line decides whether it is a doc comment.
    line = index.data.rfind(b"\n", 0, start) + 1
    if start - line > _LONGEST_INDENT or any(node.has_error for node in nodes):
        return None
    return " ".join([node.type for node in nodes]), index.data[line:end]


def _read_unit(
    language: Language, query: tree_sitter.Query, nodes: list[tree_sitter.Node], text: str, index: ByteIndex
) -> Outline:
    found = Found()
    for node in nodes:
        for captures in _matches(query, node):
            found.add(captures)
    comments = merge_comments(text, (span_of(index, node) for node in found.comments))
    reader = Reader(language, text, index, comments)
    return Outline(
        symbols=reader.read_all(found.definitions.values()),
        imports=_outermost_spans(_without_line_end(text, span_of(index, node)) for node in found.imports),
        calls=tuple(sorted((reader.reference(node) for node in found.calls), key=lambda call: call.span)),
        comments=comments,
    )


def _outermost_spans(spans: Iterable[Span]) -> tuple[Span, ...]:
    out: list[Span] = []
    for span in sorted(spans, key=lambda span: (span.start, -span.end)):
        if not out or span.end > out[-1].end:
            out.append(span)
    return tuple(out)


def _shifted(span: Span, by: int) -> Span:
    return Span(span.start + by, span.end + by)


def _moved(symbol: Symbol, by: int, parents: int) -> Symbol:
    return Symbol(
        symbol.kind,
        symbol.name,
        _shifted(symbol.span, by),
        _shifted(symbol.name_span, by),
        symbol.signature,
        None if symbol.body is None else _shifted(symbol.body, by),
        symbol.doc,
        None if symbol.doc_span is None else _shifted(symbol.doc_span, by),
        None if symbol.parent is None else symbol.parent + parents,
        symbol.stub,
    )


@cache
def _query(language: Language) -> tree_sitter.Query | None:
    grammar = grammar_of(language)
    if grammar is None or not language.query:
        return None
    source = resources.files("nexo_lsp.syntax").joinpath("queries", f"{language.query}.scm")
    try:
        return tree_sitter.Query(grammar, source.read_text(encoding="utf-8"))
    except tree_sitter.QueryError as error:
        _log.warning("the grammar of %s has changed, no outline: %s", language.name, error)
        return None


def _matches(query: tree_sitter.Query, node: tree_sitter.Node) -> Iterator[dict[str, list[tree_sitter.Node]]]:
    cursor = tree_sitter.QueryCursor(query)
    if node.end_byte - node.start_byte <= _PIECE:
        for _, captures in cursor.matches(node):
            yield captures
        return
    cursor.set_max_start_depth(0)
    for _, captures in cursor.matches(node):
        yield captures
    for child in node.children:
        yield from _matches(query, child)


def _without_line_end(text: str, span: Span) -> Span:
    return Span(span.start, span.start + len(text[span.start : span.end].rstrip()))

"""From the nodes that a query found to symbols."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field

import tree_sitter

from nexo_lsp.syntax.byte_index import ByteIndex
from nexo_lsp.syntax.comments import comment_above, comment_text, docstring_text
from nexo_lsp.syntax.languages import Language
from nexo_lsp.syntax.outline import Reference, Symbol, SymbolKind
from nexo_lsp.syntax.stubs import is_stub
from nexo_lsp.text import Span

_KINDS = {
    "function": SymbolKind.FUNCTION,
    "method": SymbolKind.METHOD,
    "class": SymbolKind.CLASS,
    "namespace": SymbolKind.CLASS,
}
# Nodes around a definition that are part of it, if it is the only one of its type in there.
_WRAPPERS = frozenset(
    {
        "ambient_declaration",
        "decorated_definition",
        "export_statement",
        "expression_statement",
        "lexical_declaration",
        "template_declaration",
        "type_declaration",
        "var_declaration",
        "variable_declaration",
    }
)
# Nodes before a definition, beside it or first in it, that belong to it but not to its signature.
_ANNOTATIONS = frozenset(
    {
        "annotation",
        "attribute_item",
        "attribute_list",
        "decorator",
        "marker_annotation",
        "attribute_declaration",
    }
)
_COMMENTS = frozenset({"comment", "line_comment", "block_comment"})
# What may stand between a doc comment and what it documents.
BETWEEN = _ANNOTATIONS | _COMMENTS
# Where a body may be missing from the tree and yet the definition has one, up to the keyword `end`.
_ENDS_BY_KEYWORD = frozenset({"ruby", "lua"})


@dataclass(slots=True)
class Definition:
    """One match: what kind it is of, its node, and all that was captured with it."""

    kind: str
    node: tree_sitter.Node
    captures: dict[str, list[tree_sitter.Node]]


@dataclass(slots=True)
class Found:
    """All that a query found."""

    definitions: dict[tuple[int, int], Definition] = field(default_factory=dict[tuple[int, int], Definition])
    imports: list[tree_sitter.Node] = field(default_factory=list[tree_sitter.Node])
    calls: list[tree_sitter.Node] = field(default_factory=list[tree_sitter.Node])
    comments: list[tree_sitter.Node] = field(default_factory=list[tree_sitter.Node])

    def add(self, captures: dict[str, list[tree_sitter.Node]]) -> None:
        """Take in one match."""
        for name, nodes in captures.items():
            if name == "call.name":
                self.calls += nodes
            elif name == "comment":
                self.comments += nodes
            elif name == "import":
                self.imports += nodes
            elif name in _KINDS:
                node = nodes[0]
                # The same node matches twice where a part is optional, or where one pattern is more exact;
                # the match that knows more counts.
                known = self.definitions.get(node.byte_range)
                if known is None or len(captures) > len(known.captures):
                    self.definitions[node.byte_range] = Definition(name, node, captures)


def span_of(index: ByteIndex, node: tree_sitter.Node) -> Span:
    """A node's place in the text."""
    return Span(index.offset(node.start_byte), index.offset(node.end_byte))


class Reader:
    """Reads definitions out of their nodes."""

    def __init__(self, language: Language, text: str, index: ByteIndex, comments: tuple[Span, ...]) -> None:
        self._language = language
        self._text = text
        self._index = index
        self._comments = comments
        self._comment_starts = [span.start for span in comments]

    def reference(self, node: tree_sitter.Node) -> Reference:
        """The name that `node` is."""
        span = span_of(self._index, node)
        return Reference(self._text[span.start : span.end], span)

    def read_all(self, definitions: Iterable[Definition]) -> tuple[Symbol, ...]:
        """The symbols in the text's order, with what holds each; functions in classes become methods."""
        symbols: list[Symbol] = []
        namespaces: set[int] = set()
        holders: list[int] = []
        placed = [(self._placed(definition), definition) for definition in definitions]
        placed.sort(key=lambda pair: (pair[0][1].start, -pair[0][1].end))
        for (outer, span), definition in placed:
            while holders and symbols[holders[-1]].span.end < span.end:
                holders.pop()
            parent = holders[-1] if holders else None
            in_class = (
                parent is not None and parent not in namespaces and symbols[parent].kind is SymbolKind.CLASS
            )
            if definition.kind == "namespace":
                namespaces.add(len(symbols))
            holders.append(len(symbols))
            symbols.append(self._read(definition, outer, span, parent, in_class=in_class))
        return tuple(symbols)

    def _placed(self, definition: Definition) -> tuple[tree_sitter.Node, Span]:
        """A definition's node with what is wrapped around it, and its span, annotations included."""
        outer = _outermost(definition.node)
        first = _first_annotation(outer)
        return outer, Span(self._index.offset(first.start_byte), self._index.offset(outer.end_byte))

    def _read(
        self,
        definition: Definition,
        outer: tree_sitter.Node,
        span: Span,
        parent: int | None,
        *,
        in_class: bool,
    ) -> Symbol:
        node, captures = definition.node, definition.captures
        name, qualified = _name(captures)
        name_span = span_of(self._index, name)
        head_node = captures["head"][0] if "head" in captures else node
        body_node = captures["body"][0] if "body" in captures else None
        signature, body = self._head_and_body(_signature_start(outer), head_node, body_node)
        kind = _KINDS[definition.kind]
        if kind is SymbolKind.FUNCTION and (qualified or in_class):
            kind = SymbolKind.METHOD
        doc, doc_span = self._doc(span, signature, body_node)
        return Symbol(
            kind=kind,
            name=self._text[name_span.start : name_span.end].strip("\"'`"),
            span=span,
            name_span=name_span,
            signature=self._text[signature.start : signature.end].rstrip(),
            body=body,
            doc=doc,
            doc_span=doc_span,
            parent=parent,
            stub=kind is not SymbolKind.CLASS
            and body is not None
            and self._is_stub(definition, body, doc_span),
        )

    def _head_and_body(
        self, start: int, node: tree_sitter.Node, body: tree_sitter.Node | None
    ) -> tuple[Span, Span | None]:
        """Where the signature is written, and the body if there is one."""
        offset = self._index.offset
        if body is not None:
            before = body.prev_sibling
            while before is not None and before.type in _COMMENTS:
                before = before.prev_sibling
            end = before.end_byte if before is not None else body.start_byte
            head = Span(offset(start), offset(max(start, end)))
            if body.start_byte == body.end_byte:
                return head, Span(head.end, head.end)
            if body.type == "interface_type":  # Go has the keyword inside: `interface { … }`
                keyword, brace = body.children[:2]
                return Span(head.start, offset(keyword.end_byte)), Span(
                    offset(brace.start_byte), offset(body.end_byte)
                )
            return head, span_of(self._index, body)
        if self._language.id not in _ENDS_BY_KEYWORD:
            return Span(offset(start), offset(node.end_byte)), None
        *parts, last = node.children or [node]
        parts = [part for part in parts if part.type not in _COMMENTS]
        end = parts[-1].end_byte if parts else last.start_byte
        return Span(offset(start), offset(end)), Span(offset(end), offset(last.start_byte))

    def _doc(
        self, span: Span, signature: Span, body: tree_sitter.Node | None
    ) -> tuple[str | None, Span | None]:
        if self._language.doc.inside:
            literal = None if body is None else _docstring(body)
            if literal is None:
                return None, None
            doc_span = span_of(self._index, literal)
            return docstring_text(self._text[doc_span.start : doc_span.end]), doc_span
        # A doc comment may stand above the annotations or below them.
        for start in dict.fromkeys((span.start, signature.start)):
            above = comment_above(self._text, self._comments, self._comment_starts, start)
            if above is not None:
                return comment_text(self._text[above.start : above.end]), above
        return None, None

    def _is_stub(self, definition: Definition, body: Span, doc: Span | None) -> bool:
        if self._language.id == "python" and _is_abstract(definition.node):
            return False
        first = bisect_left(self._comment_starts, body.start)
        inside = self._comments[first : bisect_left(self._comment_starts, body.end)]
        holes = [*inside, doc] if doc is not None and body.start <= doc.start else inside
        code: list[str] = []
        at = body.start
        for hole in sorted(holes):
            code.append(self._text[at : hole.start])
            at = hole.end
        code.append(self._text[at : body.end])
        return is_stub(
            self._language.id,
            _without_brackets("".join(code)),
            [self._text[span.start : span.end] for span in inside],
        )


def _without_brackets(code: str) -> str:
    code = code.strip()
    if code.startswith("{") and code.endswith("}"):
        return code[1:-1]
    # An expression body: `=> x` in C#, `= x` in Kotlin.
    return code.removeprefix("=>").removeprefix("=")


def _outermost(node: tree_sitter.Node) -> tree_sitter.Node:
    while (parent := node.parent) is not None and parent.type in _WRAPPERS:
        if sum(child.type == node.type for child in parent.named_children) != 1:
            break
        node = parent
    return node


def _first_annotation(node: tree_sitter.Node) -> tree_sitter.Node:
    first = node
    before = node.prev_sibling
    while before is not None and before.type in BETWEEN:
        if before.type in _ANNOTATIONS:
            first = before
        before = before.prev_sibling
    return first


def _signature_start(node: tree_sitter.Node) -> int:
    """The byte at which a definition starts once its annotations are passed."""
    for child in node.children:
        if child.type in BETWEEN:
            continue
        if child.type == "modifiers":
            plain = next((part for part in child.children if part.type not in _ANNOTATIONS), None)
            if plain is None:
                continue
            return plain.start_byte
        return child.start_byte
    return node.start_byte


def _name(captures: dict[str, list[tree_sitter.Node]]) -> tuple[tree_sitter.Node, bool]:
    """What names a definition, and whether it is written with the class it belongs to (`A::f`)."""
    if "name" in captures:
        return captures["name"][0], False
    node = captures["declarator"][0]
    qualified = False
    while True:
        inner = node.child_by_field_name("declarator")
        if node.type == "qualified_identifier":
            qualified = True
            inner = node.child_by_field_name("name")
        elif node.type == "template_function":
            inner = node.child_by_field_name("name")
        elif node.type == "operator_cast":
            return node, qualified
        elif inner is None and node.type in {"reference_declarator", "parenthesized_declarator"}:
            inner = next(iter(node.named_children), None)
        if inner is None:
            return node, qualified
        node = inner


def _docstring(body: tree_sitter.Node) -> tree_sitter.Node | None:
    statement = next((child for child in body.named_children if child.type not in _COMMENTS), None)
    if statement is None or statement.type != "expression_statement" or statement.named_child_count != 1:
        return None
    literal = statement.named_children[0]
    return literal if literal.type in {"string", "concatenated_string"} else None


def _is_abstract(node: tree_sitter.Node) -> bool:
    """Whether a Python function is without a body on purpose: abstract, an overload, or in a Protocol."""
    outer = _outermost(node)
    heads = [child for child in outer.children if child.type == "decorator"]
    holder = outer.parent.parent if outer.parent is not None else None
    if holder is not None and holder.type == "class_definition":
        bases = holder.child_by_field_name("superclasses")
        heads += [bases] if bases is not None else []
    words = b" ".join(head.text or b"" for head in heads)
    return any(word in words for word in (b"abstractmethod", b"overload", b"Protocol"))

"""Random edit sequences: the store's text is the client's, and its tree is what a fresh parse gives."""

from __future__ import annotations

from dataclasses import dataclass

import hypothesis.strategies as st
from hypothesis import HealthCheck, given, settings

from nexo_lsp.documents import DocumentStore
from nexo_lsp.syntax.languages import language_for
from nexo_lsp.syntax.parsing import parse
from nexo_lsp.text import Change, LineIndex, Position, PositionEncoding, Range, apply_edits

PIECES = [
    "def f(a):\n    return [1, 'x']\n",
    "class A:\r\n    pass\r\n",
    "function g() { return `t${x}` }\n",
    "int main(void) { return 0; }\r",
    "# TODO: é\n",
    "/* c */",
    "// x",
    '"',
    "'",
    '"""',
    "{",
    "}",
    "(",
    ")",
    "    ",
    "\t",
    "\n",
    "\r",
    "\r\n",
    "\n\r",
    "\f",
    "\v",
    "\x00",
    "\x85",
    "\u2028",
    "\u2029",
    "\ufeff",
    "é",
    "e\u0301",
    "漢字",
    "😀",
    "👩‍👩‍👧",
    "a.b(c);",
    "x = 1\n",
    "if x:\n    y()\n",
    "\ud83d",
    "\ude00",
]
text_strategy = st.lists(
    st.one_of(st.sampled_from(PIECES), st.text(max_size=6), st.characters()), max_size=12
).map("".join)
number = st.one_of(st.integers(0, 12), st.integers(0, 60), st.just(2**31 - 1))
position = st.builds(Position, number, number)
change = st.builds(Change, st.one_of(st.builds(Range, position, position), st.none()), text_strategy)


@dataclass
class Client:
    """A client's text and what LSP says of changing it, written apart from the store: by scanning, one
    character after the other, with no index and no tree."""

    text: str
    encoding: PositionEncoding

    def offset(self, position: Position) -> int:
        """The index in `text` of a position, by LSP's own words."""
        at = line = 0
        while line < position.line:
            while at < len(self.text) and self.text[at] not in "\r\n":
                at += 1
            if at == len(self.text):
                return at
            at += 2 if self.text[at : at + 2] == "\r\n" else 1
            line += 1
        left = position.character
        while at < len(self.text) and self.text[at] not in "\r\n":
            left -= self.width(self.text[at])
            if left < 0:
                break
            at += 1
        return at

    def width(self, char: str) -> int:
        code = ord(char)
        match self.encoding:
            case PositionEncoding.UTF8:
                return 1 + (code >= 0x80) + (code >= 0x800) + (code >= 0x10000)
            case PositionEncoding.UTF16:
                return 1 + (code >= 0x10000)
            case _:
                return 1

    def apply(self, change: Change) -> None:
        if change.range is None:
            self.text = change.text
            return
        start, end = sorted((self.offset(change.range.start), self.offset(change.range.end)))
        self.text = self.text[:start] + change.text + self.text[end:]


@settings(deadline=None, max_examples=120, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    language_id=st.sampled_from(["python", "typescript", "c", "ruby", "shellscript", "php"]),
    encoding=st.sampled_from(PositionEncoding),
    start=text_strategy,
    messages=st.lists(st.tuples(st.lists(change, max_size=4), st.booleans()), max_size=6),
)
def test_any_edits_leave_the_clients_text_and_the_tree_of_a_fresh_parse(
    language_id: str,
    encoding: PositionEncoding,
    start: str,
    messages: list[tuple[list[Change], bool]],
) -> None:
    store = DocumentStore(encoding)
    client = Client(start, encoding)
    store.open("file:///x", language_id, 0, start)
    first = store.get("file:///x")
    language = language_for(language_id)
    assert language is not None

    for version, (changes, look) in enumerate(messages, 1):
        before = store.get("file:///x").text
        snapshot, edits = store.change("file:///x", version, changes)
        for one in changes:
            client.apply(one)
        assert snapshot.text == client.text
        assert len(edits) == len(changes)
        for edit in edits:
            before = apply_edits(before, [edit])
        assert before == snapshot.text
        fresh_lines = LineIndex(snapshot.text)
        assert snapshot.lines.line_count == fresh_lines.line_count
        assert [snapshot.lines.start_of(n) for n in range(fresh_lines.line_count)] == [
            fresh_lines.start_of(n) for n in range(fresh_lines.line_count)
        ]
        if look:  # otherwise the tree stays behind and gets several messages' edits at once
            _assert_fresh(store, language)
    _assert_fresh(store, language)
    replayed = first.text
    for edit in store.edits_after(first) or ():
        replayed = apply_edits(replayed, [edit])
    assert replayed == client.text


def _assert_fresh(store: DocumentStore, language: object) -> None:
    snapshot = store.get("file:///x")
    tree = snapshot.tree
    fresh = parse(snapshot.language, snapshot.text) if snapshot.language else None
    assert tree is not None
    assert fresh is not None
    assert tree.sexp() == fresh.sexp()
    assert tree.outline() == fresh.outline()
    assert tree.error_count() == fresh.error_count()

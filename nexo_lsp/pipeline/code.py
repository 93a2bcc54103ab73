"""Cutting the model's words down to code, and fitting code into its place."""

from __future__ import annotations

from collections.abc import Iterable

from nexo_lsp.documents import Snapshot
from nexo_lsp.syntax.languages import Language
from nexo_lsp.syntax.outline import Symbol
from nexo_lsp.syntax.parsing import parse
from nexo_lsp.text import Edit, Span, apply_edits

FENCE = "```"
_CLOSERS = ")]}\"'`;,:"


def unfenced(text: str) -> str:
    """The code of an answer: up to the closing backticks; from the opening ones if it starts with words."""
    if FENCE in text:
        before, _, rest = text.partition(FENCE)
        if before.strip() or not rest.strip():
            return before.rstrip()
        body = rest.partition("\n")[2]
        return body.partition(FENCE)[0].rstrip()
    return text.rstrip()


def first_symbol(language: Language, code: str, name: str) -> str:
    """`code` up to the end of the first definition of `name`; all of it if there is none.

    Small models like to go on with a second function, or with an example of a call.
    """
    tree = parse(language, code)
    if tree is None:
        return code
    for symbol in tree.outline().symbols:
        if symbol.name == name and symbol.body is not None:
            return code[: symbol.span.end]
    return code


def head_of_definition(snapshot: Snapshot, symbol: Symbol, *, with_docs: bool = True) -> str:
    """The text of a definition up to where its body begins, an opening brace included.

    With `with_docs` a docstring inside the body belongs to it.
    """
    text, end = snapshot.text, symbol.span.end
    if symbol.body is not None:
        end = symbol.body.start
        if with_docs and symbol.doc_span is not None and symbol.doc_span.start >= symbol.name_span.end:
            end = max(end, symbol.doc_span.end)
    head = text[symbol.span.start : end].rstrip()
    if symbol.body is not None and text[symbol.body.start : symbol.body.start + 1] == "{":
        head += " {"
    return head


def behind_head(code: str, head: str) -> str:
    """What of `code` comes behind `head`, whose white space may differ; all of it if it does not begin so.

    The line end behind the head is left out.
    """
    at = 0
    for char in "".join(head.split()):
        while code[at : at + 1].isspace():
            at += 1
        if code[at : at + 1] != char:
            return code
        at += 1
    rest_of_line, _, following = code[at:].partition("\n")
    return code[at:].lstrip() if rest_of_line.strip() else following


def indentation(snapshot: Snapshot, offset: int) -> str:
    """The white space at the start of the line that holds `offset`."""
    line = snapshot.lines.line(snapshot.lines.line_of(offset))
    return line[: len(line) - len(line.lstrip())]


def common_indentation(snapshot: Snapshot, span: Span) -> str:
    """The indentation of the line where `span` starts, if all lines of `span` have it; else none.

    A string that holds lines at the margin would otherwise be moved away from it.
    """
    indent = indentation(snapshot, span.start)
    rest = unix(text_at(snapshot, span)).split("\n")[1:]
    return indent if all(line.startswith(indent) for line in rest if line.strip()) else ""


def indented(code: str, indent: str) -> str:
    """`code` with every line but the first, and but blank ones, moved to the right by `indent`."""
    first, *rest = code.split("\n")
    return "\n".join([first, *(indent + line if line.strip() else line for line in rest)])


def dedented_part(code: str, indent: str) -> str:
    """The reverse of `indented`: lines but the first lose `indent` where they have it."""
    lines = unix(code).split("\n")
    return "\n".join([lines[0], *(line.removeprefix(indent) for line in lines[1:])])


def unix(text: str) -> str:
    """`text` with line feeds as line ends, as models write them."""
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def language_word(snapshot: Snapshot) -> dict[str, str]:
    """What prompts call a language that is not known otherwise: by the name that the editor gave it."""
    return {} if snapshot.language is not None else {"language": snapshot.language_id}


def without_trailing_space(code: str) -> str:
    """`code` without white space at the ends of its lines, and without blank lines at its end."""
    return "\n".join(line.rstrip() for line in code.split("\n")).rstrip()


def ends_of_block(text: str, indent: str) -> int:
    """How much of generated `text` belongs to the block whose lines have at least `indent`.

    The first line counts whole. A following line that is indented less ends the block, and so do two blank
    lines.
    """
    at = text.find("\n")
    if at < 0:
        return len(text)
    blank = 0
    position = at + 1
    end = at
    for line in text[position:].split("\n"):
        if not line.strip():
            blank += 1
            if blank > 1:
                return end
        elif not line.startswith(indent):
            return end
        else:
            blank = 0
            end = position + len(line)
        position += len(line) + 1
    return end


def end_of_definition(language: Language | None, text: str, indent: str) -> int:
    """How much of generated `text`, whose lines have `indent`, there is up to its first definition's end.

    All of it where there is no definition, or no grammar to tell.
    """
    code = dedented_part(text, indent)
    tree = parse(language, code) if language is not None else None
    if tree is None:
        return len(text)
    definition = next((symbol for symbol in tree.outline().symbols if symbol.body is not None), None)
    if definition is None:
        return len(text)
    last = code.count("\n", 0, definition.span.end)
    return len("\n".join(text.split("\n")[: last + 1]))


def without_repetition(text: str, after: str) -> str:
    """`text` without what already stands behind it in `after` (the text behind the cursor)."""
    rest_of_line, _, following = after.partition("\n")
    rest = rest_of_line.strip()
    if rest and "\n" not in text:
        text = _without_rest(text.rstrip(), rest)
    next_line = next((line.strip() for line in following.split("\n") if line.strip()), "")
    if next_line and len(next_line) > 1:
        lines = text.split("\n")
        for index, line in enumerate(lines[1:], start=1):
            if line.strip() == next_line:
                return "\n".join(lines[:index]).rstrip()
    return text


def _without_rest(text: str, rest: str) -> str:
    """Drop the end of `text` that `rest` brings again; closing brackets only where they close nothing."""
    for length in range(min(len(rest), len(text)), 0, -1):
        tail = text[-length:]
        if not rest.startswith(tail):
            continue
        if any(char not in _CLOSERS for char in tail):
            # Words are taken for a repetition only if all of the rest is repeated.
            if length == len(rest):
                return text[:-length]
        elif not _balanced(text):
            return text[:-length]
    return text


def _balanced(text: str) -> bool:
    """Whether nothing is closed in `text` that was not opened there."""
    brackets = all(text.count(left) >= text.count(right) for left, right in ("()", "[]", "{}"))
    return brackets and all(text.count(quote) % 2 == 0 for quote in "\"'`")


def text_at(snapshot: Snapshot, span: Span) -> str:
    """The document's text at `span`."""
    return snapshot.text[span.start : span.end]


def text_after(snapshot: Snapshot, span: Span, edits: Iterable[Edit]) -> str:
    """What stands at `span` after `edits`, which lie inside it or at its edges."""
    inside = [Edit(Span(e.span.start - span.start, e.span.end - span.start), e.text) for e in edits]
    return apply_edits(text_at(snapshot, span), inside)

"""Documentation comments. The model writes the words only; the code around them is never generated."""

from __future__ import annotations

from nexo_lsp.errors import BadAnswer, UsageError
from nexo_lsp.generation import Operation, Priority, Request
from nexo_lsp.pipeline.actions import ActionProgress, Listener, Proposal, Task
from nexo_lsp.pipeline.code import FENCE, dedented_part, head_of_definition, indentation, text_after, text_at
from nexo_lsp.pipeline.step import Workbench, infer
from nexo_lsp.safety.validation import check_syntax, line_end, with_line_ends
from nexo_lsp.syntax.languages import DocStyle, Language
from nexo_lsp.syntax.outline import Symbol
from nexo_lsp.text import Edit, Span

_MAX_TOKENS = 256
_MOST_LINES = 40


class Documenter:
    """Carries out `document`."""

    def __init__(self, bench: Workbench) -> None:
        self._bench = bench

    async def __call__(self, task: Task, progress: Listener) -> Proposal:
        """The proposal for `task`: a docstring or doc comment in the language's own convention."""
        snapshot, symbol = task.snapshot, task.symbol
        language = snapshot.language
        if symbol is None or language is None:
            raise UsageError("There is no definition at this place that could be documented.")
        indent = indentation(snapshot, symbol.span.start)
        code = dedented_part(text_at(snapshot, symbol.span), indent)
        head = dedented_part(head_of_definition(snapshot, symbol, with_docs=False), indent)
        style = language.doc
        request = Request(
            prompt=self._bench.prompts.action(
                "document", language, code, answer_prefix=_opening(language, style, head, symbol)
            ),
            max_tokens=_MAX_TOKENS,
            session="action:document",
            stop=tuple(mark for mark in (style.close.strip(), FENCE) if mark),
            prediction=_present(task, symbol, style, indent),
            priority=Priority.FOREGROUND,
        )

        def on_piece(text: str, tokens: int) -> bool:
            progress(ActionProgress(tokens, text))
            return not style.open and _left_comment(text, style)

        answer = await infer(self._bench.engine(Operation.ACTION), request, on_piece)
        lines = _clean(_lead(language, symbol) + answer.text, style)
        if not lines:
            raise BadAnswer("The model wrote no documentation. Try again, or try a larger model.")
        edit = _edit(task, symbol, style, lines)
        await check_syntax(snapshot, (edit,), self._bench.offload)
        # A comment above is part of what must not change meanwhile.
        about = Span(min(symbol.span.start, edit.span.start), max(symbol.span.end, edit.span.end))
        text = text_after(snapshot, about, (edit,))
        return Proposal(snapshot.uri, snapshot.version, task.offer.title, about, text, (edit,))


def _present(task: Task, symbol: Symbol, style: DocStyle, indent: str) -> str:
    """The documentation that is there and that the answer may repeat in parts, without its opening."""
    if symbol.doc_span is None:
        return ""
    written = dedented_part(text_at(task.snapshot, symbol.doc_span), indent)
    return written.removeprefix(style.open).lstrip().removeprefix(style.line.strip()).lstrip()


def _opening(language: Language, style: DocStyle, head: str, symbol: Symbol) -> str:
    """What the answer begins with, so that the next token is the first word of the documentation."""
    fence = f"{FENCE}{language.id}\n"
    lead = _lead(language, symbol)
    if style.inside:
        return f"{fence}{head}\n    {style.open}{lead}"
    if style.open:
        return f"{fence}{style.open}\n{style.line}{lead}"
    return f"{fence}{style.line}{lead}"


def _lead(language: Language, symbol: Symbol) -> str:
    """The words that a convention demands at the start: Go's docs begin with the name."""
    return f"{symbol.name} " if language.id == "go" else ""


def _left_comment(text: str, style: DocStyle) -> bool:
    """Whether a run of comment lines has been left, looking at whole lines only."""
    marker = style.line.strip()
    return any(not line.lstrip().startswith(marker) for line in text.split("\n")[1:-1])


def _clean(text: str, style: DocStyle) -> list[str]:
    """The words without markers: no blank lines at the ends, nothing behind the comment."""
    marker = style.line.strip()
    lines: list[str] = []
    for number, line in enumerate(text.split("\n")):
        stripped = line.strip()
        if number and not style.open and not stripped.startswith(marker):
            break
        if number and marker and stripped.startswith(marker):
            stripped = stripped[len(marker) :].strip()
        elif style.inside:
            # A docstring's own indentation (of "Args:" blocks) is part of its form.
            stripped = line.rstrip() if number else stripped
        for mark in (style.open, style.close.strip(), FENCE):
            stripped = stripped.replace(mark, "") if mark else stripped
        lines.append(stripped)
    if style.inside:
        lines = _dedent_after_first(lines)
    while lines and not lines[-1].strip():
        lines.pop()
    while lines and not lines[0].strip():
        lines.pop(0)
    return lines[:_MOST_LINES]


def _dedent_after_first(lines: list[str]) -> list[str]:
    widths = [len(line) - len(line.lstrip()) for line in lines[1:] if line.strip()]
    margin = min(widths, default=0)
    return [*lines[:1], *(line[margin:] for line in lines[1:])]


def _edit(task: Task, symbol: Symbol, style: DocStyle, lines: list[str]) -> Edit:
    """The edit that puts the documentation in its place, or in the place of what was there."""
    snapshot = task.snapshot
    text = snapshot.text
    end = line_end(text)
    if style.inside:
        if symbol.body is None:
            raise UsageError("This definition has no body to document.")
        body_start = symbol.doc_span.start if symbol.doc_span is not None else symbol.body.start
        own_line = not text[snapshot.lines.start_of(snapshot.lines.line_of(body_start)) : body_start].strip()
        indent = (
            indentation(snapshot, body_start)
            if own_line
            else indentation(snapshot, symbol.span.start) + "    "
        )
        written = _docstring(lines, style, indent)
        if symbol.doc_span is not None:
            return Edit(symbol.doc_span, with_line_ends(written, end))
        lead = "" if own_line else f"\n{indent}"
        return Edit(Span(body_start, body_start), with_line_ends(f"{lead}{written}\n{indent}", end))
    indent = indentation(snapshot, symbol.span.start)
    written = _comment(lines, style, indent)
    if symbol.doc_span is not None:
        return Edit(symbol.doc_span, with_line_ends(written, end))
    at = symbol.span.start
    return Edit(Span(at, at), with_line_ends(f"{written}\n{indent}", end))


def _docstring(lines: list[str], style: DocStyle, indent: str) -> str:
    if len(lines) == 1:
        return f"{style.open}{lines[0]}{style.close}"
    body = "\n".join([lines[0], *(indent + line if line.strip() else "" for line in lines[1:])])
    return f"{style.open}{body}\n{indent}{style.close}"


def _comment(lines: list[str], style: DocStyle, indent: str) -> str:
    marked = [(style.line + line).rstrip() for line in lines]
    if style.open:
        marked = [style.open, *marked, style.close]
    return f"\n{indent}".join(marked)

"""Actions that write code anew: implement a stub, follow a comment, optimise, fix a finding."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from nexo_lsp.context.budget import estimate_tokens
from nexo_lsp.context.gather import around
from nexo_lsp.documents import Snapshot
from nexo_lsp.errors import BadAnswer, EditRefused, UsageError
from nexo_lsp.generation import ChatPrompt, FinishReason, InfillPrompt, Operation, Priority, Request
from nexo_lsp.pipeline.actions import ActionKind, ActionProgress, Listener, Proposal, Task
from nexo_lsp.pipeline.code import (
    FENCE,
    behind_head,
    common_indentation,
    dedented_part,
    ends_of_block,
    first_symbol,
    head_of_definition,
    indentation,
    indented,
    language_word,
    text_after,
    text_at,
    unfenced,
    unix,
    without_repetition,
    without_trailing_space,
)
from nexo_lsp.pipeline.lines import lines_around, whole_lines
from nexo_lsp.pipeline.step import Answer, Workbench, infer
from nexo_lsp.safety.validation import check_syntax, line_end, minimal_edits, with_line_ends
from nexo_lsp.syntax.outline import Symbol
from nexo_lsp.syntax.parsing import parse
from nexo_lsp.text import Edit, Span

_log = logging.getLogger("nexo_lsp.actions")

_CONTEXT_TOKENS = 600
_BEFORE_TOKENS, _AFTER_TOKENS = 1200, 400
_INFILL_TOKENS = 256
# An answer of a rewrite may be somewhat longer than what it replaces; a new body has this much in any case.
_LEAST_TOKENS, _MOST_TOKENS = 400, 1500
# The second try is made a little warmer: greedily the model would only repeat itself.
_TEMPERATURES = (0.0, 0.5, 0.8)
# An answer may be shorter than what it replaces, and the estimate of tokens is rather high.
_FEWER_TOKENS = 0.6


@dataclass(frozen=True, slots=True)
class _Place:
    """Code as the model sees it: dedented, and split into what stays and what is asked for."""

    span: Span
    symbol: Symbol | None
    """The definition that it is; None for lines that are none."""
    indent: str
    code: str
    head: str


class _CutOff(BadAnswer):
    """The answer was longer than it may be; asking once more would not help."""


class Rewriter:
    """Carries out `generate`, `optimize` and `fix`."""

    def __init__(self, bench: Workbench) -> None:
        self._bench = bench

    async def __call__(self, task: Task, progress: Listener) -> Proposal:
        """The proposal for `task`; raises `EditRefused` or `BadAnswer` if no try gives usable code."""
        symbol = task.symbol
        if task.offer.kind is ActionKind.GENERATE and (symbol is None or symbol.span != task.span):
            return await self._follow_comment(task, progress)
        place = _place(task)
        if estimate_tokens(place.code) * _FEWER_TOKENS > _MOST_TOKENS:
            raise UsageError("This is too much code to be written anew in one answer.")
        last: BadAnswer | EditRefused | None = None
        for attempt, temperature in enumerate(_TEMPERATURES):
            try:
                return await self._attempt(task, place, temperature, attempt, progress)
            except _CutOff:
                raise
            except (BadAnswer, EditRefused) as error:
                _log.info("try %d of %s: %s", attempt + 1, task.offer.title, error)
                last = error
        raise last or BadAnswer("The model gave no answer.")

    async def _attempt(
        self, task: Task, place: _Place, temperature: float, seed: int, progress: Listener
    ) -> Proposal:
        snapshot, kind = task.snapshot, task.offer.kind
        prompt = await self._prompt(task, place)
        room = len(place.code) // 2 + 200
        request = Request(
            prompt=prompt,
            max_tokens=max(_LEAST_TOKENS, min(_MOST_TOKENS, room)),
            session=f"action:{kind}",
            stop=(FENCE,),
            temperature=temperature,
            seed=seed,
            prediction=_expected(place),
            priority=Priority.FOREGROUND,
        )

        def on_piece(text: str, tokens: int) -> None:
            progress(ActionProgress(tokens, indented(place.head + "\n" + text, place.indent)))

        answer = await infer(self._bench.engine(Operation.ACTION), request, on_piece)
        code = _code_of(answer, snapshot, place)
        self._require_use(task, place, code)
        old = text_at(snapshot, place.span)
        edits = minimal_edits(old, indented(code, place.indent), place.span.start)
        await check_syntax(snapshot, edits, self._bench.offload)
        text = text_after(snapshot, place.span, edits)
        return Proposal(snapshot.uri, snapshot.version, task.offer.title, place.span, text, edits)

    async def _prompt(self, task: Task, place: _Place) -> ChatPrompt:
        bench, snapshot = self._bench, task.snapshot
        others = await bench.others(snapshot)
        context = bench.gatherer.surroundings(snapshot, place.span, others, _CONTEXT_TOKENS)
        finding = task.finding
        words = {} if finding is None else {
            "quote": finding.quote, "message": finding.message, "suggestion": finding.suggestion or "none",
        }  # fmt: skip
        fence = snapshot.language.id if snapshot.language is not None else ""
        prefix = f"{FENCE}{fence}\n{place.head}\n" if place.head else f"{FENCE}{fence}\n"
        return bench.prompts.action(
            task.offer.kind if place.symbol is not None else f"{task.offer.kind}_lines",
            snapshot.language,
            place.code,
            context=context.text(),
            answer_prefix=prefix,
            words={**language_word(snapshot), **words},
        )

    def _require_use(self, task: Task, place: _Place, code: str) -> None:
        if code.strip() == without_trailing_space(place.code).strip():
            raise BadAnswer(
                "The model found nothing to change here."
                if task.offer.kind is not ActionKind.GENERATE
                else "The model wrote no code for this place. Try a larger model."
            )
        language, symbol = task.snapshot.language, place.symbol
        tree = parse(language, code) if language is not None and symbol is not None else None
        if tree is None or symbol is None:
            return
        written = next((item for item in tree.outline().symbols if item.name == symbol.name), None)
        # A method may not parse as a definition outside of its class; then only the document's tree can tell.
        if written is not None and written.stub:
            raise BadAnswer(f"The model left '{symbol.name}' without code. Try again, or try a larger model.")

    async def _follow_comment(self, task: Task, progress: Listener) -> Proposal:
        """Write the code that a comment asks for below it."""
        bench, snapshot = self._bench, task.snapshot
        comment = task.span
        end_of_comment = comment.start + len(text_at(snapshot, comment).rstrip())
        indent = indentation(snapshot, comment.start)
        before, after = around(snapshot, end_of_comment, _BEFORE_TOKENS, _AFTER_TOKENS)
        before, after = unix(before), unix(after)
        lead = f"{before}\n{indent}"
        words = bench.infill_of(Operation.ACTION)
        prompt: ChatPrompt | InfillPrompt = bench.prompts.infill(lead, after, *words)
        request = Request(
            prompt=prompt, max_tokens=_INFILL_TOKENS, session="infill", priority=Priority.FOREGROUND
        )

        def on_piece(text: str, tokens: int) -> bool:
            progress(ActionProgress(tokens, indent + text))
            return ends_of_block(text, indent) < len(text.rstrip())

        answer = await infer(bench.engine(Operation.ACTION), request, on_piece)
        text = unix(answer.text)
        text = text[: ends_of_block(text, indent)]
        if answer.finish is not FinishReason.STOP and len(text) == len(answer.text):
            # The last line may be half a line.
            text = text.rpartition("\n")[0] or text
        code = without_repetition(text.rstrip(), after)
        if not code.strip():
            raise BadAnswer(
                "The model wrote no code for this comment. Say more in it, or try a larger model."
            )
        new = with_line_ends(f"\n{indent}{code.lstrip(' ')}", line_end(snapshot.text))
        edit = Edit(Span(end_of_comment, end_of_comment), new)
        await check_syntax(snapshot, (edit,), bench.offload)
        written = text_after(snapshot, comment, (edit,))
        return Proposal(snapshot.uri, snapshot.version, task.offer.title, comment, written, (edit,))


def _place(task: Task) -> _Place:
    """The definition that the task is about, or else the lines. Raises `UsageError` where all is blank."""
    snapshot, symbol = task.snapshot, task.symbol
    if symbol is None:
        around_finding = task.offer.kind is ActionKind.FIX
        span = lines_around(snapshot, task.span) if around_finding else whole_lines(snapshot, task.span)
        if span is None:
            raise UsageError("There is no code at this place.")
        indent = common_indentation(snapshot, span)
        return _Place(span, None, indent, dedented_part(text_at(snapshot, span), indent), "")
    indent = common_indentation(snapshot, symbol.span)
    head = dedented_part(head_of_definition(snapshot, symbol), indent)
    if task.finding is not None and task.finding.quote in head:
        # What is to be fixed stands in the head, so the head has to be written anew as well.
        head = ""
    return _Place(symbol.span, symbol, indent, dedented_part(text_at(snapshot, symbol.span), indent), head)


def _expected(place: _Place) -> str:
    """What the answer, which follows the head, probably repeats; nothing where there is only a stub."""
    if place.symbol is not None and place.symbol.stub:
        return ""
    return f"{behind_head(place.code, place.head)}\n{FENCE}"


def _code_of(answer: Answer, snapshot: Snapshot, place: _Place) -> str:
    """The code of an answer, whole and alone. Raises `_CutOff` if its end is missing."""
    body = unfenced(unix(answer.text))
    whole = without_trailing_space(f"{place.head}\n{body}" if place.head else body)
    code = whole
    if snapshot.language is not None and place.symbol is not None:
        code = without_trailing_space(first_symbol(snapshot.language, whole, place.symbol.name))
    if answer.finish is not FinishReason.STOP and code == whole and FENCE not in answer.text:
        raise _CutOff("The model's answer was cut off before its end, so nothing was changed.")
    return code

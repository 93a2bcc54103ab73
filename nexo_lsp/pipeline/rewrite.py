"""Actions that write code anew: implement a stub, follow a comment, optimise, fix a finding."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from nexo_lsp.context.gather import around
from nexo_lsp.errors import BadAnswer, EditRefused, UsageError
from nexo_lsp.generation import ChatPrompt, InfillPrompt, Priority, Request
from nexo_lsp.pipeline.actions import ActionKind, ActionProgress, Listener, Proposal, Task
from nexo_lsp.pipeline.code import (
    FENCE,
    dedented_part,
    ends_of_block,
    first_symbol,
    head_of_definition,
    indentation,
    indented,
    text_at,
    unfenced,
    without_repetition,
    without_trailing_space,
)
from nexo_lsp.pipeline.step import Workbench, infer
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


@dataclass(frozen=True, slots=True)
class _Place:
    """A definition as the model sees it: dedented, and split into what stays and what is asked for."""

    symbol: Symbol
    indent: str
    code: str
    head: str


class Rewriter:
    """Carries out `generate`, `optimize` and `fix`."""

    def __init__(self, bench: Workbench) -> None:
        self._bench = bench

    async def __call__(self, task: Task, progress: Listener) -> Proposal:
        """The proposal for `task`; raises `EditRefused` or `BadAnswer` if no try gives usable code."""
        symbol = task.symbol
        if task.offer.kind is ActionKind.GENERATE and (symbol is None or symbol.span != task.span):
            return await self._follow_comment(task, progress)
        if symbol is None:
            raise UsageError("There is no function at this place.")
        last: BadAnswer | EditRefused | None = None
        for attempt, temperature in enumerate(_TEMPERATURES):
            try:
                return await self._attempt(task, symbol, temperature, attempt, progress)
            except (BadAnswer, EditRefused) as error:
                _log.info("try %d of %s: %s", attempt + 1, task.offer.title, error)
                last = error
        raise last or BadAnswer("The model gave no answer.")

    async def _attempt(
        self, task: Task, symbol: Symbol, temperature: float, seed: int, progress: Listener
    ) -> Proposal:
        snapshot, kind = task.snapshot, task.offer.kind
        place = self._place(task, symbol)
        prompt = await self._prompt(task, place)
        room = len(place.code) // 2 + 200
        request = Request(
            prompt=prompt,
            max_tokens=max(_LEAST_TOKENS, min(_MOST_TOKENS, room)),
            session=f"action:{kind}",
            stop=(FENCE,),
            temperature=temperature,
            seed=seed,
            priority=Priority.FOREGROUND,
        )

        def on_piece(text: str, tokens: int) -> None:
            progress(ActionProgress(tokens, indented(place.head + "\n" + text, place.indent)))

        answer = await infer(self._bench.engine(), request, on_piece)
        body = unfenced(answer.text)
        code = f"{place.head}\n{body}" if place.head else body
        if snapshot.language is not None:
            code = first_symbol(snapshot.language, code, symbol.name)
        code = without_trailing_space(code)
        self._require_use(task, symbol, code, place.code)
        old = text_at(snapshot, symbol.span)
        edits = minimal_edits(old, indented(code, place.indent), symbol.span.start)
        check_syntax(snapshot, edits)
        text = with_line_ends(indented(code, place.indent), line_end(old))
        return Proposal(snapshot.uri, snapshot.version, task.offer.title, symbol.span, text, edits)

    def _place(self, task: Task, symbol: Symbol) -> _Place:
        snapshot = task.snapshot
        indent = indentation(snapshot, symbol.span.start)
        head = dedented_part(head_of_definition(snapshot, symbol), indent)
        if task.finding is not None and task.finding.quote in head:
            # What is to be fixed stands in the head, so the head has to be written anew as well.
            head = ""
        return _Place(symbol, indent, dedented_part(text_at(snapshot, symbol.span), indent), head)

    async def _prompt(self, task: Task, place: _Place) -> ChatPrompt:
        bench, snapshot = self._bench, task.snapshot
        context = bench.gatherer.surroundings(
            snapshot, place.symbol.span, await bench.others(snapshot), _CONTEXT_TOKENS
        )
        finding = task.finding
        words = {} if finding is None else {
            "quote": finding.quote, "message": finding.message, "suggestion": finding.suggestion or "none",
        }  # fmt: skip
        fence = snapshot.language.id if snapshot.language is not None else ""
        prefix = f"{FENCE}{fence}\n{place.head}\n" if place.head else f"{FENCE}{fence}\n"
        return bench.prompts.action(
            task.offer.kind,
            snapshot.language,
            place.code,
            context=context.text(),
            answer_prefix=prefix,
            words=words,
        )

    def _require_use(self, task: Task, symbol: Symbol, code: str, old: str) -> None:
        if code.strip() == old.strip():
            raise BadAnswer(
                "The model found nothing to change here."
                if task.offer.kind is not ActionKind.GENERATE
                else "The model wrote no code for this place. Try a larger model."
            )
        language = task.snapshot.language
        tree = parse(language, code) if language is not None else None
        if tree is None:
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
        lead = f"{before}\n{indent}"
        prompt: ChatPrompt | InfillPrompt = bench.prompts.infill("", lead, after)
        request = Request(
            prompt=prompt, max_tokens=_INFILL_TOKENS, session="infill", priority=Priority.FOREGROUND
        )

        def on_piece(text: str, tokens: int) -> bool:
            progress(ActionProgress(tokens, indent + text))
            return ends_of_block(text, indent) < len(text.rstrip())

        answer = await infer(bench.engine(), request, on_piece)
        code = without_repetition(answer.text[: ends_of_block(answer.text, indent)].rstrip(), after)
        if not code.strip():
            raise BadAnswer(
                "The model wrote no code for this comment. Say more in it, or try a larger model."
            )
        text = with_line_ends(f"\n{indent}{code.lstrip(' ')}", line_end(snapshot.text))
        edit = Edit(Span(end_of_comment, end_of_comment), text)
        check_syntax(snapshot, (edit,))
        return Proposal(snapshot.uri, snapshot.version, task.offer.title, comment, text, (edit,))

"""Explanations, shown and never written into the code."""

from __future__ import annotations

from nexo_lsp.errors import BadAnswer
from nexo_lsp.generation import Operation, Priority, Request
from nexo_lsp.pipeline.actions import ActionProgress, Explanation, Listener, Task
from nexo_lsp.pipeline.code import language_word
from nexo_lsp.pipeline.step import Workbench, infer
from nexo_lsp.pipeline.units import dedented

_CONTEXT_TOKENS = 600
_MAX_TOKENS = 300


class Explainer:
    """Carries out `explain`."""

    def __init__(self, bench: Workbench) -> None:
        self._bench = bench

    async def __call__(self, task: Task, progress: Listener) -> Explanation:
        """An explanation of the code at the task's span."""
        bench, snapshot = self._bench, task.snapshot
        around = bench.gatherer.surroundings(
            snapshot, task.span, await bench.others(snapshot), _CONTEXT_TOKENS
        )
        request = Request(
            prompt=bench.prompts.action(
                "explain",
                snapshot.language,
                dedented(snapshot, task.span),
                context=around.text(),
                words=language_word(snapshot),
            ),
            max_tokens=_MAX_TOKENS,
            session="action:explain",
            priority=Priority.FOREGROUND,
        )
        answer = await infer(
            bench.engine(Operation.ACTION),
            request,
            lambda text, tokens: progress(ActionProgress(tokens, text)),
        )
        if not answer.text.strip():
            raise BadAnswer("The model had no explanation. Try again, or try a larger model.")
        return Explanation(snapshot.uri, task.offer.title, answer.text.strip())

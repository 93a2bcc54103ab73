"""The engine's metrics in words, for people who wonder why it is slow."""

from __future__ import annotations

from rich.table import Table

from nexo_lsp.app import App, Status
from nexo_lsp.generation import ChatPrompt, Message, Priority, Request, Role
from nexo_lsp.models.catalog import size_text
from nexo_lsp.pipeline.step import infer

_TOKENS = 48


def metrics_rows(status: Status) -> list[tuple[str, str]]:
    """What is known, as pairs of a name and a value; what was never measured is left out."""
    rows = [("queue", f"{status.running} at work, {status.queued} waiting")]
    if status.prompt_tokens_per_s is not None:
        rows.append(("reading", f"{status.prompt_tokens_per_s:.0f} tokens/s"))
    if status.decode_tokens_per_s is not None:
        rows.append(("writing", f"{status.decode_tokens_per_s:.1f} tokens/s for one answer"))
    if status.memory_bytes is not None:
        rows.append(("memory", size_text(status.memory_bytes)))
    metrics = status.metrics
    if metrics is None:
        return rows
    if metrics.batch_fill is not None:
        rows.append(("batch", f"{metrics.batch_fill:.1f} answers written together"))
    if metrics.prompt_tokens:
        rows.append(
            ("cache", f"{_share(metrics.cached_tokens, metrics.prompt_tokens)} of all prompts' tokens")
        )
    rows.append(("cells", f"{metrics.cells:,} tokens kept"))
    if metrics.swapped_bytes:
        rows.append(("swapped out", size_text(metrics.swapped_bytes)))
    if metrics.drafted_tokens:
        rows.append(("guesses", f"{_share(metrics.accepted_tokens, metrics.drafted_tokens)} were right"))
    if metrics.cancel_ms is not None:
        rows.append(("cancel", f"{metrics.cancel_ms:.0f} ms to the next step"))
    if metrics.overtaken:
        rows.append(("overtaken", f"{metrics.overtaken} steps given up for something more urgent"))
    if metrics.threads:
        rows.append(("threads", f"{metrics.threads} for single tokens"))
    return rows


def metrics_table(status: Status) -> Table:
    """The rows as a table for the terminal."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for row in metrics_rows(status):
        table.add_row(*row)
    return table


async def after_an_answer(app: App) -> Status:
    """The status after a short answer, so that there is something to show. Loads the model if need be.

    Raises the kinds of `NexoError`.
    """
    prompt = ChatPrompt((Message(Role.USER, "Count from 1 to 20."),))
    await infer(app.engine(), Request(prompt, max_tokens=_TOKENS, priority=Priority.FOREGROUND))
    return app.status()


def _share(part: int, whole: int) -> str:
    return f"{part:,} of {whole:,} ({100 * part / whole:.0f} %)"

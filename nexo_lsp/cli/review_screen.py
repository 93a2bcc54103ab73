"""What `nexo-lsp review` shows while it works and at its end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from nexo_lsp.cli.finding_block import STYLES, finding_block
from nexo_lsp.cli.review_report import FileReview, Report
from nexo_lsp.cli.terminal import Screen, StatusLine, visible
from nexo_lsp.pipeline.findings import SEVERITIES, Finding
from nexo_lsp.pipeline.review_run import ReviewProgress
from nexo_lsp.settings import Severity
from nexo_lsp.text import LineIndex

# So many files at work are named on the status line.
_NAMED = 3


@dataclass(slots=True)
class _AtWork:
    """A file under review."""

    index: int
    progress: ReviewProgress | None = None


class ReviewScreen:
    """Findings go to the results (only if `text` is wanted there), everything else to the messages."""

    def __init__(self, screen: Screen, *, text: bool) -> None:
        self.screen = screen
        self.status = StatusLine(screen.messages)
        self._text = text
        self._at_work: dict[str, _AtWork] = {}
        self._done = 0
        self._total = 0

    def begin(self, file: FileReview, index: int, total: int) -> None:
        """A file's turn has come."""
        self._total = total
        self._at_work[file.name] = _AtWork(index)
        self._draw()

    def progress(
        self, file: FileReview, progress: ReviewProgress, tokens_per_s: Callable[[], float | None]
    ) -> None:
        """How far a file is. Called for every token, so `tokens_per_s` is asked only if it is to be seen."""
        self._at_work[file.name].progress = progress
        self._draw(tokens_per_s)

    def end(self, file: FileReview) -> None:
        """A file is done."""
        self._done += 1
        self._at_work.pop(file.name, None)
        if self._at_work:
            self._draw()

    def _draw(self, tokens_per_s: Callable[[], float | None] = lambda: None) -> None:
        if not self.screen.messages.is_terminal:
            return
        parts = self._several() if len(self._at_work) > 1 else self._single()
        if speed := tokens_per_s():
            parts.append(f"{speed:.0f} tokens/s")
        self.status.show(" · ".join(parts))

    def _single(self) -> list[str]:
        ((name, work),) = self._at_work.items()
        parts = [f"file {work.index + 1} of {self._total} · {name}" if self._total > 1 else name]
        progress = work.progress
        if progress is not None and progress.done < progress.total:
            parts.append(f"{progress.symbol or 'code'} ({progress.done + 1} of {progress.total})")
        if progress is not None and progress.tokens:
            parts.append(f"{progress.tokens} tokens")
        return parts

    def _several(self) -> list[str]:
        parts = [f"{self._done} of {self._total} files done"]
        for name, work in list(self._at_work.items())[:_NAMED]:
            progress = work.progress
            parts.append(f"{name} {progress.done}/{progress.total}" if progress is not None else name)
        if len(self._at_work) > _NAMED:
            parts.append(f"{len(self._at_work) - _NAMED} more at work")
        return parts

    def findings(self, file: FileReview, new: Sequence[Finding]) -> None:
        """Findings have come."""
        if not self._text:
            return
        console = self.screen.results
        lines = LineIndex(file.text)
        width = console.width if console.is_terminal else None
        for finding in new:
            block = Text("\n").join(finding_block(finding, lines, file.name, width))
            # Whoever reads a pipe wants one line to be one line.
            console.print(block, soft_wrap=width is None)

    def left_out(self, file: FileReview) -> None:
        """A file was not reviewed."""
        self.screen.tell(file.problem, "warning")

    def summary(self, report: Report) -> None:
        """What it all came to."""
        console = self.screen.results
        if len(report.files) > 1 and report.findings:
            console.print(_table(report))
            console.print()
        if report.problem:
            self.screen.tell(report.problem, "error")
        console.print(_last_line(report), soft_wrap=not console.is_terminal)


def _table(report: Report) -> Table:
    severities: list[Severity] = [name for name in reversed(SEVERITIES) if name in report.counts()]
    table = Table(box=None, pad_edge=False)
    table.add_column("File", overflow="fold")
    for name in severities:
        table.add_column(name.capitalize(), justify="right", header_style=STYLES[name])
    for file in report.files:
        if file.findings:
            found = [finding.severity for finding in file.findings]
            counts = [str(found.count(name) or "") for name in severities]
            table.add_row(Text(visible(file.name)), *counts)
    return table


def _last_line(report: Report) -> Text:
    count = len(report.findings)
    reviewed = sum(1 for file in report.files if not file.problem and file.complete)
    line = Text()
    line.append(_counted(count, "finding"), "bold green" if count == 0 else "bold")
    if report.interrupted:
        line.append(", stopped before the end", "bold yellow")
    elif not report.complete:
        line.append(", not complete", "bold yellow")
    line.append(f" in {_counted(reviewed, 'reviewed file')}, {report.seconds:.1f} s")
    if report.model:
        line.append(f" ({visible(report.model)}, {report.engine})", "dim")
    return line


def _counted(count: int, what: str) -> str:
    return f"{count or 'no'} {what}{'' if count == 1 else 's'}"

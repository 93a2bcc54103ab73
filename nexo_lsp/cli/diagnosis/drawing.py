"""The doctor's report on a terminal, a narrow one too; in a pipe each check is one line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nexo_lsp.cli.check import Check, State
from nexo_lsp.cli.diagnosis.plan import NAMES, Better, Cell, EngineRow, ModelPlan, OperationPlan, Plan
from nexo_lsp.cli.diagnosis.report import Report
from nexo_lsp.cli.terminal import visible
from nexo_lsp.generation import Operation
from nexo_lsp.models.catalog import size_text

_MARKS: dict[State, tuple[str, str]] = {
    "ok": ("ok", "green"),
    "warning": ("look", "yellow"),
    "problem": ("wrong", "bold red"),
}
_LONGEST_NAME = 20
_FIRST = "machine"
"""What is shown before the engines, since they are chosen for it."""
_SAME_LINE = frozenset({"grammars"})
"""Areas whose checks are one line while all is well."""


def draw(console: Console, report: Report) -> None:
    """Print all of it."""
    _Screen(console).report(report)


class _Screen:
    def __init__(self, console: Console) -> None:
        self._console = console
        unicode = console.encoding.lower().startswith("utf")
        self._chosen, self._arrow = ("✓", "→") if unicode else ("*", "->")

    def report(self, report: Report) -> None:
        areas: dict[str, list[Check]] = {}
        for check in report.checks:
            areas.setdefault(check.area, []).append(check)
        width = min(_LONGEST_NAME, max((len(check.name) for check in report.checks), default=0))
        self._area(_FIRST, areas.pop(_FIRST, []), width)
        self._engines(report.plan)
        for plan in report.plan.operations:
            self._operation(plan, report.plan.engines)
        for area, checks in areas.items():
            self._area(area, checks, width)
        self._verdict(report.wrong)

    def _title(self, text: str) -> None:
        self._console.print(Text(f"\n{text}", "bold"))

    def _area(self, area: str, checks: Sequence[Check], width: int) -> None:
        self._title(area[:1].upper() + area[1:])
        if area in _SAME_LINE and all(check.state == "ok" for check in checks):
            checks = [Check(area, "languages", "ok", ", ".join(check.value for check in checks))]
        if self._console.is_terminal:
            self._console.print(self._hanging(checks, width))
            return
        for check in checks:
            name = visible(check.name)
            self._line(f"  {_MARKS[check.state][0]:<5}  {name:<{width}}  {visible(check.value)}")
            if check.mend:
                self._line(f"{'':<{width + 11}}{self._arrow} {visible(check.mend)}")

    def _line(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)

    def _hanging(self, checks: Iterable[Check], width: int) -> Table:
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(width=2)
        grid.add_column(width=5)
        grid.add_column(width=width, overflow="fold")
        grid.add_column(overflow="fold")
        for check in checks:
            mark, style = _MARKS[check.state]
            said = Text(visible(check.value))
            if check.mend:
                said.append(f"\n{self._arrow} ", "cyan").append(
                    visible(check.mend), "" if check.state == "ok" else "cyan"
                )
            grid.add_row("", Text(mark, style), Text(visible(check.name)), said)
        return grid

    def _engines(self, plan: Plan) -> None:
        self._title("Engines, with their points for each operation")
        table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
        table.add_column("engine", no_wrap=True)
        for name in NAMES.values():
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("what it is, and what was found", overflow="fold")
        for row in plan.engines:
            used = any(cell.chosen for cell in row.cells.values())
            cells = [self._cell(row.cells[operation]) for operation in NAMES]
            said = Text(row.what).append("\n" + visible("\n".join(_found(row))), "" if used else "dim")
            table.add_row(Text(row.name, "bold" if used else ""), *cells, said)
        self._console.print(table)
        legend = f"{self._chosen} is chosen; when it fails, the next best takes over. - may not be used."
        if any(cell.if_trusted is not None for row in plan.engines for cell in row.cells.values()):
            legend += " ( ) only in workspaces that you trust."
        self._console.print(Text(legend, "dim"))

    def _cell(self, cell: Cell) -> Text:
        if cell.points is None:
            return Text(f"({cell.if_trusted})  " if cell.if_trusted is not None else "-  ", "dim")
        if cell.chosen:
            return Text(f"{cell.points} {self._chosen}", "bold green")
        return Text(f"{cell.points}  ")

    def _operation(self, plan: OperationPlan, engines: Sequence[EngineRow]) -> None:
        names = [NAMES[operation] for operation in plan.operations]
        title = f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]
        self._title(title[:1].upper() + title[1:])
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(width=2)
        grid.add_column(width=8)
        grid.add_column(overflow="fold")
        for name, said in _facts(plan, engines):
            style = "bold red" if name == "engine" and not plan.engine else ""
            grid.add_row("", Text(name, "dim"), Text(visible(said), style))
        self._console.print(grid)

    def _verdict(self, wrong: Sequence[Check]) -> None:
        if not wrong:
            self._console.print(Text("\nAll is well.", "bold green"))
            return
        count = "1 thing is" if len(wrong) == 1 else f"{len(wrong)} things are"
        names = ", ".join(dict.fromkeys(visible(check.name) for check in wrong))
        self._console.print(
            Text(f"\n{count} wrong: {names}.", "bold red"), soft_wrap=not self._console.is_terminal
        )


def _found(row: EngineRow) -> Iterator[str]:
    """What was found out about an engine; what is the same for several operations is said once."""
    said: dict[str, list[Operation]] = {}
    for operation, cell in row.cells.items():
        said.setdefault(cell.probe if cell.points is not None else cell.reasons[0], []).append(operation)
    if len(said) == 1:
        return iter(said)
    return (f"{', '.join(NAMES[one] for one in operations)}: {text}" for text, operations in said.items())


def _facts(plan: OperationPlan, engines: Sequence[EngineRow]) -> Iterator[tuple[str, str]]:
    engine = plan.engine or "none: nothing can be answered"
    then = f"; then {', '.join(plan.next_engines)}" if plan.next_engines else ""
    yield "engine", engine + then
    if plan.if_trusted:
        yield "", f"in workspaces that you trust: {plan.if_trusted}"
    row = next((row for row in engines if row.name == plan.engine), None)
    if row is not None:
        cells = {operation: row.cells[operation] for operation in plan.operations}
        yield from _labelled("points", _points(cells))
    if plan.model is not None:
        yield from _model(plan.model)
    elif plan.own_model:
        yield "model", plan.own_model
    if plan.context_tokens:
        yield "context", f"{plan.context_tokens:,} tokens"
    if plan.threads:
        count = str(plan.threads)
        why = plan.threads_why
        yield "threads", why if why.startswith(count) else f"{count}, {why}"
    if plan.model is not None:
        if plan.model.better is not None:
            yield from _labelled("better", _better(plan.model.better))
        yield from _labelled("not", plan.model.rejected)


def _labelled(name: str, lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """The name before the first line only."""
    return (("" if place else name, line) for place, line in enumerate(lines))


def _points(cells: Mapping[Operation, Cell]) -> Iterator[str]:
    """What the points are for; what is the same for all these operations is said once."""
    everywhere = [set(cell.reasons) for cell in cells.values()]
    same = set[str].intersection(*everywhere)
    first = next(iter(cells.values()))
    yield ", ".join(reason for reason in first.reasons if reason in same)
    for operation, cell in cells.items():
        own = [reason for reason in cell.reasons if reason not in same]
        if own:
            yield f"{NAMES[operation]}: {', '.join(own)}"


def _model(model: ModelPlan) -> Iterator[tuple[str, str]]:
    size = size_text(model.size_bytes) if model.size_bytes else ""
    here = "" if model.state == "here" else model.state
    yield "model", ", ".join(part for part in (model.name, size, model.quantisation, here) if part)
    yield "why", model.why
    if model.memory_bytes:
        of = f"{size_text(model.memory_bytes)} of the {size_text(model.budget_bytes)} that it may take"
        fits = model.memory_bytes <= model.budget_bytes
        yield "memory", of + (", the server's included" if fits else ": its context is made smaller")
    if model.tokens_per_s:
        how = "measured here" if model.measured else "expected; `nexo-lsp doctor --tune` measures"
        yield "speed", f"{model.tokens_per_s:.0f} tokens/s, {how}"


def _better(better: Better) -> Iterator[str]:
    size = f", {size_text(better.size_bytes)}" if better.size_bytes else ""
    yield f"{better.name}{size}: {better.why}"
    yield better.coming

"""What was measured, as a table for people and as values for programs."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

from benchmarks.engine.competitors import OURS, UNCOUNTED, Sample
from benchmarks.engine.workloads import COLD, WORKLOADS, Workload

MEMORY_GOAL = 1.1
W4_OVER_W1 = 1.5


@dataclass(slots=True)
class Results:
    """All samples, by workload and competitor, in the order in which they were taken."""

    machine: str
    model: str
    threads: int
    samples: dict[str, dict[str, list[Sample]]] = field(default_factory=dict[str, dict[str, list[Sample]]])
    missing: dict[str, dict[str, str]] = field(default_factory=dict[str, dict[str, str]])
    """Why a competitor has no figure."""

    def add(self, workload: str, competitor: str, samples: Iterable[Sample]) -> None:
        self.samples.setdefault(workload, {}).setdefault(competitor, []).extend(samples)

    def lacks(self, workload: str, competitor: str, why: str) -> None:
        self.missing.setdefault(workload, {})[competitor] = why


def loaded(text: str) -> Results:
    """Results that were kept as JSON (of `dataclasses.asdict`)."""
    data = json.loads(text)
    samples = {
        workload: {name: [Sample(**sample) for sample in taken] for name, taken in of.items()}
        for workload, of in data.pop("samples").items()
    }
    return Results(**data, samples=samples)


@dataclass(frozen=True, slots=True)
class Row:
    """One competitor in one workload; `ratio` is ours divided by theirs."""

    workload: str
    competitor: str
    figure: float | None
    ratio: float | None = None
    best: bool = False
    """Whether it is the quickest `llama-server`, which is what the goal refers to."""
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """A goal, and how near it we are; `reached` None: not measured."""

    workload: str
    what: str
    goal: float
    value: float | None
    unit: str = ""

    @property
    def reached(self) -> bool | None:
        return None if self.value is None else self.value <= self.goal


@dataclass(frozen=True, slots=True)
class Section:
    """A workload with its rows and goals."""

    id: str
    title: str
    figure_name: str
    rows: tuple[Row, ...]
    verdicts: tuple[Verdict, ...]


def sections(results: Results) -> list[Section]:
    """One for each workload that was run, and one for memory if reviews were."""
    found = [_section(workload, results) for workload in WORKLOADS if _was_run(workload.id, results)]
    if _was_run("W3", results):
        found.append(_memory(results))
    return found


def _was_run(workload: str, results: Results) -> bool:
    return workload in results.samples or workload in results.missing


def _section(workload: Workload, results: Results) -> Section:
    samples = results.samples.get(workload.id, {})
    figures = {name: workload.figure(taken) for name, taken in samples.items()}
    rows = _rows(workload.id, workload.competitors, figures, results)
    rows = [_with_remarks(row, workload, samples.get(row.competitor, ())) for row in rows]
    verdicts: list[Verdict] = []
    best = next((row for row in rows if row.best), None)
    if workload.goal_ratio is not None:
        value = best.ratio if best is not None else None
        verdicts.append(Verdict(workload.id, "ours / the best llama-server", workload.goal_ratio, value))
    if workload.goal_s is not None:
        verdicts.append(Verdict(workload.id, "ours", workload.goal_s, figures.get(OURS), "s"))
    if workload.id == "W4":
        verdicts.append(Verdict("W4", "ours / ours in W1", W4_OVER_W1, _over_w1(figures.get(OURS), results)))
    return Section(workload.id, workload.title, workload.figure_name, tuple(rows), tuple(verdicts))


def _over_w1(ours: float | None, results: Results) -> float | None:
    quiet = results.samples.get("W1", {}).get(OURS)
    first = next(workload for workload in WORKLOADS if workload.id == "W1")
    return None if ours is None or not quiet else ours / first.figure(quiet)


def _rows(workload: str, names: Sequence[str], figures: Mapping[str, float], results: Results) -> list[Row]:
    ours = figures.get(OURS)
    servers = {n: f for n, f in figures.items() if n.startswith("llama-server") and n not in UNCOUNTED}
    best = min(servers, key=lambda name: servers[name], default=None)
    rows: list[Row] = []
    for name in names:
        figure = figures.get(name)
        ratio = ours / figure if ours is not None and figure and name != OURS else None
        why = results.missing.get(workload, {}).get(name)
        uncounted = ("not counted",) if name in UNCOUNTED else ()
        rows.append(Row(workload, name, figure, ratio, name == best, (why,) if why else uncounted))
    return rows


def _with_remarks(row: Row, workload: Workload, samples: Sequence[Sample]) -> Row:
    if not samples:
        return row
    remarks = list(row.remarks)
    tokens = sum(sample.tokens for sample in samples)
    if tokens:
        seconds = sum(sample.seconds for sample in samples)
        remarks.append(f"{tokens} tokens, {1000 * seconds / tokens:.0f} ms each")
    cold = [sample.note[COLD] for sample in samples if COLD in sample.note]
    if cold:
        remarks.append(f"first request {statistics.median(cold):.2f} s")
    if workload.goal_s is not None:
        remarks.append(f"median {statistics.median(sample.seconds for sample in samples):.3f} s")
    if "reviews/min" in workload.notes:
        remarks.append(
            f"{statistics.median(s.note['reviews/min'] for s in samples):.0f} reviews/min meanwhile"
        )
    return Row(row.workload, row.competitor, row.figure, row.ratio, row.best, tuple(remarks))


def _memory(results: Results) -> Section:
    """Resident memory after the reviews; the model file is mapped, so `uss` and `pss` stand beside it."""
    samples = results.samples.get("W3", {})
    figures = {name: taken[-1].note["rss"] for name, taken in samples.items()}
    names = next(workload.competitors for workload in WORKLOADS if workload.id == "W3")
    rows = [
        Row(row.workload, row.competitor, row.figure, row.ratio, row.best, _other_sizes(samples, row))
        for row in _rows("W3", names, figures, results)
    ]
    best = next((row.ratio for row in rows if row.best), None)
    verdict = Verdict("memory", "ours / the best llama-server", MEMORY_GOAL, best)
    return Section("memory", "resident after W3, same context", "MiB", tuple(rows), (verdict,))


def _other_sizes(samples: Mapping[str, Sequence[Sample]], row: Row) -> tuple[str, ...]:
    taken = samples.get(row.competitor)
    if not taken:
        return row.remarks
    return tuple(f"{name} {taken[-1].note[name]:.0f}" for name in ("uss", "pss") if name in taken[-1].note)


def mark(verdict: Verdict) -> str:
    """A sign for whether the goal is reached."""
    return {True: "✓", False: "✗", None: "?"}[verdict.reached]


def markdown(results: Results, made: Sequence[Section], *, picture: str = "") -> str:
    """The results as a document."""
    lines = [
        "# The embedded engine beside llama-server and llama_cpp.Llama",
        "",
        f"`python -m benchmarks.engine` on {results.machine}; {results.model}, {results.threads} threads "
        "each. Competitors take turns within each round; answers are greedy; ratios are ours divided by "
        "theirs, and **bold** is the quickest llama-server, to which the goals refer.",
        "",
        "| workload | goal | reached | |",
        "|---|---|---|---|",
    ]
    for section in made:
        for verdict in section.verdicts:
            value = "not measured" if verdict.value is None else f"{verdict.value:.2f}{_space(verdict.unit)}"
            lines.append(
                f"| {section.id} {section.title}: {verdict.what} | ≤ {verdict.goal:g}{_space(verdict.unit)} "
                f"| {value} | {mark(verdict)} |"
            )
    if picture:
        lines += ["", f"![Our time as a share of each competitor's]({picture})"]
    for section in made:
        lines += ["", f"## {section.id}: {section.title}", ""]
        lines += [f"| engine | {section.figure_name} | ours / theirs | |", "|---|---|---|---|"]
        for row in section.rows:
            name = f"**{row.competitor}**" if row.best else row.competitor
            figure = "—" if row.figure is None else _figure(row.figure)
            ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
            lines.append(f"| {name} | {figure} | {ratio} | {'; '.join(row.remarks)} |")
    return "\n".join(lines) + "\n"


def as_json(results: Results) -> dict[str, object]:
    """Everything, the samples too."""
    return {**asdict(results), "sections": [asdict(section) for section in sections(results)]}


def _figure(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _space(unit: str) -> str:
    return f" {unit}" if unit else ""

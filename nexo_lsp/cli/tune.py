"""`nexo-lsp doctor --tune`: the measuring as a person sees it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import date
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from nexo_lsp.cli.model_store import open_store
from nexo_lsp.engines.llama import tuning
from nexo_lsp.engines.llama.engine import INSTALL_HINT, is_installed
from nexo_lsp.engines.llama.messages import Load
from nexo_lsp.engines.llama.tuning import Figures, best_threads, drafting, measure, suggestion_s, too_busy
from nexo_lsp.engines.llama.tuning_file import Tuned, TuningFile, identity
from nexo_lsp.errors import EngineUnavailable
from nexo_lsp.folders import Folders, folders
from nexo_lsp.runtime.providers.native import draft_for, gpu_layers_of, unpack_folder
from nexo_lsp.settings import EngineSettings, effective

Measure = Callable[[Load, Callable[[tuning.Progress], None]], Figures]

_WAITING = {None: "", True: "asleep", False: "spinning"}


def run(environ: Mapping[str, str], *, as_json: bool, how: Measure = measure) -> bool:
    """Measure the chosen model, show the figures, and remember them; whether they are remembered.

    Raises the kinds of `ModelError` and `EngineError`.
    """
    where = folders(environ)
    settings = effective(where.settings_file, environ).settings
    if not is_installed():
        raise EngineUnavailable(INSTALL_HINT)
    model = open_store(environ).locate(settings.model)
    draft = draft_for(model)
    figures = _measured(how, _wish(settings.engine, model, draft, where))
    tuned = Tuned(date.today(), figures, identity(draft) if draft is not None else "")
    keep = not too_busy(figures)
    if keep:
        TuningFile(where.state).remember(model, tuned)
    if as_json:
        said = {"model": model.name, "remembered": keep, "threads": tuned.threads, "figures": asdict(figures)}
        typer.echo(json.dumps(said, indent=2))
    else:
        _print(Console(highlight=False), model, draft, tuned, keep=keep)
    return keep


def _wish(settings: EngineSettings, model: Path, draft: Path | None, where: Folders) -> Load:
    unpacked = unpack_folder(settings, where)
    return Load(
        path=str(model.absolute()),
        context_tokens=settings.context_tokens,
        gpu_layers=gpu_layers_of(settings.gpu_layers),
        memory_limit_mb=settings.memory_limit_mb,
        draft_path=str(draft.absolute()) if draft is not None else "",
        unpack_folder=str(unpacked) if unpacked is not None else "",
    )


def _measured(how: Measure, wish: Load) -> Figures:
    columns = (BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    # Whether a bar can be drawn there is found out by rich; in a log it leaves one line.
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("starting", total=None)

        def tell(progress: tuning.Progress) -> None:
            bar.update(task, completed=progress.done, total=progress.of, description=progress.doing)

        return how(wish, tell)


def _print(console: Console, model: Path, draft: Path | None, tuned: Tuned, *, keep: bool) -> None:
    figures = tuned.figures
    console.print(_steps(model, figures))
    console.print(_batches(figures))
    console.print(
        f"Meanwhile other programs used {figures.others:.1f} of {figures.processors} processors.",
        markup=False,
    )
    expected = drafting(figures)
    if draft is not None and expected is not None:
        verdict = "it will be used" if expected.pays else "it is not worth its memory"
        console.print(
            f"With {draft.stem} guessing, answers would come {expected.gain:.2f} times as fast: {verdict}."
        )
    elif draft is not None:
        console.print(f"{draft.stem} could not be measured beside it: {figures.draft_note}")
    if keep:
        console.print(
            f"{_threads(tuned.threads).capitalize()} will be used, unless nexo.engine.threads says else."
        )
    else:
        console.print(
            "That is much: the figures say more about those programs than about the machine, and are not "
            "remembered. End some of them, and run `nexo-lsp doctor --tune` again.",
            style="yellow",
            markup=False,
        )


def _steps(model: Path, figures: Figures) -> Table:
    table = Table(title=model.stem, title_justify="left")
    for name in ("threads", "while waiting", "one token, ms", "prompt, tokens/s", "a suggestion, s"):
        table.add_column(name, justify="left" if name == "while waiting" else "right")
    best = best_threads(figures)
    for step in figures.steps:
        threads = step.threads
        table.add_row(
            str(threads),
            _WAITING[step.patient],
            f"{1000 * step.seconds:.1f}",
            f"{figures.prompt_speed(threads):.0f}",
            f"{suggestion_s(figures, threads):.2f}",
            style="bold" if threads == best and step.seconds == figures.step_s(best) else "",
        )
    return table


def _batches(figures: Figures) -> Table:
    table = Table()
    table.add_column("tokens verified in a step", justify="right")
    table.add_column("ms", justify="right")
    table.add_column("ms for each further one", justify="right")
    alone = figures.batches[0]
    for batch in figures.batches:
        further = (
            "" if batch is alone else f"{1000 * (batch.seconds - alone.seconds) / (batch.tokens - 1):.1f}"
        )
        table.add_row(str(batch.tokens), f"{1000 * batch.seconds:.1f}", further)
    return table


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"

"""`nexo-lsp models`: fetch, list, check and remove model files, and make smaller ones.

Exit codes: 0 done, 1 `verify` found a damaged file, 2 no such model, 3 the model could not be had,
130 stopped by Ctrl-C (what came so far is kept).
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Generator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn

from nexo_lsp.cli.exit_codes import ExitCode, exit_code
from nexo_lsp.cli.interrupts import interruptible
from nexo_lsp.cli.model_store import open_store
from nexo_lsp.cli.models_quantize import compress, quantize
from nexo_lsp.errors import ModelError
from nexo_lsp.models.catalog import size_text
from nexo_lsp.models.progress import ProgressReport, PullProgress
from nexo_lsp.models.store import ModelStore, Verdict

app = typer.Typer(help="Fetch, list, check, remove and shrink model files.", no_args_is_help=True)

# Why a source failed is shown beside the bar. Without any handler the logging module would print it a second
# time, in the middle of the bar; handlers that somebody sets up still get it.
logging.getLogger("nexo_lsp.models").addHandler(logging.NullHandler())

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


def pull_with_progress_bar(store: ModelStore, name: str, console: Console, *, force: bool = False) -> Path:
    """Have the model here, showing a bar (size, speed, time left) on `console` while it is fetched.

    Ctrl-C raises `ModelDownloadCancelled` once everything has come to rest; otherwise as `ModelStore.pull`.
    """
    with pull_bar(console, _label(store, name)) as report:
        return interruptible(lambda cancel: store.pull(name, report, cancel, force))


@app.command()
def pull(
    name: Annotated[
        str,
        typer.Argument(
            help="A name of `models list` (`auto` is the default model), hf:owner/repo/file.gguf, "
            "or the https address of a GGUF file."
        ),
    ] = "auto",
    force: Annotated[bool, typer.Option("--force", help="Fetch it again even if it is here.")] = False,
    as_json: AsJson = False,
) -> None:
    """Fetch a model (once; an interrupted download goes on where it stopped)."""
    store = open_store()
    with failures_told(as_json):
        path = pull_with_progress_bar(store, name, Console(stderr=True), force=force)
        label = _label(store, name)
        if as_json:
            print_json({"name": label, "path": str(path), "size": path.stat().st_size})
        else:
            say(f"{label} is ready: {path}")


@app.command()
def remove(name: str, as_json: AsJson = False) -> None:
    """Delete a model, and what was fetched of it in part."""
    store = open_store()
    with failures_told(as_json):
        freed = store.remove(name)
        if as_json:
            print_json({"name": name, "freed": freed})
        else:
            say(f"{name} is removed; {size_text(freed)} are free again.")


@app.command()
def verify(
    name: Annotated[str, typer.Argument(help="Which one; all that are here if left out.")] = "",
    as_json: AsJson = False,
) -> None:
    """Read model files and compare their SHA-256 with the published one."""
    store = open_store()
    with failures_told(as_json):
        names = [name] if name else [model.name for model in store.installed() if model.entry is not None]
        verdicts: list[Verdict] = []
        for one in names:
            with pull_bar(Console(stderr=True), one) as report:
                verdicts.append(_verify(store, one, report))
        if as_json:
            print_json([_verdict_row(verdict) for verdict in verdicts])
        else:
            for verdict in verdicts:
                mend = (
                    f"run `nexo-lsp models pull {verdict.name}` to fetch it again"
                    if verdict.published
                    else f"run `nexo-lsp models remove {verdict.name}`, since it cannot be fetched again"
                )
                say(
                    f"{verdict.name} is right{f' ({verdict.note})' if verdict.note else ''}."
                    if verdict.ok
                    else f"{verdict.path} {verdict.problem}; {mend}."
                )
            if not verdicts:
                say("There is no model on this machine; `nexo-lsp models pull` fetches the default one.")
        if not all(verdict.ok for verdict in verdicts):
            raise typer.Exit(ExitCode.FOUND)


app.command()(quantize)
app.command()(compress)


def _label(store: ModelStore, name: str) -> str:
    entry = store.entry_for(name)
    return entry.name if entry is not None else name


def _verify(store: ModelStore, name: str, report: ProgressReport) -> Verdict:
    return interruptible(lambda cancel: store.verify(name, report, cancel))


@contextlib.contextmanager
def pull_bar(console: Console, name: str) -> Generator[ProgressReport, None, None]:
    """A report function that draws; nothing appears before there is something to report."""
    progress = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TextColumn("{task.fields[speed]}"),
        TextColumn("{task.fields[left]}"),
        console=console,
        disable=not console.is_terminal,
    )
    task: TaskID | None = None
    said = ""

    def report(at: PullProgress) -> None:
        nonlocal task, said
        if task is None:
            if at.phase == "download":
                text = f"Fetching {name} ({size_text(at.total_bytes)})"
                console.print(text, highlight=False, markup=False, soft_wrap=True)
            task = progress.add_task("", speed="", left="")
            progress.start()
        if at.note and at.note != said:
            said = at.note
            console.print(f"  {at.note}", highlight=False, markup=False, soft_wrap=True, style="dim")
        progress.update(
            task,
            description="Checking" if at.phase == "verify" else at.source or "Waiting",
            completed=at.done_bytes,
            total=at.total_bytes,
            speed=f"{size_text(at.bytes_per_s)}/s" if at.bytes_per_s else "",
            left=_left(at.seconds_left),
        )

    try:
        yield report
    finally:
        progress.stop()


def _left(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s left" if minutes else f"{rest} s left"


@contextlib.contextmanager
def failures_told(as_json: bool) -> Generator[None, None, None]:
    """Turn a `ModelError` into a message (or JSON) and the exit code that stands above."""
    try:
        yield
    except ModelError as error:
        if as_json:
            print_json({"error": error.code, "message": str(error)})
        else:
            Console(stderr=True).print(str(error), highlight=False, markup=False, soft_wrap=True, style="red")
        raise typer.Exit(exit_code(error)) from error


def _verdict_row(verdict: Verdict) -> dict[str, Any]:
    return {
        "name": verdict.name,
        "ok": verdict.ok,
        "path": str(verdict.path),
        "size": verdict.size,
        "sha256": verdict.sha256,
        "problem": verdict.problem,
        "note": verdict.note,
    }


def print_json(data: object) -> None:
    """Data for machines, on stdout."""
    typer.echo(json.dumps(data, indent=2))


def say(text: str) -> None:
    """One line for people, on stdout, as it is."""
    Console().print(text, highlight=False, markup=False, soft_wrap=True)

"""`nexo-lsp review`: findings of files and folders on the terminal, or as JSON or SARIF."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from nexo_lsp.app import App, create_app
from nexo_lsp.cli.exit_codes import ExitCode, exit_code, reported
from nexo_lsp.cli.review_files import FileReviews
from nexo_lsp.cli.review_report import FileReview, Report, as_json, as_sarif
from nexo_lsp.cli.review_screen import ReviewScreen
from nexo_lsp.cli.terminal import Screen, TerminalHost
from nexo_lsp.errors import NexoError, UsageError
from nexo_lsp.generation import Operation
from nexo_lsp.ignore import IgnoreRules
from nexo_lsp.offload import in_thread
from nexo_lsp.pipeline.review_run import AT_ONCE
from nexo_lsp.syntax.languages import language_for


class Format(StrEnum):
    """In what form the findings are printed."""

    TEXT = "text"
    JSON = "json"
    SARIF = "sarif"


class Gravity(StrEnum):
    """The severities, as words of the command line."""

    HINT = "hint"
    INFORMATION = "information"
    WARNING = "warning"
    ERROR = "error"


def review(
    paths: Annotated[list[Path], typer.Argument(help="Files and folders.", show_default=False)],
    form: Annotated[
        Format, typer.Option("--format", help="In what form the findings are printed.")
    ] = Format.TEXT,
    as_json_: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
    fail_on: Annotated[
        Gravity | None, typer.Option(help="End with exit code 1 if a finding is at least this grave.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Which model answers, instead of the setting `nexo.model`.")
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            "-j",
            min=1,
            max=1024,
            help="How many functions the engine is asked about at once, over so many files at the most; by "
            "default as many as it takes.",
        ),
    ] = None,
) -> None:
    """Review files, and the files of folders that .gitignore leaves in.

    Findings are printed as they come. Ctrl-C keeps what is done. Exit codes: 0 done, 1 a finding reaches
    --fail-on, 2 a path does not exist, 3 no engine or model, 130 stopped by Ctrl-C.
    """
    # What goes wrong is said once, by the screen; without a handler the log would go to stderr as well.
    logging.getLogger("nexo_lsp").addHandler(logging.NullHandler())
    with reported():
        form = Format.JSON if as_json_ else form
        named = {} if model is None else {"NEXO_MODEL": model, "NEXO_REVIEW_MODEL": model}
        environ = {**os.environ, **named}
        screen = Screen.standard()
        show = ReviewScreen(screen, text=form is Format.TEXT)
        report, failure = asyncio.run(run(paths, environ, show, jobs))
        if form is Format.JSON:
            typer.echo(json.dumps(as_json(report), indent=2))
        elif form is Format.SARIF:
            typer.echo(json.dumps(as_sarif(report, Path.cwd()), indent=2))
        else:
            show.summary(report)
        raise typer.Exit(_ending(report, failure, fail_on))


async def run(
    paths: Sequence[Path], environ: Mapping[str, str], show: ReviewScreen, jobs: int | None = None
) -> tuple[Report, NexoError | None]:
    """Review everything below `paths`; with the report comes the error that ended it early, if one did.

    `jobs` functions are asked about at once; None lets the engine say how many.

    Being cancelled (Ctrl-C) ends it with what there is. Raises `UsageError` for a path that does not exist.
    """
    roots = workspace_of(paths)
    report = Report()
    app = create_app(environ, TerminalHost(show.screen, show.status))
    failure: NexoError | None = None
    started = time.monotonic()
    try:
        for problem in app.configure(()):
            show.screen.tell(str(problem), "warning")
        app.set_workspace(roots, trusted=True)
        report.files = await _found(paths, roots)
        failure = await FileReviews(app, report, show, jobs or _jobs_of(app)).run()
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None:
            task.uncancel()
        report.interrupted = True
    except NexoError as error:
        failure, report.problem = error, str(error)
    finally:
        show.status.hide()
        status = app.status(Operation.REVIEW)
        report.engine, report.model = status.engine, status.model
        report.seconds = time.monotonic() - started
        app.stop()
        await app.close()
    return report, failure


async def _found(paths: Sequence[Path], roots: Sequence[Path]) -> list[FileReview]:
    """The files of `paths`. Raises `UsageError` when there are none; being cancelled ends the search."""
    left = threading.Event()

    def search() -> list[FileReview]:
        found: list[FileReview] = []
        for file in files_of(paths, roots):
            if left.is_set():
                break
            found.append(file)
        return found

    try:
        files = await in_thread(search)
    finally:
        left.set()
    if not files:
        raise UsageError(
            f"there is nothing to review in {', '.join(map(str, paths))}: no file in a known language that "
            "the ignore files leave in"
        )
    return files


def _jobs_of(app: App) -> int:
    """As many as the engine takes, and never fewer than the review of one file asks about at once."""
    try:
        return max(AT_ONCE, app.engine(Operation.REVIEW).capabilities().parallel)
    except NexoError:
        # The first file will say so.
        return AT_ONCE


def workspace_of(paths: Sequence[Path]) -> tuple[Path, ...]:
    """The folders whose ignore files count: those named, and the working folder for what lies below it.

    Raises `UsageError` for a path that does not exist.
    """
    here = Path.cwd()
    roots: list[Path] = []
    for path in paths:
        if not path.exists():
            raise UsageError(f"there is no {path}")
        place = Path(os.path.abspath(path))  # noqa: PTH100 - `resolve` would follow links
        if place.is_relative_to(here):
            roots.append(here)
        else:
            roots.append(place if place.is_dir() else place.parent)
    return tuple(dict.fromkeys(roots))


def files_of(paths: Sequence[Path], roots: Sequence[Path]) -> Iterator[FileReview]:
    """Every file once: those named, and below folders those in a language that is known."""
    rules = IgnoreRules(roots)
    seen: set[Path] = set()
    for path in paths:
        place = Path(os.path.abspath(path))  # noqa: PTH100 - `resolve` would follow links
        for file in rules.walk(place, _is_code) if place.is_dir() else [place]:
            real = file.resolve()
            if real not in seen:
                seen.add(real)
                yield FileReview(path=file, name=_short_name(file))


def _is_code(path: Path) -> bool:
    language = language_for("", path.name)
    return language is not None and bool(language.query)


def _short_name(path: Path) -> str:
    here = Path.cwd()
    return path.relative_to(here).as_posix() if path.is_relative_to(here) else str(path)


def _ending(report: Report, failure: NexoError | None, fail_on: Gravity | None) -> ExitCode:
    if report.interrupted:
        return ExitCode.INTERRUPTED
    if failure is not None:
        return exit_code(failure)
    if fail_on is not None and report.reaches(fail_on.value):
        return ExitCode.FOUND
    if all(file.problem for file in report.files):
        return ExitCode.USAGE
    return ExitCode.OK

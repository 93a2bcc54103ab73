"""With what number the program ends, and the one way in which its commands fail."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from enum import IntEnum

import typer

from nexo_lsp.errors import (
    EngineError,
    ModelDownloadCancelled,
    ModelError,
    ModelUnknown,
    ModelWorkCancelled,
    NexoError,
    UsageError,
)


class ExitCode(IntEnum):
    """The exit codes of every command; shown by `nexo-lsp --help`."""

    OK = 0
    """Done; no finding reaches `--fail-on`; nothing is wrong."""
    FOUND = 1
    """Findings at or above `--fail-on`, or something that `doctor` or `verify` found wrong, or a failure."""
    USAGE = 2
    """The command line does not fit: an unknown option, a path or a model that does not exist."""
    NO_ENGINE = 3
    """The engine or its model could not be had, or failed."""
    INTERRUPTED = 130
    """Ctrl-C; what was done until then has been kept and printed."""


def exit_code(error: NexoError) -> ExitCode:
    """The exit code that an error ends the program with."""
    if isinstance(error, (ModelDownloadCancelled, ModelWorkCancelled)):
        return ExitCode.INTERRUPTED
    if isinstance(error, (UsageError, ModelUnknown)):
        return ExitCode.USAGE
    if isinstance(error, (EngineError, ModelError)):
        return ExitCode.NO_ENGINE
    return ExitCode.FOUND


@contextmanager
def reported() -> Generator[None]:
    """Turn what the body raises on purpose into one line on stderr and an exit code."""
    try:
        yield
    except NexoError as error:
        complain(str(error))
        raise typer.Exit(exit_code(error)) from error
    except KeyboardInterrupt as error:
        complain("stopped")
        raise typer.Exit(ExitCode.INTERRUPTED) from error


def complain(message: str) -> None:
    """One clear line on stderr."""
    print(f"nexo-lsp: {message}", file=sys.stderr)

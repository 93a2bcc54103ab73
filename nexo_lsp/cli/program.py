"""The program as typer sees it: its commands, each imported only when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated

import typer

from nexo_lsp import __version__

_HELP = """Private, local-first AI help for any editor that speaks LSP.

Exit codes: 0 done; 1 findings at or above --fail-on, or something is wrong; 2 the command line does not fit;
3 the engine or its model could not be had; 130 stopped by Ctrl-C.
"""


def build(words: Sequence[str]) -> typer.Typer:
    """The program with as many of its commands as `words` need: one, or all for the help."""
    app = typer.Typer(
        name="nexo-lsp", help=_HELP, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=True
    )
    app.callback()(_program)
    asked = next(iter(words), "")
    if asked in _COMMANDS:
        _COMMANDS[asked](app)
    elif asked != "--version":
        for add in _COMMANDS.values():
            add(app)
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"nexo-lsp {__version__}")
        raise typer.Exit


def _program(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version, and end."),
    ] = False,
) -> None:
    """Take the options that belong to no command."""


def _serve(app: typer.Typer) -> None:
    from nexo_lsp.cli.serve import serve

    app.command()(serve)


def _review(app: typer.Typer) -> None:
    from nexo_lsp.cli.review import review

    app.command()(review)


def _models(app: typer.Typer) -> None:
    from nexo_lsp.cli import models_prune, models_shown, models_versions
    from nexo_lsp.cli.models import app as models

    models_shown.add_to(models)
    models_versions.add_to(models)
    models_prune.add_to(models)
    app.add_typer(models, name="models")


def _docker(app: typer.Typer) -> None:
    from nexo_lsp.cli.docker import app as docker

    app.add_typer(docker, name="docker")


def _doctor(app: typer.Typer) -> None:
    from nexo_lsp.cli.doctor import doctor

    app.command()(doctor)


def _remote(app: typer.Typer) -> None:
    from nexo_lsp.cli.remote import app as remote

    app.add_typer(remote, name="remote")


def _config(app: typer.Typer) -> None:
    from nexo_lsp.cli.config import config

    app.command()(config)


# In the order of the help.
_COMMANDS: Mapping[str, Callable[[typer.Typer], None]] = {
    "serve": _serve,
    "review": _review,
    "models": _models,
    "docker": _docker,
    "doctor": _doctor,
    "remote": _remote,
    "config": _config,
}

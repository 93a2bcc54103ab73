"""`nexo-lsp config`: the settings in force, and where each came from."""

from __future__ import annotations

import json
import os
from typing import Annotated, Any

import typer

from nexo_lsp import settings
from nexo_lsp.cli.exit_codes import ExitCode, complain, reported
from nexo_lsp.errors import UsageError
from nexo_lsp.folders import folders


def config(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema of the section `nexo`, for an editor.")
    ] = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print what every setting does, as a page.")
    ] = False,
) -> None:
    """Show the settings in force and where each came from.

    What an editor sends is known to its server only: ask that one for `nexo/status`, or its log.
    """
    with reported():
        if sum((as_json, schema, markdown)) > 1:
            raise UsageError("give one of --json, --schema and --markdown")
        if schema:
            typer.echo(json.dumps(settings.json_schema(), indent=2))
        elif markdown:
            from nexo_lsp.cli.settings_page import settings_page

            typer.echo(settings_page(), nl=False)
        else:
            _show(as_json)


def _show(as_json: bool) -> None:
    resolved = settings.effective(folders(os.environ).settings_file, os.environ)
    if as_json:
        typer.echo(json.dumps(_data(resolved), indent=2))
    else:
        _print_table(resolved)
        for problem in resolved.problems:
            complain(str(problem))
    if resolved.problems:
        raise typer.Exit(ExitCode.FOUND)


def _data(resolved: settings.Resolved) -> dict[str, Any]:
    return {
        "settings": [
            {
                "name": f"{settings.PREFIX}.{name}",
                "value": settings.value_of(resolved.settings, name),
                "origin": _origin(resolved, name),
                "variable": settings.variable(name),
            }
            for name in settings.names()
        ],
        "problems": [{"name": problem.name, "message": problem.message} for problem in resolved.problems],
    }


def _print_table(resolved: settings.Resolved) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("Setting", "Value", "From", box=None, pad_edge=False)
    for name in settings.names():
        origin = _origin(resolved, name)
        value = json.dumps(settings.value_of(resolved.settings, name))
        table.add_row(
            Text(f"{settings.PREFIX}.{name}"),
            Text(value),
            Text(origin, style="dim" if origin == "default" else ""),
        )
    console = Console()
    console.print(table)
    own = folders(os.environ).settings_file
    there = "" if own.is_file() else " (not there yet)"
    console.print(f"Your settings file: {own}{there}", highlight=False, markup=False, soft_wrap=True)


def _origin(resolved: settings.Resolved, name: str) -> str:
    return resolved.origins.get(f"{settings.PREFIX}.{name}", "default")

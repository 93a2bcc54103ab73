"""`nexo-lsp doctor`: what there is, what is wrong, and the command that mends it."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from nexo_lsp.app import Fetch, create_app
from nexo_lsp.cli.diagnosis.checks import everything
from nexo_lsp.cli.diagnosis.drawing import draw
from nexo_lsp.cli.diagnosis.looks import Looks
from nexo_lsp.cli.diagnosis.plan import read_plan
from nexo_lsp.cli.diagnosis.report import Report, as_data
from nexo_lsp.cli.exit_codes import ExitCode, reported
from nexo_lsp.errors import ModelMissing
from nexo_lsp.runtime.environment import Environment


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
    tune: Annotated[
        bool,
        typer.Option(
            "--tune",
            help="Measure the model on this machine, and remember what suits it: takes half a minute.",
        ),
    ] = False,
    connect: Annotated[
        bool,
        typer.Option(
            "--connect",
            help="Ask the servers of nexo.remote.endpoints too, if they are on. Nothing of yours is sent.",
        ),
    ] = False,
) -> None:
    """Show the machine, which engine and model each operation gets and why, and what is wrong.

    It asks nothing of any network, except with --connect. Exit codes: 0 nothing is wrong, 1 something is (of
    --tune: the machine is too busy to be measured).
    """
    with reported():
        if tune:
            from nexo_lsp.cli.tune import run

            if not run(os.environ, as_json=as_json):
                raise typer.Exit(ExitCode.FOUND)
            return
        report = asyncio.run(examine(os.environ, connect=connect))
        if as_json:
            typer.echo(json.dumps(as_data(report), indent=2))
        else:
            draw(Console(highlight=False), report)
        if not report.well:
            raise typer.Exit(ExitCode.FOUND)


class _SilentHost:
    """Nobody is asked and nothing is fetched: the doctor only looks."""

    async def confirm_download(self, model: str, size_bytes: int) -> bool:
        return False

    async def download(self, model: str, size_bytes: int, fetch: Fetch) -> Path:
        raise ModelMissing(f"{model} is not on this machine")

    def notice(self, message: str, level: str) -> None:
        """What there is to say comes from the checks."""


async def examine(
    environ: Mapping[str, str],
    environment: Environment | None = None,
    looks: Looks | None = None,
    *,
    connect: bool = False,
) -> Report:
    """Look at everything: at this machine, or at the one that `environment` and `looks` describe."""
    app = create_app(environ, _SilentHost(), environment=environment)
    try:
        if environment is None:
            await app.room.find_gpus()
        plan = read_plan(app.room, app.settings, app.folders)
        checks = [*everything(app, environ, plan, looks or Looks())]
        if connect:
            from nexo_lsp.cli.diagnosis.remote_checks import connected

            checks += await connected(app.settings)
        return Report(app.room.environment, plan, tuple(checks))
    finally:
        await app.close()

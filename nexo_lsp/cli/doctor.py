"""`nexo-lsp doctor`: what there is, what is wrong, and the command that mends it."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from nexo_lsp.app import Fetch, create_app
from nexo_lsp.cli.check import Check, State
from nexo_lsp.cli.checks import everything
from nexo_lsp.cli.exit_codes import ExitCode, reported
from nexo_lsp.errors import ModelMissing

_MARKS: dict[State, tuple[str, str]] = {
    "ok": ("ok", "green"),
    "warning": ("look", "yellow"),
    "problem": ("wrong", "bold red"),
}


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
    tune: Annotated[
        bool,
        typer.Option(
            "--tune",
            help="Measure the model on this machine, and remember what suits it: takes half a minute.",
        ),
    ] = False,
) -> None:
    """Show what machine, engine, model, Python and grammars there are, and what is wrong.

    Exit codes: 0 nothing is wrong, 1 something is (of --tune: the machine is too busy to be measured).
    """
    with reported():
        if tune:
            from nexo_lsp.cli.tune import run

            if not run(os.environ, as_json=as_json):
                raise typer.Exit(ExitCode.FOUND)
            return
        checks = asyncio.run(_examine())
        if as_json:
            typer.echo(
                json.dumps({"ok": _well(checks), "checks": [asdict(check) for check in checks]}, indent=2)
            )
        else:
            _print(checks)
        if not _well(checks):
            raise typer.Exit(ExitCode.FOUND)


class _SilentHost:
    """Nobody is asked and nothing is fetched: the doctor only looks."""

    async def confirm_download(self, model: str, size_bytes: int) -> bool:
        return False

    async def download(self, model: str, size_bytes: int, fetch: Fetch) -> Path:
        raise ModelMissing(f"{model} is not on this machine")

    def notice(self, message: str, level: str) -> None:
        """What there is to say comes from the checks."""


async def _examine() -> list[Check]:
    app = create_app(os.environ, _SilentHost())
    try:
        app.configure(())
        status = app.status()
        return list(everything(app.resolved, app.folders, os.environ, status.engine, status.reasons))
    finally:
        await app.close()


def _well(checks: Iterable[Check]) -> bool:
    return all(check.state != "problem" for check in checks)


def _print(checks: list[Check]) -> None:
    console = Console(highlight=False)
    width = max(len(check.name) for check in checks)
    area = ""
    for check in checks:
        if check.area != area:
            area = check.area
            console.print(
                Text(f"\n{area.capitalize()}" if area != checks[0].area else area.capitalize(), "bold")
            )
        mark, style = _MARKS[check.state]
        line = Text.assemble("  ", (f"{mark:<5}", style), f"  {check.name:<{width}}  {check.value}")
        console.print(line, soft_wrap=True)
        if check.mend:
            console.print(Text.assemble(" " * (width + 11), ("→ ", "cyan"), check.mend), soft_wrap=True)
    wrong = sum(1 for check in checks if check.state == "problem")
    verdict = f"{wrong} things are wrong" if wrong > 1 else "1 thing is wrong" if wrong else "All is well"
    console.print(Text(f"\n{verdict}.", "bold red" if wrong else "bold green"))

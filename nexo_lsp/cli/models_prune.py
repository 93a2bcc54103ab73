"""`nexo-lsp models prune`: free what nothing uses. Exit codes as in `models.py`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nexo_lsp.cli import models
from nexo_lsp.cli.models import AsJson, failures_told, print_json, say
from nexo_lsp.cli.models_versions import Yes, agreed
from nexo_lsp.models.catalog import size_text
from nexo_lsp.models.cleaning import Kind, Waste

_KINDS: dict[Kind, str] = {
    "version": "old version",
    "model": "model",
    "partial": "part of a download",
    "copy": "engine's copy",
    "leftover": "leftover",
}


def add_to(app: typer.Typer) -> None:
    """Give `nexo-lsp models` the command of this file."""
    app.command()(prune)


def prune(
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Only show what would go.")] = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Free what nothing uses: old versions, parts of dead downloads, copies of models that are gone.

    Never what is in use, pinned, or named by the settings.
    """
    store = models.open_store()
    with failures_told(as_json):
        waste = store.cleaning.waste(store.configured)
        total = sum(one.size for one in waste)
        if not as_json:
            _show(store.folder, waste, total)
        do = bool(waste) and not dry_run and (yes or (not as_json and agreed(f"Free {size_text(total)}?")))
        gone = store.cleaning.remove(waste) if do else ()
        if as_json:
            rows = [
                {
                    "kind": one.kind,
                    "path": str(one.path),
                    "size": one.size,
                    "why": one.why,
                    "gone": one in gone,
                }
                for one in waste
            ]
            print_json({"freed": sum(one.size for one in gone), "waste": rows})
        elif do:
            say(f"{size_text(sum(one.size for one in gone))} are free again.")
            for one in waste:
                if one not in gone:
                    say(f"{one.path} stays: it is in use now.")


def _show(folder: Path, waste: Sequence[Waste], total: int) -> None:
    if not waste:
        say(f"There is nothing in {folder} that is not needed.")
        return
    table = Table(box=None, pad_edge=False)
    for title in ("What", "Size", "File", "Why"):
        table.add_column(title, no_wrap=title in {"What", "Size"}, overflow="fold")
    for one in sorted(waste, key=lambda one: -one.size):
        file = Text(str(one.path.relative_to(folder)))
        table.add_row(_KINDS[one.kind], size_text(one.size), file, one.why)
    Console().print(table)
    say(f"{size_text(total)} in all, of {folder}.")

"""`nexo-lsp models quantize` and `compress`: smaller files of a model, with what that costs.

Exit codes: 0 done, 1 nothing is within the bounds, 2 the command line does not fit, 3 it could not be done,
130 stopped by Ctrl-C (nothing is left of what was being made).
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from nexo_lsp.cli.exit_codes import ExitCode, exit_code, reported
from nexo_lsp.cli.interrupts import interruptible
from nexo_lsp.cli.model_store import open_store
from nexo_lsp.engines.llama.compress import (
    Bounds,
    Compressed,
    Made,
    Rules,
    Tell,
    Verdict,
    Workshop,
)
from nexo_lsp.engines.llama.engine import INSTALL_HINT, is_installed
from nexo_lsp.engines.llama.perplexity import Loss, Perplexity
from nexo_lsp.engines.llama.quantize import KINDS, Kind, kind_of
from nexo_lsp.errors import EngineUnavailable, NexoError, UsageError
from nexo_lsp.models.catalog import size_text
from nexo_lsp.models.store import ModelStore
from nexo_lsp.models.versions import split_version

T = TypeVar("T")

# How files name their kind at the end: `-q4_k_m`, `.Q8_0`, `-f16`, `-UD-IQ2_XXS`.
_OLD_KIND = re.compile(r"[-._](ud-)?(i?q\d+(_[a-z0-9]+)*|bf16|fp?16|fp?32)$", re.IGNORECASE)
_PART = re.compile(r"-\d{5}-of-\d{5}$")
_OWN = "-own"
"""Behind a file's name where a model that can be fetched has that name."""
# What is fetched by a reference lies under `owner--repo--file.gguf` (`models/references.py`).
_OF_HUB = re.compile(r".+?--.+?--.")
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmg]?)b?", re.IGNORECASE)
_PERCENT = re.compile(r"(\d+(?:\.\d+)?)\s*%?")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Model = Annotated[str, typer.Argument(help="A name of `models list`, or a GGUF file.", metavar="MODEL")]
Force = Annotated[bool, typer.Option("--force", help="Replace a file that is there.")]
Threads = Annotated[
    int, typer.Option("--threads", min=0, help="Processors to use; 0 leaves one to other programs.")
]


def quantize(
    model: Model,
    to: Annotated[str, typer.Option("--to", help=f"One of {', '.join(kind.name for kind in KINDS)}.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="The new file; otherwise it goes to the models folder.")
    ] = None,
    force: Force = False,
    no_check: Annotated[
        bool, typer.Option("--no-check", help="Do not compare the predictions of both files.")
    ] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the file even if it is found broken.")] = False,
    threads: Threads = 0,
    as_json: AsJson = False,
) -> None:
    """Write a model in another kind of quantisation, and say what that costs."""
    with _reported(as_json):
        kind = kind_of(to)
        store = open_store()
        path = _located(store, model)
        rules = Rules(threads=threads, check=not no_check, force=force, keep=keep)
        target = _target(store, path, kind, out)
        made = _watched(path, rules, lambda workshop: workshop.make(kind, target))
        if as_json:
            _print_json(_made_row(made, store))
        else:
            console = Console(highlight=False)
            console.print(_made_table(made))
            _warn(console, made)
            _say_use(console, made, store)


def compress(
    model: Model,
    max_loss: Annotated[
        str, typer.Option("--max-loss", help="How much worse it may predict a text: `5%`.")
    ] = "5%",
    max_size: Annotated[
        str, typer.Option("--max-size", help="The largest file that will do: `500MB`, `1.2GB`.")
    ] = "",
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The new file, or a folder for it; otherwise the models folder."),
    ] = None,
    force: Force = False,
    threads: Threads = 0,
    as_json: AsJson = False,
) -> None:
    """Find the smallest file of a model that predicts nearly as well, for a small machine or a phone.

    Kinds of quantisation are tried from the smallest on; only the one that is chosen stays.
    """
    with _reported(as_json):
        bounds = Bounds(_share(max_loss), _bytes(max_size) if max_size else None)
        store = open_store()
        path = _located(store, model)
        rules = Rules(threads=threads, force=force)
        found = _watched(
            path,
            rules,
            lambda workshop: workshop.compress(lambda kind: _target(store, path, kind, out), bounds),
        )
        if as_json:
            _print_json(_compressed_row(found, store))
        else:
            show(Console(highlight=False), found, store)
        if found.made is None:
            raise typer.Exit(ExitCode.FOUND)


def _located(store: ModelStore, name: str) -> Path:
    path = store.locate(name)
    if not is_installed():
        raise EngineUnavailable(INSTALL_HINT)
    return path


def _target(store: ModelStore, model: Path, kind: Kind, out: Path | None) -> Path:
    """Where the file of `kind` goes. Raises `UsageError` for a name that stands for another file."""
    stem = f"{_OLD_KIND.sub('', _PART.sub('', model.stem))}-{kind.name}"
    if out is not None and not out.is_dir():
        if out.suffix.lower() != ".gguf":
            raise UsageError(f"{out} is no name for a model; let it end in .gguf.")
        if out.absolute().parent == store.folder.absolute() and _is_taken(store, out.name):
            raise UsageError(
                f"{out.name} is the name of a model of the catalogue or the Hub; choose another one."
            )
        return out
    folder = store.folder if out is None else out
    return folder / f"{stem}{_OWN if _is_taken(store, f'{stem}.gguf') else ''}.gguf"


def _is_taken(store: ModelStore, file: str) -> bool:
    """Whether a model that can be fetched has that file name, or may have it, on any file system."""
    plain = split_version(file)[0].lower()
    return _OF_HUB.match(plain) is not None or any(entry.file.lower() == plain for entry in store.catalog)


def _watched(model: Path, rules: Rules, work: Callable[[Workshop], T]) -> T:
    """Do `work` with a bar on stderr; Ctrl-C ends it in good order."""
    with _bar() as tell:

        def do(cancel: threading.Event) -> T:
            return work(Workshop(model, rules, tell, cancel))

        return interruptible(do)


@contextlib.contextmanager
def _bar() -> Generator[Tell, None, None]:
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=1.0)
        now = ""

        def tell(doing: str, share: float) -> None:
            nonlocal now
            if doing != now:
                now = doing
                progress.reset(task, description=doing)
            progress.update(task, completed=share)

        yield tell


@contextlib.contextmanager
def _reported(as_json: bool) -> Generator[None, None, None]:
    if not as_json:
        with reported():
            yield
        return
    try:
        yield
    except NexoError as error:
        _print_json({"error": error.code, "message": str(error)})
        raise typer.Exit(exit_code(error)) from error


def _share(text: str) -> float:
    match = _PERCENT.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"--max-loss {text} is no share; write it as per cent: 5%.")
    return float(match[1]) / 100


def _bytes(text: str) -> int:
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"--max-size {text} is no size; write it as 500MB or 1.2GB.")
    return round(float(match[1]) * _UNITS[match[2].lower()])


def _made_table(made: Made) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in ("", "Kind", "Size", "Perplexity", "Loss", "Tokens/s", "Memory"):
        table.add_column(title, justify="left" if title in {"", "Kind"} else "right", no_wrap=True)
    origin = made.origin
    table.add_row("before", origin.kind or "?", size_text(origin.size), *_reading(made.before, None))
    table.add_row("after", made.kind.name, size_text(made.size), *_reading(made.after, made.loss))
    return table


def show(console: Console, found: Compressed, store: ModelStore) -> None:
    """What was tried, what was chosen, and how it is used."""
    console.print(_tried_table(found))
    if found.made is not None:
        _warn(console, found.made)
        _say_use(console, found.made, store)
        return
    console.print("Nothing smaller is within the bounds; the model stays as it is.", style="yellow")


def _tried_table(found: Compressed) -> Table:
    """All that was looked at, with the reasons."""
    table = Table(box=None, pad_edge=False)
    for title in ("Kind", "Size", "Perplexity", "Loss", "Tokens/s", "Memory"):
        table.add_column(title, justify="left" if title == "Kind" else "right", no_wrap=True)
    table.add_column("")
    origin = found.origin
    table.add_row(
        origin.kind or "?", size_text(origin.size), *_reading(found.before, None), "the model", style="bold"
    )
    for tried in found.tried:
        table.add_row(
            tried.kind.name,
            size_text(tried.size),
            *_reading(tried.after, tried.loss),
            Text(tried.reason),
            style=_STYLES.get(tried.verdict, "dim"),
        )
    return table


_STYLES = {Verdict.CHOSEN: "bold green", Verdict.LOSES: "", Verdict.BROKEN: "red"}


def _reading(reading: Perplexity | None, lost: Loss | None) -> tuple[str, str, str, str]:
    """Perplexity, loss, speed and memory, as far as they are known."""
    change = f"{100 * lost.share:+.1f} ± {100 * lost.uncertainty:.1f} %" if lost is not None else ""
    if reading is None:
        return "", change, "", ""
    return (
        f"{reading.value:.2f} ± {reading.uncertainty:.2f}",
        change,
        f"{reading.write_per_s:.0f}",
        size_text(reading.resident_bytes),
    )


def _warn(console: Console, made: Made) -> None:
    if made.origin.quantized:
        console.print(
            f"{made.origin.path.name} was quantised already: what it had lost before is not counted here. "
            "A file made from the unquantised model (f16) would be better.",
            style="yellow",
            markup=False,
        )


def _say_use(console: Console, made: Made, store: ModelStore) -> None:
    console.print(f"It is {made.path}", markup=False, soft_wrap=True)
    console.print(f"To use it: {_use(made, store)}", markup=False, soft_wrap=True)


def _use(made: Made, store: ModelStore) -> str:
    """The setting that names the new file: by its name alone where the models folder has it."""
    here = made.path.absolute().parent == store.folder.absolute()
    name = made.path.name if here else str(made.path.absolute())
    return f"nexo.model = {json.dumps(name, ensure_ascii=False)}"


def _made_row(made: Made, store: ModelStore) -> dict[str, Any]:
    lost = made.loss
    return {
        "model": _origin_row(made, made.before),
        "result": {
            "path": str(made.path),
            "kind": made.kind.name,
            "size": made.size,
            **_reading_row(made.after, lost),
        },
        "seconds": round(made.seconds, 1),
        "use": _use(made, store),
    }


def _origin_row(of: Made | Compressed, before: Perplexity | None) -> dict[str, Any]:
    origin = of.origin
    return {
        "path": str(origin.path),
        "kind": origin.kind,
        "size": origin.size,
        "quantized": origin.quantized,
        **_reading_row(before, None),
    }


def _reading_row(reading: Perplexity | None, lost: Loss | None) -> dict[str, Any]:
    row: dict[str, Any] = {}
    if reading is not None:
        row |= {
            "perplexity": reading.value,
            "uncertainty": reading.uncertainty,
            "tokens": reading.tokens,
            "tokens_per_s": reading.write_per_s,
            "resident_bytes": reading.resident_bytes,
        }
    if lost is not None:
        row |= {"loss": lost.share, "loss_uncertainty": lost.uncertainty}
    return row


def _compressed_row(found: Compressed, store: ModelStore) -> dict[str, Any]:
    return {
        "model": _origin_row(found, found.before),
        "tried": [
            {
                "kind": tried.kind.name,
                "size": tried.size,
                "verdict": tried.verdict,
                "reason": tried.reason,
                **_reading_row(tried.after, tried.loss),
            }
            for tried in found.tried
        ],
        "chosen": _made_row(found.made, store)["result"] if found.made is not None else None,
        "use": _use(found.made, store) if found.made is not None else "",
    }


def _print_json(data: object) -> None:
    typer.echo(json.dumps(data, indent=2))

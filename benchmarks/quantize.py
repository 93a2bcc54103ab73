"""What quantising the default model costs and brings, kind by kind: `python -m benchmarks.quantize`

Every kind is written from the published file, read with the same text, and removed again.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from pydantic import TypeAdapter

from benchmarks.engine.machine import describe
from nexo_lsp.engines.llama.perplexity import Perplexity, loss, perplexity
from nexo_lsp.engines.llama.quantize import KINDS, Kind, default_threads, foresee, kind_of, write
from nexo_lsp.engines.llama.waiting import Crowd, processors
from nexo_lsp.errors import NexoError
from nexo_lsp.folders import folders
from nexo_lsp.models.store import ModelStore

_WIDTH = 119


@dataclass(frozen=True)
class Row:
    kind: str
    size: int
    seconds: float | None
    """How long it took to write; None for the model itself."""
    reading: Perplexity
    others: float
    """Processors that other programs used while it was read."""


def read(path: Path, kind: str, seconds: float | None, threads: int) -> Row:
    # The process that reads is a child, and has ended when its time is asked for.
    crowd = Crowd(own_s=lambda: sum(os.times()[:4]))
    reading = perplexity(path, threads=threads)
    others = crowd.look() or 0.0
    row = Row(kind, path.stat().st_size, seconds, reading, others)
    print(f"{kind}: perplexity {reading.value:.2f}, {reading.write_per_s:.1f} tokens/s", file=sys.stderr)
    return row


def measure(
    model: Path, kinds: list[Kind], threads: int, folder: Path, rows: list[Row], keep: Callable[[], None]
) -> None:
    """Add to `rows` what is not in them; `keep` is called after each."""
    outlook, done = foresee(model, kinds), {row.kind for row in rows}
    if not rows:
        rows.append(read(model, outlook.origin.kind, None, threads))
        keep()
    for wanted in outlook.kinds:
        if wanted.kind.name in {outlook.origin.kind, *done}:
            continue
        target = folder / f"{wanted.kind.name}.gguf"
        began = time.monotonic()
        write(model, wanted, target, threads=threads)
        seconds = time.monotonic() - began
        try:
            rows.append(read(target, wanted.kind.name, seconds, threads))
        finally:
            target.unlink()
        keep()


ROWS = TypeAdapter(list[Row])


def report(model: Path, rows: list[Row], threads: int, machine: str) -> str:
    before = rows[0].reading
    others = [row.others for row in rows]
    when = (
        f"{date.today().isoformat()}, {machine}; {threads} thread{'s' if threads > 1 else ''}. Meanwhile "
        f"other programs used {min(others):.1f} to {max(others):.1f} of {processors()} processors; where "
        "that is much, times and speeds are hints only. Made by `python -m benchmarks.quantize --write`."
    )
    what = (
        f"All are made from {model.name}, which is quantised itself: what it had lost before is not counted "
        'in the column "loss", and a kind that seems better than it is so by chance. The text has '
        f"{before.tokens:,} judged tokens. The figure behind a ± is one standard error; that of a loss is "
        "smaller because both files read the same tokens. Tokens/s: single tokens, the median of twelve. "
        "Memory: resident, at the end, with a context of 512 tokens."
    )
    lines = [
        "# The default model in other kinds of quantisation",
        "",
        textwrap.fill(when, _WIDTH),
        "",
        textwrap.fill(what, _WIDTH),
        "",
        "| kind | size, MB | perplexity | loss | tokens/s | memory, MB | written in, s |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in sorted(rows, key=lambda row: row.size):
        reading, lost = row.reading, loss(before, row.reading)
        change = (
            "(the model)"
            if row.seconds is None
            else f"{100 * lost.share:+.1f} ± {100 * lost.uncertainty:.1f} %"
        )
        took = "" if row.seconds is None else f"{row.seconds:.0f}"
        lines.append(
            f"| {row.kind} | {row.size / 1e6:.0f} | {reading.value:.2f} ± {reading.uncertainty:.2f} "
            f"| {change} | {reading.write_per_s:.0f} | {reading.resident_bytes / 1e6:.0f} | {took} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="auto")
    parser.add_argument("--kinds", default=",".join(kind.name for kind in KINDS if "16" not in kind.name))
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument(
        "--write", action="store_true", help="keep the page in benchmarks/results/quantize.md"
    )
    parser.add_argument(
        "--state", type=Path, help="keeps what is finished, so that it can be run kind by kind"
    )
    options = parser.parse_args()
    machine, rows = describe(), list[Row]()
    if options.state and options.state.is_file():
        rows = ROWS.validate_json(options.state.read_bytes())

    def keep() -> None:
        if options.state:
            options.state.write_bytes(ROWS.dump_json(rows))

    try:
        model = ModelStore(folders(os.environ).models, os.environ).locate(options.model)
        kinds = [kind_of(name) for name in options.kinds.split(",")]
        with tempfile.TemporaryDirectory() as folder:
            measure(model, kinds, options.threads, Path(folder), rows, keep)
    except NexoError as error:
        raise SystemExit(str(error)) from error
    page = report(model, rows, options.threads, machine)
    if options.write:
        (Path(__file__).parent / "results" / "quantize.md").write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()

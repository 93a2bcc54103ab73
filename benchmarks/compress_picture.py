"""Makes `docs/pictures/models-compress.svg`: what `models compress` says of the default model, for real.

`python -m benchmarks.compress_picture`, some minutes.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import os
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from benchmarks.engine.machine import describe
from nexo_lsp.cli.models_quantize import show
from nexo_lsp.engines.llama.compress import Bounds, Rules, Workshop
from nexo_lsp.folders import folders
from nexo_lsp.models.store import ModelStore

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "pictures" / "models-compress.svg"
SHOWN_AS = Path("~/.cache/nexo-lsp/models")
"""Instead of the folder of whoever runs this."""
MAX_LOSS = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="auto")
    parser.add_argument("--out", type=Path, default=PICTURE)
    options = parser.parse_args()
    machine = describe()
    model = ModelStore(folders(os.environ).models, os.environ).locate(options.model)
    stem = model.stem.removesuffix("-q4_k_m")
    doing = ""

    def tell(what: str, _share: float) -> None:
        nonlocal doing
        if what != doing:
            doing = what
            print(what, file=sys.stderr)

    with tempfile.TemporaryDirectory() as folder:
        found = Workshop(model, Rules(), tell).compress(
            lambda kind: Path(folder) / f"{stem}-{kind.name}.gguf", Bounds(MAX_LOSS)
        )
    if found.made is not None:
        found = dataclasses.replace(
            found, made=dataclasses.replace(found.made, path=SHOWN_AS / found.made.path.name)
        )
    console = Console(record=True, width=118, file=io.StringIO(), force_terminal=True, highlight=False)
    console.print(f"$ nexo-lsp models compress {options.model} --max-loss {MAX_LOSS:.0%}", style="bold")
    show(console, found, ModelStore(SHOWN_AS, {}))
    console.print(machine, style="dim")
    options.out.write_text(console.export_svg(title="nexo-lsp models compress"), encoding="utf-8")


if __name__ == "__main__":
    main()

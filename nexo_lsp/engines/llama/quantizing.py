"""`llama_model_quantize`, in a process of its own: the child behind `quantize.py`."""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from nexo_lsp.engines.llama.errand import ErrandFailed, Said, Say, Trouble, serve
from nexo_lsp.engines.llama.gguf_head import Head
from nexo_lsp.engines.llama.native import Library, NativeError

_MOSTLY = "LLAMA_FTYPE_MOSTLY_"
_NOT_QUANTIZED = frozenset({0, 1, 28, 30})
"""F32, F16, F64 and BF16 of `enum ggml_type`. Norms and biases are kept as such in every kind of file."""
_FILE_TYPE = b"general.file_type"
_PART = re.compile(r"-\d{5}-of-(\d{5})$")
_QUANT_SIZE = re.compile(r"quant size\s*=\s*([\d.]+) MiB")
_TENSOR = re.compile(r"^\[\s*\d+/\s*\d+\]")
_MIB = 2**20
_BUFFER_BYTES = 256 * _MIB
"""Rows that are held at once. llama.cpp's own choice of 8 GiB is more than a small machine has."""


def foresee(library: Library, model: Path, names: list[str]) -> dict[str, Any]:
    """Size and kind of `model`, and what each kind of `names` that this build knows would come to."""
    try:
        with Head(library, model) as head:
            number, offset = head.number(_FILE_TYPE), head.data_offset
            quantized = any(tensor.kind not in _NOT_QUANTIZED for tensor in head.tensors())
    except NativeError as error:
        raise ErrandFailed(Trouble.DAMAGED, "; ".join([*library.errors][-1:]) or str(error)) from error
    ftypes = _ftypes(library)
    kinds: list[dict[str, Any]] = []
    for name in names:
        if name not in ftypes:
            continue
        with _listening(library) as pieces:
            # Nothing is written: that the file exists is all that the target's name has to do.
            _quantize(library, model, model, ftypes[name], threads=1, dry=True)
        log = "".join(pieces)
        size = _QUANT_SIZE.search(log)
        if size is None:
            raise ErrandFailed(Trouble.REFUSED, "this llama.cpp does not say how large the file would be")
        lines = "\n".join(line for line in log.splitlines() if _TENSOR.match(line))
        layout = hashlib.sha256(lines.encode()).hexdigest()
        kinds.append({"kind": name, "size": offset + round(float(size[1]) * _MIB), "layout": layout})
    return {
        "size": sum(path.stat().st_size for path in _parts(model)),
        "kind": next((name for name, value in ftypes.items() if value == number), ""),
        "quantized": quantized,
        "kinds": kinds,
    }


def write(library: Library, model: Path, name: str, target: Path, threads: int) -> dict[str, Any]:
    """Quantise `model` to `target`, and have it on the disk."""
    ftypes = _ftypes(library)
    if name not in ftypes:
        raise ErrandFailed(Trouble.REFUSED, f"this build of llama.cpp has no {name}")
    _quantize(library, model, target, ftypes[name], threads, dry=False)
    try:
        with target.open("r+b") as file:
            os.fsync(file.fileno())
        with Head(library, target) as head:
            end = head.data_offset + max(tensor.offset + tensor.size for tensor in head.tensors())
    except (OSError, NativeError, ValueError) as error:
        raise ErrandFailed(Trouble.REFUSED, f"what was written cannot be kept ({error})") from error
    size = target.stat().st_size
    if size < end:
        raise ErrandFailed(Trouble.REFUSED, f"{size:,} of {end:,} bytes were written")
    return {"size": size}


def _quantize(library: Library, model: Path, target: Path, ftype: int, threads: int, *, dry: bool) -> None:
    c = library.c
    params = c.llama_model_quantize_default_params()
    params.ftype = ftype
    params.nthread = threads
    # Whoever asks for it is told what it means.
    params.allow_requantize = True
    params.dry_run = dry
    params.max_buf_size = _BUFFER_BYTES
    library.errors.clear()
    code = int(c.llama_model_quantize(os.fsencode(model), os.fsencode(target), ctypes.byref(params)))
    if code:
        why = "; ".join(library.errors) or f"llama.cpp answered {code}"
        # What cannot even be gone through without writing is not to blame on the disk.
        raise ErrandFailed(Trouble.DAMAGED if dry else Trouble.REFUSED, why)


def _ftypes(library: Library) -> dict[str, int]:
    """The kinds that this build names, in small letters."""
    names = [name for name in dir(library.c) if name.startswith(_MOSTLY)]
    ftypes = {name.removeprefix(_MOSTLY).lower(): int(getattr(library.c, name)) for name in names}
    return {"f32": int(library.c.LLAMA_FTYPE_ALL_F32), **ftypes}


@contextmanager
def _listening(library: Library) -> Generator[list[str], None, None]:
    pieces: list[str] = []
    library.listener = pieces.append
    library.hold_log = True
    try:
        yield pieces
    finally:
        library.listener = None
        library.hold_log = False
        library.held.clear()


def _parts(model: Path) -> list[Path]:
    """The files of a model: one, or as many as the name of the first says."""
    match = _PART.search(model.stem)
    if match is None:
        return [model]
    head = model.stem[: match.start()]
    return [
        path for path in model.parent.glob(f"*-of-{match[1]}{model.suffix}") if path.name.startswith(head)
    ]


def main() -> None:
    """Do what the wish on stdin says."""
    target: Path | None = None

    def work(wish: Said, _say: Say) -> Said:
        nonlocal target
        try:
            library = Library()
        except NativeError as error:
            raise ErrandFailed(Trouble.REFUSED, str(error)) from error
        model = Path(wish["model"])
        if wish["task"] == "foresee":
            return foresee(library, model, wish["kinds"])
        target = Path(wish["target"])
        return write(library, model, wish["kind"], target, wish["threads"])

    def abandoned() -> None:
        if target is not None:
            with suppress(OSError):
                target.unlink(missing_ok=True)

    serve(work, abandoned)


if __name__ == "__main__":
    main()

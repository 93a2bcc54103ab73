"""Writing a model in another kind of quantisation: which kinds there are, what one would come to, doing it.

llama.cpp does it (`llama_model_quantize`) in a process of its own, `quantizing.py`. A model whose weights are
quantised already can be quantised again, but what was lost stays lost, and a little more goes each time.
"""

from __future__ import annotations

import difflib
import shutil
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from nexo_lsp.engines.llama.errand import ErrandFailed, Trouble, run
from nexo_lsp.engines.llama.waiting import processors
from nexo_lsp.errors import DiskFull, ModelCorrupt, ModelQuantizeFailed, UsageError

_MODULE = "nexo_lsp.engines.llama.quantizing"
_SPARE_DISK = 64 * 2**20
"""What a disk should have left besides: other programs write meanwhile."""

DiskFree = Callable[[Path], int]
"""How many bytes are free where a folder is."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A way to keep weights, as llama.cpp names it."""

    name: str
    about: str


KINDS = (
    Kind("q2_k", "for want of any other way: much is lost"),
    Kind("q3_k_s", "very small"),
    Kind("q3_k_m", "very small"),
    Kind("q4_0", "small, quick on a processor"),
    Kind("q4_k_s", "small"),
    Kind("q4_k_m", "the usual choice"),
    Kind("q5_0", "little is lost"),
    Kind("q5_k_m", "little is lost"),
    Kind("q6_k", "hardly anything is lost"),
    Kind("q8_0", "as good as the original"),
    Kind("bf16", "not quantised: twice the size of q8_0"),
    Kind("f16", "not quantised: twice the size of q8_0"),
)
"""Those that need nothing but the model, the smallest first."""


def kind_of(name: str) -> Kind:
    """The kind of that name, in upper or lower case. Raises `UsageError` that names the nearest ones."""
    wanted = name.strip().lower().replace("-", "_")
    names = [kind.name for kind in KINDS]
    if wanted in names:
        return KINDS[names.index(wanted)]
    close = difflib.get_close_matches(wanted, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else f"there are: {', '.join(names)}."
    raise UsageError(f"There is no kind of quantisation called {name}; {hint}")


@dataclass(frozen=True, slots=True)
class Origin:
    """The model that is to be quantised."""

    path: Path
    size: int
    """Bytes."""
    kind: str
    """What the file says that it is, `q4_k_m` for example; empty where it says nothing that is known."""
    quantized: bool
    """Whether weights of it are quantised already."""


@dataclass(frozen=True, slots=True)
class Foreseen:
    """What the file of one kind would come to."""

    kind: Kind
    size: int
    """Bytes, nearly exact."""
    layout: str
    """The same for two kinds that give the same weights: rows of odd lengths leave llama.cpp less choice."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """What can be made of a model."""

    origin: Origin
    kinds: tuple[Foreseen, ...]


def default_threads() -> int:
    """All processors but one: somebody works on this machine meanwhile."""
    return max(1, processors() - 1)


def free_disk(path: Path) -> int:
    """Free bytes on the disk of `path`, which need not exist yet."""
    return shutil.disk_usage(next(place for place in (path, *path.parents) if place.exists())).free


def foresee(
    model: Path,
    kinds: Sequence[Kind],
    cancel: threading.Event | None = None,
    command: list[str] | None = None,
) -> Outlook:
    """What `model` would come to in each of `kinds`; some tenths of a second, nothing is written.

    Raises `ModelCorrupt` if it is no model that llama.cpp knows, `ModelQuantizeFailed`, `EngineCrashed`,
    `ModelWorkCancelled`.
    """
    wish = {"task": "foresee", "model": str(model.absolute()), "kinds": [kind.name for kind in kinds]}
    try:
        said = run(_MODULE, wish, "Looking into the model", cancel=cancel, command=command)
    except ErrandFailed as error:
        raise _mapped(error, model) from error
    by_name = {kind.name: kind for kind in kinds}
    return Outlook(
        Origin(model, said["size"], said["kind"], said["quantized"]),
        tuple(Foreseen(by_name[one["kind"]], one["size"], one["layout"]) for one in said["kinds"]),
    )


def require_room(wanted: Foreseen, folder: Path, disk_free: DiskFree = free_disk) -> None:
    """Raises `DiskFull` unless `folder` has room for the file."""
    free = disk_free(folder)
    if free < wanted.size + _SPARE_DISK:
        raise _full(wanted, folder, free)


def write(
    model: Path,
    wanted: Foreseen,
    target: Path,
    on_progress: Callable[[float], None] = lambda _share: None,
    *,
    threads: int = 0,
    cancel: threading.Event | None = None,
    disk_free: DiskFree = free_disk,
    command: list[str] | None = None,
) -> None:
    """Write `model` as `wanted` to `target`, which is on the disk when this returns; `model` stays as it is.

    `on_progress` gets 0 to 1, by the bytes that are written. `threads` 0 leaves one processor to others.
    Whatever goes wrong, `target` is removed. Raises as `foresee` does, and `DiskFull`.
    """
    wish = {
        "task": "write",
        "model": str(model.absolute()),
        "kind": wanted.kind.name,
        "target": str(target.absolute()),
        "threads": threads or default_threads(),
    }

    def tick() -> None:
        with suppress(OSError):
            on_progress(min(1.0, target.stat().st_size / wanted.size))

    try:
        run(_MODULE, wish, "Quantising", on_tick=tick, cancel=cancel, command=command)
    except BaseException as error:
        # llama.cpp says only that writing failed; what is left on the disk tells whether it was too little.
        written, free = _size(target), disk_free(target.parent)
        with suppress(OSError):
            target.unlink(missing_ok=True)
        if not isinstance(error, ErrandFailed):
            raise
        if error.trouble is Trouble.REFUSED and free < wanted.size - written:
            raise _full(wanted, target.parent, free) from error
        raise _mapped(error, model) from error
    on_progress(1.0)


def sizes(size: float) -> str:
    """Bytes for people."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def _full(wanted: Foreseen, folder: Path, free: int) -> DiskFull:
    return DiskFull(
        f"The {wanted.kind.name} file takes {sizes(wanted.size)} in {folder}, where {sizes(free)} are free; "
        "make room, or choose another place with --out. Nothing of it is left."
    )


def _mapped(error: ErrandFailed, model: Path) -> ModelCorrupt | ModelQuantizeFailed:
    if error.trouble is Trouble.DAMAGED:
        return ModelCorrupt(
            f"{model} is damaged, cut off, or no model that this llama.cpp knows ({error}); run "
            "`nexo-lsp models verify`, or check where it came from."
        )
    return ModelQuantizeFailed(f"{model.name} could not be quantised: {error}. Nothing of it is left.")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0

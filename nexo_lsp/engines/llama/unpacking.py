"""A copy of a model whose weights are kept in whole bytes: the same values, computed with faster.

Q5_0 keeps a weight in five bits, which have to be put together each time that it is multiplied. Q8_0 has room
for them as they are: with the same scale every weight stays exactly what it was. llama.cpp's matrix kernels
for x86-64 then have less to do: on 2 cores of an AMD EPYC (AVX2) the 0.5B reads prompts 1.3 times as fast,
verifies several tokens at once 1.15 times as fast, and writes single tokens at the same speed. The copy takes
0.6 GB of disk in place of 0.5, and as much more memory. It is mapped from its file like any other model, so
it is made once, in some seconds. On other processors nobody has measured it, and none is made.

Nearly all of a "Q4_K_M" 0.5B is Q5_0, because its rows are no multiple of 256; larger models have few or
none, and no copy. The table of embeddings stays as it is: only single rows of it are ever read.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import filelock
import numpy as np
import numpy.typing as npt

from nexo_lsp.engines.llama.gguf_head import Head, Tensor
from nexo_lsp.engines.llama.model_facts import content_key
from nexo_lsp.engines.llama.native import Library, NativeError

_VERSION = "1"
"""Of the copy's form."""
_MEASURED = frozenset({"x86_64", "AMD64"})
"""Processors, as `platform.machine` names them, on which the copy is known to be faster."""
_Q5_0, _Q8_0 = 6, 8
"""Of `enum ggml_type`."""
_BLOCK = 32
_Q5_BYTES, _Q8_BYTES = 22, 34
"""A block of 32 weights: a scale of two bytes, then 32 fifth bits and 32 halves of a byte; or 32 bytes."""
_EMBEDDINGS = b"token_embd."
_WORTH_SHARE = 0.2
"""Where less of a file than this is Q5_0, a copy of all of it would bring little."""
_MOST_BYTES = 3 * 2**30
"""A larger copy is more than anybody expects on their disk, and large models wait for memory anyway."""
_COPIES = 2
"""So many copies are kept, the ones that were used last: models come and go."""
_SPARE_DISK = 2 * 2**30
"""A disk that has less left than this afterwards is left alone."""
_CHUNK = _Q5_BYTES * 2**16
"""Bytes that are read at once: whole blocks."""
_SYNC_BYTES = 32 * 2**20
"""So much is written before it is waited for: a slow disk shall not look like a process that hangs."""
_PART_OF_MANY = re.compile(r"-\d{5}-of-\d{5}$")

Bytes = npt.NDArray[np.uint8]


class CannotUnpack(Exception):
    """Why there is no copy; the text is for people."""


@dataclass(frozen=True, slots=True)
class Copy:
    """Where the copy of a model is, or would be."""

    model: Path
    path: Path
    size: int
    """Bytes."""
    there: bool


def copy_of(library: Library, model: Path, folder: Path, machine: str | None = None) -> Copy | None:
    """The copy of `model` in `folder`; None where none would be of use.

    `machine` is what `platform.machine` says if it is not given. Raises `CannotUnpack`: it would be of use,
    and there can be none.
    """
    if (machine or platform.machine()) not in _MEASURED or _PART_OF_MANY.search(model.stem):
        return None
    with _told():
        key = content_key(model, f"{_VERSION} {model.stat().st_mtime_ns} ")
        path = folder / f"{model.stem}.{key[:16]}.gguf"
        if path.is_file():
            return Copy(model, path, path.stat().st_size, there=True)
        with Head(library, model) as head:
            if not _worth(head.tensors()):
                return None
            size = _end(head, _changed(head))
        if size > _MOST_BYTES:
            return None
        place = next(place for place in (folder, *folder.parents) if place.exists())
        if shutil.disk_usage(place).free - size < _SPARE_DISK:
            raise CannotUnpack(f"the copy takes {size / 1e9:.1f} GB, and the disk has little more left")
        return Copy(model, path, size, there=False)


def unpack(library: Library, copy: Copy, on_progress: Callable[[float], bool]) -> None:
    """Make the copy, unless it is there.

    `on_progress` gets 0 to 1, and False from it stops. Raises `CannotUnpack`.
    """
    with _told():
        if copy.there:
            # Which copies were used last is known from this.
            copy.path.touch()
            return
        copy.path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(copy.path.parent / ".lock", timeout=0):
            # Another process may have just finished it.
            if not copy.path.is_file():
                with Head(library, copy.model) as head:
                    _make(head, copy, on_progress)
            _let_go(copy.path.parent)


@contextmanager
def _told() -> Generator[None, None, None]:
    """Whatever goes wrong costs only the copy, and is told."""
    try:
        yield
    except filelock.Timeout as error:
        raise CannotUnpack("another process is making a copy just now") from error
    except OSError as error:
        raise CannotUnpack(f"the copy could not be kept: {error.strerror or error}") from error
    except (NativeError, ValueError, NotImplementedError) as error:
        raise CannotUnpack(f"the copy could not be made: {error}") from error


def _unpacks(tensor: Tensor) -> bool:
    """Whether the copy keeps it in whole bytes."""
    return tensor.kind == _Q5_0 and not tensor.name.startswith(_EMBEDDINGS)


def _changed(head: Head) -> list[Tensor]:
    """The tensors as they are in the copy; `head` is its head from now on."""
    for tensor in head.tensors():
        if _unpacks(tensor):
            head.change(tensor.name, _Q8_0)
    return head.tensors()


def _end(head: Head, tensors: list[Tensor]) -> int:
    """How large a file with these tensors is."""
    return head.data_offset + tensors[-1].offset + tensors[-1].size


def _worth(tensors: list[Tensor]) -> bool:
    share = sum(tensor.size for tensor in tensors if _unpacks(tensor))
    return share > _WORTH_SHARE * sum(tensor.size for tensor in tensors)


def _make(head: Head, copy: Copy, on_progress: Callable[[float], bool]) -> None:
    before, start = head.tensors(), head.data_offset
    after = _changed(head)
    partial = copy.path.with_suffix(".partial")
    try:
        head.write(partial)
        with copy.model.open("rb") as source, partial.open("r+b") as target:
            _fill(source, start, target, list(zip(before, after, strict=True)), on_progress)
        partial.replace(copy.path)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def _fill(
    source: BinaryIO,
    start: int,
    target: BinaryIO,
    pairs: list[tuple[Tensor, Tensor]],
    on_progress: Callable[[float], bool],
) -> None:
    begin = target.seek(0, os.SEEK_END)
    whole, waiting = pairs[-1][0].offset + pairs[-1][0].size, 0
    for old, new in pairs:
        source.seek(start + old.offset)
        target.seek(begin + new.offset)
        for at in range(0, old.size, _CHUNK):
            data = source.read(min(_CHUNK, old.size - at))
            if len(data) < min(_CHUNK, old.size - at):
                raise CannotUnpack(f"{source.name} ends before its weights do")
            target.write(in_whole_bytes(np.frombuffer(data, np.uint8)).data if _unpacks(old) else data)
        waiting += new.size
        if waiting > _SYNC_BYTES or new is pairs[-1][1]:
            # A name that outlives a loss of power must not stand for weights that did not.
            target.flush()
            os.fsync(target.fileno())
            waiting = 0
        if not on_progress((old.offset + old.size) / whole):
            raise CannotUnpack("it was stopped")


def in_whole_bytes(packed: Bytes) -> Bytes:
    """Blocks of Q5_0 as blocks of Q8_0 with the same scales and weights.

    A weight of Q5_0 is its scale times a number from -16 to 15, kept as that plus 16: the lower four bits of
    the first 16 and of the last 16 weights share bytes, the fifth bits follow each other from the lowest on
    (`block_q5_0` in llama.cpp's `ggml-common.h`).
    """
    blocks = packed.reshape(-1, _Q5_BYTES)
    fifth, halves = blocks[:, 2:6], blocks[:, 6:]
    result = np.empty((len(blocks), _Q8_BYTES), np.uint8)
    result[:, :2] = blocks[:, :2]
    numbers = result[:, 2:]
    numbers[:] = np.unpackbits(fifth, axis=1, bitorder="little")
    numbers <<= 4
    numbers[:, : _BLOCK // 2] |= halves & 15
    numbers[:, _BLOCK // 2 :] |= halves >> 4
    # Below zero it wraps round, which is how a signed byte is written.
    numbers -= 16
    return result.reshape(-1)


def _let_go(folder: Path) -> None:
    """Remove the copies that were not used for longest, and what is left of some that were never finished."""
    by_use = sorted(folder.glob("*.gguf"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in (*by_use[_COPIES:], *folder.glob("*.partial")):
        with suppress(OSError):
            # Where an engine has it open (Windows) it goes another time.
            path.unlink()

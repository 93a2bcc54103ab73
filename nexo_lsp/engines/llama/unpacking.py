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

import ctypes
import os
import platform
import re
import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import filelock
import numpy as np
import numpy.typing as npt

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
class _Tensor:
    name: bytes
    kind: int
    offset: int
    """From the beginning of the data."""
    size: int

    @property
    def unpacks(self) -> bool:
        """Whether the copy keeps it in whole bytes."""
        return self.kind == _Q5_0 and not self.name.startswith(_EMBEDDINGS)


class _InitParams(ctypes.Structure):
    """`gguf_init_params`: read the head of the file and nothing else."""

    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))


class _Head:
    """The head of a GGUF file, as llama.cpp's own library reads and writes it."""

    def __init__(self, library: Library, path: Path) -> None:
        """Raises `NativeError` if the file cannot be read."""
        self._c = c = _declared(library.ggml)
        self._handle = c.gguf_init_from_file(os.fsencode(path), _InitParams(True, None))
        if not self._handle:
            raise NativeError(f"{path.name} has no head that can be read")

    def __enter__(self) -> _Head:
        return self

    def __exit__(self, *_: object) -> None:
        self._c.gguf_free(self._handle)

    @property
    def data_offset(self) -> int:
        """Where the tensors begin in the file."""
        return int(self._c.gguf_get_data_offset(self._handle))

    def tensors(self) -> list[_Tensor]:
        """All tensors in the order of the file."""
        c, handle = self._c, self._handle
        return [
            _Tensor(
                name=c.gguf_get_tensor_name(handle, index),
                kind=c.gguf_get_tensor_type(handle, index),
                offset=c.gguf_get_tensor_offset(handle, index),
                size=c.gguf_get_tensor_size(handle, index),
            )
            for index in range(c.gguf_get_n_tensors(handle))
        ]

    def change(self, name: bytes, kind: int) -> None:
        """Give a tensor another type; the places of those behind it change too."""
        self._c.gguf_set_tensor_type(self._handle, name, kind)

    def write(self, path: Path) -> None:
        """Begin a file with this head. Raises `OSError`."""
        if not self._c.gguf_write_to_file(self._handle, os.fsencode(path), True):
            raise OSError(f"{path} cannot be written")


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
        with _Head(library, model) as head:
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
                with _Head(library, copy.model) as head:
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


def _changed(head: _Head) -> list[_Tensor]:
    """The tensors as they are in the copy; `head` is its head from now on."""
    for tensor in head.tensors():
        if tensor.unpacks:
            head.change(tensor.name, _Q8_0)
    return head.tensors()


def _end(head: _Head, tensors: list[_Tensor]) -> int:
    """How large a file with these tensors is."""
    return head.data_offset + tensors[-1].offset + tensors[-1].size


def _worth(tensors: list[_Tensor]) -> bool:
    share = sum(tensor.size for tensor in tensors if tensor.unpacks)
    return share > _WORTH_SHARE * sum(tensor.size for tensor in tensors)


def _make(head: _Head, copy: Copy, on_progress: Callable[[float], bool]) -> None:
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
    pairs: list[tuple[_Tensor, _Tensor]],
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
            target.write(in_whole_bytes(np.frombuffer(data, np.uint8)).data if old.unpacks else data)
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


def _declared(c: Any) -> Any:
    """The functions of `gguf.h` with their types."""
    handle, index = ctypes.c_void_p, ctypes.c_int64
    for name, result, arguments in (
        ("gguf_init_from_file", handle, (ctypes.c_char_p, _InitParams)),
        ("gguf_free", None, (handle,)),
        ("gguf_get_data_offset", ctypes.c_size_t, (handle,)),
        ("gguf_get_n_tensors", index, (handle,)),
        ("gguf_get_tensor_name", ctypes.c_char_p, (handle, index)),
        ("gguf_get_tensor_type", ctypes.c_int, (handle, index)),
        ("gguf_get_tensor_offset", ctypes.c_size_t, (handle, index)),
        ("gguf_get_tensor_size", ctypes.c_size_t, (handle, index)),
        ("gguf_set_tensor_type", None, (handle, ctypes.c_char_p, ctypes.c_int)),
        ("gguf_write_to_file", ctypes.c_bool, (handle, ctypes.c_char_p, ctypes.c_bool)),
    ):
        function = getattr(c, name)
        function.restype, function.argtypes = result, arguments
    return c

"""The head of a GGUF file, as llama.cpp's own library reads and writes it."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nexo_lsp.engines.llama.native import Library, NativeError

_UINT32 = 4
"""Of `enum gguf_type`."""
_REARRANGED = frozenset({2, 10, 12, 20})
"""Q4_0, Q2_K, Q4_K and IQ4_NL of `enum ggml_type`: llama.cpp copies such weights into the order that the
vector units of a processor like (ggml's `ggml-cpu/repack.cpp`)."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a file."""

    name: bytes
    kind: int
    """Of `enum ggml_type`."""
    offset: int
    """From the beginning of the data."""
    size: int
    """Bytes."""


class _InitParams(ctypes.Structure):
    """`gguf_init_params`: read the head of the file and nothing else."""

    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))


class Head:
    """The head of a GGUF file, as llama.cpp's own library reads and writes it."""

    def __init__(self, library: Library, path: Path) -> None:
        """Raises `NativeError` if the file cannot be read."""
        self._c = c = _declared(library.ggml)
        self._handle = c.gguf_init_from_file(os.fsencode(path), _InitParams(True, None))
        if not self._handle:
            raise NativeError(f"{path.name} has no head that can be read")

    def __enter__(self) -> Head:
        return self

    def __exit__(self, *_: object) -> None:
        self._c.gguf_free(self._handle)

    @property
    def data_offset(self) -> int:
        """Where the tensors begin in the file."""
        return int(self._c.gguf_get_data_offset(self._handle))

    def tensors(self) -> list[Tensor]:
        """All tensors in the order of the file."""
        c, handle = self._c, self._handle
        return [
            Tensor(
                name=c.gguf_get_tensor_name(handle, index),
                kind=c.gguf_get_tensor_type(handle, index),
                offset=c.gguf_get_tensor_offset(handle, index),
                size=c.gguf_get_tensor_size(handle, index),
            )
            for index in range(c.gguf_get_n_tensors(handle))
        ]

    def number(self, key: bytes) -> int | None:
        """What the file says under `key`, if that is a number of 32 bits without a sign."""
        index = self._c.gguf_find_key(self._handle, key)
        if index < 0 or self._c.gguf_get_kv_type(self._handle, index) != _UINT32:
            return None
        return int(self._c.gguf_get_val_u32(self._handle, index))

    def change(self, name: bytes, kind: int) -> None:
        """Give a tensor another type; the places of those behind it change too."""
        self._c.gguf_set_tensor_type(self._handle, name, kind)

    def write(self, path: Path) -> None:
        """Begin a file with this head. Raises `OSError`."""
        if not self._c.gguf_write_to_file(self._handle, os.fsencode(path), True):
            raise OSError(f"{path} cannot be written")


def is_rearranged(library: Library, path: Path) -> bool:
    """Whether a processor keeps most of a model in another order than its file has.

    Then it should be read and not mapped: what is mapped stays resident beside the copy, although nobody
    looks at it again (the 1.5B took 1,746 MiB mapped, and 1,157 read; a file that is used as it is takes the
    same either way, and mapped it is shared and can be given up).
    """
    try:
        with Head(library, path) as head:
            tensors = head.tensors()
    except NativeError:
        # It cannot be loaded either, which is said there.
        return False
    share = sum(tensor.size for tensor in tensors if tensor.kind in _REARRANGED)
    return 2 * share > sum(tensor.size for tensor in tensors)


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
        ("gguf_find_key", index, (handle, ctypes.c_char_p)),
        ("gguf_get_kv_type", ctypes.c_int, (handle, index)),
        ("gguf_get_val_u32", ctypes.c_uint32, (handle, index)),
        ("gguf_set_tensor_type", None, (handle, ctypes.c_char_p, ctypes.c_int)),
        ("gguf_write_to_file", ctypes.c_bool, (handle, ctypes.c_char_p, ctypes.c_bool)),
    ):
        function = getattr(c, name)
        function.restype, function.argtypes = result, arguments
    return c

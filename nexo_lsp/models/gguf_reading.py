"""Reads what stands before the tensors of a GGUF file, in plain Python, without loading anything.

The form is that of ggml's `docs/gguf.md`: a magic word, counts, keys with values, and a list of tensors. All
of it may be damaged or made to do harm, so nothing is believed: every count is held against the bytes that
are there, long arrays are stepped over and never built, and what is wrong ends in one of the errors below.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nexo_lsp.errors import ModelError

Scalar = int | float | bool | str
Value = Scalar | tuple[Scalar, ...]
"""What a key may hold here; arrays of more than `_SHORT` items are left out."""

TOKENS_KEY = "tokenizer.ggml.tokens"

_SHORT = 4096
_MOST_ITEMS = 1 << 22
"""Far more than any vocabulary or list of merges has."""
_MOST_ENTRIES = 100_000
"""Keys, or tensors."""
_MOST_TEXT = 1 << 20
"""Bytes of a text that are kept."""
_DEEPEST = 4
_FIRST_READ = 16 << 20
_MOST_HEADER = 256 << 20
_MAGIC = b"GGUF"
_STRING, _ARRAY = 8, 9
_FORMATS = {
    **{0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i"},
    **{6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"},
}
_SCALARS = {kind: struct.Struct(form) for kind, form in _FORMATS.items()}
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_MOST_DIMENSIONS = 4

# ggml's types of tensors: how many values a block holds, and its bytes (`ggml/src/ggml-common.h`).
TENSOR_TYPES: Mapping[int, tuple[str, int, int]] = {
    **{0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22)},
    **{7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 40), 10: ("Q2_K", 256, 84)},
    **{11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210)},
    **{15: ("Q8_K", 256, 292), 16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98)},
    **{19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82)},
    **{23: ("IQ4_XS", 256, 136), 24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8)},
    **{28: ("F64", 1, 8), 29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54)},
    **{35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18)},
}


class NotGguf(ModelError):
    """The file is something else."""

    code = "model-not-gguf"


class GgufTruncated(ModelError):
    """The file ends before its header does."""

    code = "model-truncated"


class GgufUnsupported(ModelError):
    """A GGUF of a version or byte order that this project does not read."""

    code = "model-unsupported"


class GgufDamaged(ModelError):
    """The header says what cannot be."""

    code = "model-damaged"


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The texts of the tokens, where they lie in the header: looked up, never built as a list."""

    data: bytes = b""
    starts: array[int] = field(default_factory=lambda: array("Q"))
    """Where each token's text begins with its length, in ascending order."""
    end: int = 0

    def text(self, token: int) -> str | None:
        """The text of a token, or None where there is no such token."""
        if not 0 <= token < len(self.starts):
            return None
        start = self.starts[token]
        (length,) = _U64.unpack_from(self.data, start)
        return self.data[start + 8 : start + 8 + length].decode("utf-8", "replace")

    def first_of(self, texts: Iterable[str]) -> str | None:
        """The first of `texts` that is a token, or None."""
        for text in texts:
            raw = text.encode()
            wanted, at = _U64.pack(len(raw)) + raw, self.starts[0] if self.starts else 0
            while (at := self.data.find(wanted, at, self.end)) >= 0:
                # The same bytes could stand inside another token.
                index = bisect_left(self.starts, at)
                if index < len(self.starts) and self.starts[index] == at:
                    return text
                at += 1
        return None


@dataclass(frozen=True, slots=True)
class Contents:
    """What the header of a GGUF file says."""

    version: int
    values: Mapping[str, Value]
    vocabulary: Vocabulary
    tensors: int
    """How many there are."""
    parameters: int
    """Values of all tensors together."""
    type_values: Mapping[str, int]
    """How many of them are of each type, by its name; empty for a type that is not known here."""
    tensor_bytes: int
    """What the tensors take; those of a type that is not known here count nothing."""
    needed_bytes: int
    """How long the file has to be to hold all tensors."""
    file_bytes: int


def read_contents(path: Path) -> Contents:
    """The header of the file `path`.

    Raises `NotGguf`, `GgufTruncated`, `GgufUnsupported`, `GgufDamaged`, all of them `ModelError`, and plain
    `ModelError` where the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            wanted, data = _FIRST_READ, b""
            while True:
                data += file.read(min(wanted, size) - len(data))
                try:
                    return _parse(data, size, path)
                except _Short:
                    if len(data) < wanted or wanted >= size:
                        raise GgufTruncated(
                            f"{path} ends before its header does; it was not copied whole. Fetch it again."
                        ) from None
                    if wanted >= _MOST_HEADER:
                        raise _damaged(path, "its header has no end") from None
                wanted *= 4
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror or error}).") from error


class _Short(Exception):
    """More bytes are needed."""


def _damaged(path: Path, what: str) -> GgufDamaged:
    return GgufDamaged(f"{path} is damaged: {what}. Fetch it again.")


def _parse(data: bytes, size: int, path: Path) -> Contents:
    if data[:4] != _MAGIC[: len(data)] or not data:
        raise NotGguf(f"{path} is not a GGUF file; models for llama.cpp are.")
    reader = _Reader(data, path)
    reader.at = 4
    version = reader.number(_U32)
    # 2 and 3 differ in nothing that matters here. Read in the wrong order, small numbers are large.
    if version and not version & 0xFFFF:
        raise GgufUnsupported(
            f"{path} is a GGUF file of big-endian numbers, which llama.cpp does not read here."
        )
    if version not in {2, 3}:
        hint = "older than any that is read; convert it again" if version < 2 else "newer; update nexo-lsp"
        raise GgufUnsupported(f"{path} is a GGUF file of version {version}, which is {hint}.")
    tensors, keys = reader.number(_U64), reader.number(_U64)
    if max(tensors, keys) > _MOST_ENTRIES:
        raise _damaged(path, f"it names {max(tensors, keys):,} entries")
    values: dict[str, Value] = {}
    for _ in range(keys):
        key = reader.text()
        value = reader.value(reader.number(_U32), key)
        if value is not None:
            values[key] = value
    return reader.tensors(version, tensors, values, size)


class _Reader:
    """Goes through the bytes; raises `_Short` where they end too early."""

    def __init__(self, data: bytes, path: Path) -> None:
        self.at = 0
        self._data = data
        self._path = path
        self._vocabulary = Vocabulary()

    def number(self, form: struct.Struct) -> int:
        """The next number of a fixed form."""
        return form.unpack(self._take(form.size))[0]

    def text(self) -> str:
        """The next text, of which no more than a megabyte is kept."""
        length = self.number(_U64)
        start = self.at
        self._skip(length)
        return self._data[start : start + min(length, _MOST_TEXT)].decode("utf-8", "replace")

    def value(self, kind: int, key: str, depth: int = 0) -> Value | None:
        """The next value of a kind; None for an array that is too long to keep."""
        if kind == _STRING:
            return self.text()
        if kind in _SCALARS:
            form = _SCALARS[kind]
            return form.unpack(self._take(form.size))[0]
        if kind != _ARRAY or depth >= _DEEPEST:
            raise _damaged(self._path, f"the value of {key[:100]!r} is of no known kind")
        item, count = self.number(_U32), self.number(_U64)
        if count > _MOST_ITEMS:
            raise _damaged(self._path, f"{key[:100]!r} has {count:,} items")
        if item in _SCALARS and count > _SHORT:
            self._skip(count * _SCALARS[item].size)
            return None
        if item == _STRING and (count > _SHORT or key == TOKENS_KEY):
            starts = self._starts(count)
            if key == TOKENS_KEY:
                self._vocabulary = Vocabulary(self._data, starts, self.at)
            return None
        if count > _SHORT:
            raise _damaged(self._path, f"{key[:100]!r} has {count:,} items")
        items = [self.value(item, key, depth + 1) for _ in range(count)]
        return tuple(found for found in items if isinstance(found, Scalar))

    def tensors(self, version: int, count: int, values: Mapping[str, Value], size: int) -> Contents:
        """The list of tensors, with which the header ends."""
        tensor_bytes, end = 0, 0
        type_values: dict[str, int] = {}
        for _ in range(count):
            name, dimensions = self.text(), self.number(_U32)
            if dimensions > _MOST_DIMENSIONS:
                raise _damaged(self._path, f"the tensor {name[:100]!r} has {dimensions:,} dimensions")
            items = 1
            for _ in range(dimensions):
                items *= self.number(_U64)
            title, block, block_bytes = TENSOR_TYPES.get(self.number(_U32), ("", 1, 0))
            taken, start = items // block * block_bytes, self.number(_U64)
            type_values[title] = type_values.get(title, 0) + items
            tensor_bytes += taken
            end = max(end, start + taken)
        alignment = values.get("general.alignment", 32)
        alignment = alignment if isinstance(alignment, int) and 0 < alignment <= 1 << 16 else 32
        needed = -(-self.at // alignment) * alignment + end
        return Contents(
            version=version,
            values=values,
            vocabulary=self._vocabulary,
            tensors=count,
            parameters=sum(type_values.values()),
            type_values=type_values,
            tensor_bytes=tensor_bytes,
            needed_bytes=needed if count else self.at,
            file_bytes=size,
        )

    def _starts(self, count: int) -> array[int]:
        """Steps over so many texts; gives where each begins."""
        data, at, end, unpack = self._data, self.at, len(self._data) - 8, _U64.unpack_from
        starts = array("Q")
        for _ in range(count):
            if at > end:
                raise _Short
            starts.append(at)
            at += 8 + unpack(data, at)[0]
        self.at = at
        self._skip(0)
        return starts

    def _take(self, count: int) -> bytes:
        start = self.at
        self._skip(count)
        return self._data[start : self.at]

    def _skip(self, count: int) -> None:
        self.at += count
        if self.at > len(self._data):
            raise _Short

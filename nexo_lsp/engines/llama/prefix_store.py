"""Evaluated static prompt prefixes on disk, so that the first request after a start does not pay for them.

A file holds the tokens of a prefix and what the model computed for them. All of it can be computed again, so
nothing here raises: a file that is damaged is removed, a disk that is full is mentioned once.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
import sys
import tempfile
import time
import zlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

_MAGIC = b"nexo-prefix-1\n\0\0"
# The mark, the owner's key, the bytes of the tokens and of the state, the state's checksum.
_HEADER = struct.Struct("<16s16sQQI")
_SUFFIX, _UNFINISHED = ".prefix", ".tmp"
_FOLDER_NAME = re.compile(r"[0-9a-f]{32}")

_ABANDONED_S = 3600.0
"""A file that another process began to write and left this long ago will not be finished."""
_UNUSED_S = 30 * 86400.0
"""The prefixes of a model, or of a build of llama.cpp, that was not used for so long are removed."""


class PrefixStore:
    """The prefixes of one model and build in one folder; several processes may use it at once."""

    def __init__(
        self, folder: Path, key: str, limit_bytes: int, now: Callable[[], float] = time.time
    ) -> None:
        """`key` names everything that the states depend on; what another key wrote is never read.

        `now` gives seconds since the epoch, as the times of files do.
        """
        self._root = folder
        self._key = hashlib.sha256(key.encode()).digest()[:16]
        self._folder = folder / self._key.hex()
        self._limit = limit_bytes
        self._now = now
        self._complained = False

    def load(self) -> list[tuple[int, ...]]:
        """The tokens of every stored prefix, the last used first; tidies the folder on the way."""
        self._remove_unused_folders()
        found: list[tuple[int, ...]] = []
        for path in sorted(self._files(), key=_last_used, reverse=True):
            tokens = self._tokens_in(path)
            if tokens is None:
                _remove(path)
            else:
                found.append(tokens)
        if found:
            self._touch(self._folder)
        return found

    def read(self, tokens: Sequence[int]) -> bytes | None:
        """The state of exactly these tokens; None if it is not there or damaged (then it is removed)."""
        packed = _packed(tokens)
        path = self._path(packed)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            self._complain(error)
            return None
        start = _HEADER.size + len(packed)
        state = data[start:]
        if data[:start] != self._header(packed, state) + packed:
            _remove(path)
            return None
        self._touch(path)
        return state

    def write(self, tokens: Sequence[int], state: bytes) -> bool:
        """Keep the state of `tokens`; those used longest ago make room. False if it could not be written."""
        packed = _packed(tokens)
        header = self._header(packed, state)
        size = len(header) + len(packed) + len(state)
        if size > self._limit:
            return False
        self._make_room(size, self._path(packed))
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Such a file can be read by nobody else. A file that is half written never bears the name.
            descriptor, name = tempfile.mkstemp(suffix=_UNFINISHED, dir=self._folder)
            temporary = Path(name)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(header)
                    file.write(packed)
                    file.write(state)
                os.replace(temporary, self._path(packed))  # noqa: PTH105 -- one call, on every platform
            except OSError:
                _remove(temporary)
                raise
        except OSError as error:
            self._complain(error)
            return False
        self._touch(self._path(packed))
        return True

    def _path(self, packed: bytes) -> Path:
        return self._folder / (hashlib.sha256(packed).hexdigest()[:32] + _SUFFIX)

    def _header(self, packed: bytes, state: bytes) -> bytes:
        return _HEADER.pack(_MAGIC, self._key, len(packed), len(state), zlib.crc32(state))

    def _tokens_in(self, path: Path) -> tuple[int, ...] | None:
        """The tokens in a file, without reading its state; None if it is none of ours, or was cut."""
        try:
            size = path.stat().st_size
            with path.open("rb") as file:
                magic, key, tokens, state, _crc = _HEADER.unpack(file.read(_HEADER.size))
                if (magic, key, _HEADER.size + tokens + state) != (_MAGIC, self._key, size):
                    return None
                packed = file.read(tokens)
        except (OSError, struct.error):
            return None
        # The name is made from the tokens, so it is their checksum too.
        return _unpacked(packed) if packed and path == self._path(packed) else None

    def _files(self) -> Iterator[Path]:
        """Our finished files; unfinished ones that were abandoned are removed."""
        for path in _children(self._folder):
            if path.suffix == _SUFFIX:
                yield path
            elif path.suffix == _UNFINISHED and self._now() - _last_used(path) > _ABANDONED_S:
                _remove(path)

    def _make_room(self, size: int, but: Path) -> None:
        """Remove what was used longest ago until `size` more bytes are within the limit."""
        files = sorted((path for path in self._files() if path != but), key=_last_used)
        sizes = [_size(path) for path in files]
        total = sum(sizes) + size
        for path, freed in zip(files, sizes, strict=True):
            if total <= self._limit:
                break
            _remove(path)
            total -= freed

    def _remove_unused_folders(self) -> None:
        for folder in _children(self._root):
            # Only what we made: a folder of this name, and in it only our files.
            if folder == self._folder or folder.is_symlink() or not _FOLDER_NAME.fullmatch(folder.name):
                continue
            files = list(_children(folder))
            if self._now() - max(map(_last_used, [folder, *files])) > _UNUSED_S:
                for path in files:
                    if path.suffix in {_SUFFIX, _UNFINISHED}:
                        _remove(path)
                with suppress(OSError):
                    folder.rmdir()

    def _touch(self, path: Path) -> None:
        """Note that `path` was used just now. Where that is not allowed it only looks older than it is."""
        now = self._now()
        with suppress(OSError):
            os.utime(path, (now, now))

    def _complain(self, error: OSError) -> None:
        if not self._complained:
            self._complained = True
            sys.stderr.write(f"Evaluated prompts are not kept in {self._folder}: {error}\n")


def _packed(tokens: Sequence[int]) -> bytes:
    """Four bytes a token, the lowest first on every machine."""
    values = array("i", tokens)
    if sys.byteorder == "big":
        values.byteswap()
    return values.tobytes()


def _unpacked(packed: bytes) -> tuple[int, ...] | None:
    if len(packed) % array("i").itemsize:
        return None
    values = array("i", packed)
    if sys.byteorder == "big":
        values.byteswap()
    return tuple(values)


def _children(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _last_used(path: Path) -> float:
    """When a file was last used; a file that has just vanished was used never."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _remove(path: Path) -> None:
    """Remove a file. Another process may have done so, or (on Windows) be reading it: then it stays."""
    with suppress(OSError):
        path.unlink()

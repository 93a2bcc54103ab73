"""Fetching a model file: source after source into a partial file, checked, and only then given its name."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import logging
import os
import threading
from collections.abc import Generator, Sequence
from pathlib import Path

import filelock

from nexo_lsp.errors import DiskFull, ModelDownloadFailed, ModelError
from nexo_lsp.models.catalog import CatalogEntry, size_text
from nexo_lsp.models.files import CHUNK, size_of
from nexo_lsp.models.progress import Meter
from nexo_lsp.models.record import write_record
from nexo_lsp.models.sources import DiskFree, Source
from nexo_lsp.models.transfer import SourceFailed, check
from nexo_lsp.models.unpinned import agrees, begin, keep, note_of

log = logging.getLogger("nexo_lsp.models")

_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
_LOCK_POLL_S = 0.2


class Fetching:
    """Fetches files into one models folder."""

    def __init__(self, folder: Path, sources: Sequence[Source], disk_free: DiskFree) -> None:
        self._folder = folder
        self.sources = sources
        self._disk_free = disk_free

    def fetch(
        self, entry: CatalogEntry, path: Path, meter: Meter, cancel: threading.Event, force: bool
    ) -> None:
        """Fetch the file of an entry to `path`, from the first source that delivers it.

        Raises `ModelDownloadFailed`, `DiskFull`, `ModelDownloadCancelled`, `ModelError`, `OSError`.
        """
        partial = partial_of(path)
        if force:
            partial.unlink(missing_ok=True)
        elif path.exists():
            # It stays until the new one is here: the network may fail.
            log.warning("%s is not the published file; fetching it again", path)
        begin(entry, partial)
        if note := note_of(entry):
            meter.downloaded(size_of(partial), note)
        if size_of(partial) >= entry.size:
            # An earlier pull was ended while it checked the digest, or left something else here.
            if agrees(entry, digest := digest_of_file(partial, meter, cancel)):
                self._place(entry, partial, path, digest)
                return
            partial.unlink()
        reasons: list[str] = []
        for source in self.sources:
            self._require_room(entry, partial)
            meter.begin(source.name, size_of(partial))
            try:
                digest = self._fetch_from(source, entry, partial, meter, cancel)
            except SourceFailed as failure:
                log.warning("%s could not deliver %s: %s", source.name, entry.name, failure)
                reasons.append(f"{source.name}: {failure}")
                meter.downloaded(size_of(partial), reasons[-1])
                continue
            log.info("%s came from %s", entry.name, source.name)
            self._place(entry, partial, path, digest)
            return
        self._require_room(entry, partial)
        raise ModelDownloadFailed(nowhere(entry, reasons))

    def _fetch_from(
        self, source: Source, entry: CatalogEntry, partial: Path, meter: Meter, cancel: threading.Event
    ) -> str:
        """Gives the digest of what was fetched, which is right."""
        resumed = size_of(partial) > 0
        source.fetch(entry, partial, meter.downloaded, cancel)
        size = size_of(partial)
        if size != entry.size:
            raise SourceFailed(f"it delivered {size:,} of {entry.size:,} bytes")
        digest = digest_of_file(partial, meter, cancel)
        if agrees(entry, digest):
            return digest
        partial.unlink()
        if not resumed:
            published = (
                "published file" if entry.pinned else "announced file; --force takes what there is now"
            )
            raise SourceFailed(f"what it delivers has another SHA-256 than the {published}")
        # The wrong bytes may be those that were there before, so this source is not to blame yet.
        log.warning("%s: what was continued is damaged; starting again", entry.name)
        meter.downloaded(0, "what had been fetched before was damaged; starting again")
        return self._fetch_from(source, entry, partial, meter, cancel)

    def _place(self, entry: CatalogEntry, partial: Path, path: Path, digest: str) -> None:
        """Give the complete file its name, in such an order that no crash leaves a wrong file under it."""
        with partial.open("r+b") as file:
            os.fsync(file.fileno())
        try:
            if size_of(path) not in {0, entry.size}:
                # No damaged copy of the published file: an older version, or the user's own.
                aside = _aside(path)
                path.replace(aside)
                log.warning("%s had the name of %s; it is %s now", path, entry.name, aside.name)
            partial.replace(path)
        except PermissionError as error:
            raise ModelError(f"{path} cannot be replaced; is an engine using it? Stop it first.") from error
        if os.name == "posix":
            # The new name is itself data of the folder; other systems do not let a folder be opened.
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        write_record(path, digest, published=True)
        keep(entry, path, digest)

    def _require_room(self, entry: CatalogEntry, partial: Path) -> None:
        needed = entry.size - size_of(partial)
        free = self._disk_free(self._folder)
        if free < needed:
            raise DiskFull(
                f"The model {entry.name} needs {size_text(needed)} more in {self._folder}, where "
                f"{size_text(free)} are free; make room, or set NEXO_HOME to a folder on another disk."
            )

    @contextlib.contextmanager
    def lock(self, entry: CatalogEntry, meter: Meter, cancel: threading.Event) -> Generator[bool, None, None]:
        """Hold the lock of an entry; gives whether somebody else held it before."""
        path = self._folder / entry.file
        lock = filelock.FileLock(lock_file(path))
        waited = False
        while not lock.is_locked:
            check(cancel)
            try:
                lock.acquire(blocking=False)
            except filelock.Timeout:
                waited = True
                meter.downloaded(size_of(partial_of(path)), "another process is fetching it")
                cancel.wait(_LOCK_POLL_S)
        try:
            yield waited
        finally:
            lock.release()

    @contextlib.contextmanager
    def mapped_errors(self, entry: CatalogEntry) -> Generator[None, None, None]:
        """Turn what the disk refuses into `DiskFull` or a `ModelError` that names the folder."""
        try:
            yield
        except OSError as error:
            if error.errno in _FULL:
                raise DiskFull(
                    f"The disk of {self._folder} is full; the model {entry.name} needs {entry.size_text}. "
                    "What came so far is kept: make room and try again, or set NEXO_HOME to another disk."
                ) from error
            raise ModelError(
                f"The models folder {self._folder} cannot be used ({error}); mend that, or set NEXO_HOME to "
                "another folder."
            ) from error


def partial_of(path: Path) -> Path:
    """The beginning of `path`, while it is fetched and after that was given up."""
    return path.with_name(path.name + ".partial")


def _aside(path: Path) -> Path:
    """A name beside `path` that is free."""
    names = (f"{path.stem}.before{number or ''}{path.suffix}" for number in itertools.count())
    return next(free for name in names if not (free := path.with_name(name)).exists())


def lock_file(path: Path) -> Path:
    """What whoever fetches `path` holds."""
    return path.with_name(path.name + ".lock")


def digest_of_file(path: Path, meter: Meter, cancel: threading.Event) -> str:
    """The SHA-256 of a whole file. Raises `OSError`, `ModelDownloadCancelled`."""
    digest = hashlib.sha256()
    done = 0
    with path.open("rb") as file:
        while chunk := file.read(4 * CHUNK):
            check(cancel)
            digest.update(chunk)
            done += len(chunk)
            meter.verified(done)
    return digest.hexdigest()


def nowhere(entry: CatalogEntry, reasons: Sequence[str]) -> str:
    """The message when no source could deliver."""
    tried = "; ".join(reasons) or "no source is set up"
    return (
        f"The model {entry.name} ({entry.size_text}) could not be fetched. {tried}. "
        f"Check the network or the proxy and run `nexo-lsp models pull {entry.name}` (what came is kept), "
        f"or put {entry.file} into a folder and set NEXO_MODEL_DIR to it."
    )

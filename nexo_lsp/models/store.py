"""The models folder: what is there, and getting what is not.

A file appears under its own name only when its digest is right. Beside it may lie `FILE.partial` (a prefix
of it, continued by the next pull), `FILE.lock` (who fetches it now) and `FILE.checked` (what its digest was
found to be, so that half a gigabyte is not read again each time somebody asks).
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import hashlib
import logging
import os
import re
import threading
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import filelock

from nexo_lsp.errors import (
    DiskFull,
    ModelCorrupt,
    ModelDownloadFailed,
    ModelError,
    ModelMissing,
    ModelUnknown,
)
from nexo_lsp.folders import UNPACKED, expanded
from nexo_lsp.models.catalog import CATALOG, DEFAULT_MODEL, CatalogEntry, size_text
from nexo_lsp.models.progress import Meter, ProgressReport, PullProgress, ignore_progress
from nexo_lsp.models.record import read_record, record_file, write_record
from nexo_lsp.models.sources import DiskFree, Source, default_sources, free_disk
from nexo_lsp.models.transfer import CHUNK, SourceFailed, check, size_of

__all__ = ["InstalledModel", "ModelStore", "ProgressReport", "PullProgress", "Verdict"]

log = logging.getLogger("nexo_lsp.models")

_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
_LOCK_POLL_S = 0.2
_WRONG_DIGEST = "is damaged: its SHA-256 is not the published one"


@dataclass(frozen=True, slots=True)
class InstalledModel:
    """A file in the models folder."""

    entry: CatalogEntry | None
    """None for a file that the catalogue does not know (a variant, the user's own)."""
    path: Path
    size: int
    verified: bool
    """Whether its digest was found right and the file has not changed since."""
    problem: str = ""
    """What is wrong with it; empty when nothing is known to be."""

    @property
    def name(self) -> str:
        """What `locate` knows it by."""
        return self.entry.name if self.entry is not None else self.path.name


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a check of one file found."""

    ok: bool
    name: str
    path: Path
    size: int
    sha256: str
    """Of the file as it is; empty when its size was enough to see that it is wrong."""
    problem: str = ""


class ModelStore:
    """The models folder of one user. Everything blocks; callers off-load it to a thread."""

    def __init__(
        self,
        folder: Path,
        environ: Mapping[str, str],
        sources: Sequence[Source] | None = None,
        catalog: Sequence[CatalogEntry] = CATALOG,
        disk_free: DiskFree = free_disk,
    ) -> None:
        self.folder = folder
        self.catalog = tuple(catalog)
        self._sources = tuple(sources) if sources is not None else default_sources(environ, disk_free)
        self._disk_free = disk_free

    def entry_for(self, name: str) -> CatalogEntry | None:
        """The catalogue entry behind a name, `auto`, or a path that ends in an entry's file name."""
        if name == "auto":
            name = DEFAULT_MODEL
        file = Path(name).name
        return next((entry for entry in self.catalog if entry.name == name or entry.file == file), None)

    def locate(self, name_or_path: str) -> Path:
        """The file of a catalogue name, of `auto`, of a file in the models folder, or of a path.

        Cheap: a look at sizes, no digest. Raises `ModelUnknown`, `ModelMissing` when the catalogue has it and
        this machine does not, `ModelCorrupt` when it has the wrong size or the last check found it wrong.
        """
        if _looks_like_path(name_or_path):
            for path in (expanded(name_or_path), self.folder / name_or_path):
                if path.is_file():
                    return path
            if self.entry_for(name_or_path) is None or Path(name_or_path).name != name_or_path:
                raise ModelUnknown(f"There is no model file at {name_or_path}.")
        entry = self._entry(name_or_path)
        path = self.folder / entry.file
        if not path.is_file():
            raise ModelMissing(
                f"The model {entry.name} ({entry.size_text}) is not on this machine; "
                f"run `nexo-lsp models pull {entry.name}`."
            )
        problem = self._known_problem(entry, path)
        if problem:
            raise ModelCorrupt(f"{path} {problem}; run `nexo-lsp models pull {entry.name}`.")
        return path

    def installed(self) -> tuple[InstalledModel, ...]:
        """Every model file in the folder, by name; nothing is hashed."""
        found: list[InstalledModel] = []
        for path in sorted(self.folder.glob("*.gguf")):
            entry = next((entry for entry in self.catalog if entry.file == path.name), None)
            problem = self._known_problem(entry, path) if entry is not None else ""
            verified = entry is not None and read_record(path) == entry.sha256
            found.append(InstalledModel(entry, path, size_of(path), verified, problem))
        return tuple(found)

    def pull(
        self,
        name: str,
        progress: ProgressReport = ignore_progress,
        cancel: threading.Event | None = None,
        force: bool = False,
    ) -> Path:
        """Have the model here: at once if it is, else fetched from the first source that delivers it.

        A file that is there already is read once and its digest checked, and fetched again if it is wrong;
        `force` fetches it again in any case. Two processes that pull at once share one download. Raises
        `ModelUnknown`, `ModelDownloadFailed` (its message names each source and why), `DiskFull`,
        `ModelDownloadCancelled`, and `ModelError` where the folder cannot be written.
        """
        entry = self._entry(name)
        cancel = cancel or threading.Event()
        path = self.folder / entry.file
        meter = Meter(progress, entry.size)
        with self._mapped_errors(entry):
            if not force and self._is_right(entry, path, meter, cancel):
                return path
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._lock(entry, meter, cancel) as waited:
                # Whoever held the lock has probably just fetched it.
                if (waited or not force) and self._is_right(entry, path, meter, cancel):
                    return path
                self._fetch(entry, path, meter, cancel, force)
        return path

    def verify(
        self, name: str, progress: ProgressReport = ignore_progress, cancel: threading.Event | None = None
    ) -> Verdict:
        """Read the whole file and compare; what was found is remembered, so that `pull` mends a wrong file.

        Raises `ModelUnknown` for what the catalogue does not pin, `ModelMissing`, `ModelDownloadCancelled`.
        """
        entry = self._entry(name)
        path = self.folder / entry.file
        if not path.is_file():
            raise ModelMissing(f"The model {entry.name} is not on this machine; there is nothing to verify.")
        size = size_of(path)
        if size != entry.size:
            return Verdict(False, entry.name, path, size, "", _wrong_size(size, entry))
        with self._mapped_errors(entry):
            digest = self._check(path, Meter(progress, entry.size), cancel or threading.Event())
        ok = digest == entry.sha256
        return Verdict(ok, entry.name, path, size, digest, "" if ok else _WRONG_DIGEST)

    def remove(self, name: str) -> int:
        """Delete a model of this folder with what was fetched of it in part; gives the bytes freed.

        Raises `ModelMissing` when there is none, `ModelUnknown`, `ModelError` while it is fetched or used.
        """
        entry = next((entry for entry in self.catalog if entry.name == name), None)
        if entry is None and (Path(name).name != name or not (self.folder / name).is_file()):
            entry = self._entry(name)
        path = self.folder / (entry.file if entry is not None else name)
        partial = _partial(path)
        # What an engine made of it for itself is of no use without it.
        copy = re.compile(re.escape(path.stem) + r"\.[0-9a-f]{16}\.(gguf|partial)")
        copies = tuple(file for file in (self.folder / UNPACKED).glob("*") if copy.fullmatch(file.name))
        freed = sum(map(size_of, (path, partial, *copies)))
        if not path.exists() and not partial.exists():
            raise ModelMissing(f"The model {name} is not on this machine; there is nothing to remove.")
        try:
            with filelock.FileLock(_lock_file(path), timeout=0):
                # What an engine may have open (Windows) goes first: if that fails, nothing is lost.
                for file in (*copies, path, partial, record_file(path)):
                    file.unlink(missing_ok=True)
        except filelock.Timeout as error:
            raise ModelError(f"{path.name} is being fetched by another process; stop that first.") from error
        except OSError as error:
            raise ModelError(
                f"{path} cannot be removed ({error.strerror}); is an engine using it?"
            ) from error
        return freed

    def _entry(self, name: str) -> CatalogEntry:
        wanted = DEFAULT_MODEL if name == "auto" else name
        for entry in self.catalog:
            if wanted in {entry.name, entry.file}:
                return entry
        names = [entry.name for entry in self.catalog]
        close = difflib.get_close_matches(wanted.lower(), names, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(names)}."
        raise ModelUnknown(f"There is no model called {name}; {hint}")

    def _known_problem(self, entry: CatalogEntry, path: Path) -> str:
        size = size_of(path)
        if size != entry.size:
            return _wrong_size(size, entry)
        return _WRONG_DIGEST if read_record(path) not in {None, entry.sha256} else ""

    def _is_right(self, entry: CatalogEntry, path: Path, meter: Meter, cancel: threading.Event) -> bool:
        if size_of(path) != entry.size:
            return False
        return (read_record(path) or self._check(path, meter, cancel)) == entry.sha256

    def _check(self, path: Path, meter: Meter, cancel: threading.Event) -> str:
        digest = _digest(path, meter, cancel)
        write_record(path, digest)
        return digest

    def _fetch(
        self, entry: CatalogEntry, path: Path, meter: Meter, cancel: threading.Event, force: bool
    ) -> None:
        partial = _partial(path)
        if force:
            partial.unlink(missing_ok=True)
        elif path.exists():
            log.warning("%s is not the published file; fetching it again", path)
            path.unlink()
        if size_of(partial) >= entry.size:
            # An earlier pull was ended while it checked the digest, or left something else here.
            if _digest(partial, meter, cancel) == entry.sha256:
                self._place(entry, partial, path)
                return
            partial.unlink()
        reasons: list[str] = []
        for source in self._sources:
            self._require_room(entry, partial)
            meter.begin(source.name, size_of(partial))
            try:
                self._fetch_from(source, entry, partial, meter, cancel)
            except SourceFailed as failure:
                log.warning("%s could not deliver %s: %s", source.name, entry.name, failure)
                reasons.append(f"{source.name}: {failure}")
                meter.downloaded(size_of(partial), reasons[-1])
                continue
            log.info("%s came from %s", entry.name, source.name)
            self._place(entry, partial, path)
            return
        self._require_room(entry, partial)
        raise ModelDownloadFailed(_nowhere(entry, reasons))

    def _fetch_from(
        self, source: Source, entry: CatalogEntry, partial: Path, meter: Meter, cancel: threading.Event
    ) -> None:
        resumed = size_of(partial) > 0
        source.fetch(entry, partial, meter.downloaded, cancel)
        size = size_of(partial)
        if size != entry.size:
            raise SourceFailed(f"it delivered {size:,} of {entry.size:,} bytes")
        if _digest(partial, meter, cancel) == entry.sha256:
            return
        partial.unlink()
        if not resumed:
            raise SourceFailed("what it delivers has another SHA-256 than the published file")
        # The wrong bytes may be those that were there before, so this source is not to blame yet.
        log.warning("%s: what was continued is damaged; starting again", entry.name)
        meter.downloaded(0, "what had been fetched before was damaged; starting again")
        self._fetch_from(source, entry, partial, meter, cancel)

    def _place(self, entry: CatalogEntry, partial: Path, path: Path) -> None:
        """Give the complete file its name, in such an order that no crash leaves a wrong file under it."""
        with partial.open("r+b") as file:
            os.fsync(file.fileno())
        try:
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
        write_record(path, entry.sha256)

    def _require_room(self, entry: CatalogEntry, partial: Path) -> None:
        needed = entry.size - size_of(partial)
        free = self._disk_free(self.folder)
        if free < needed:
            raise DiskFull(
                f"The model {entry.name} needs {size_text(needed)} more in {self.folder}, where "
                f"{size_text(free)} are free; make room, or set NEXO_HOME to a folder on another disk."
            )

    @contextlib.contextmanager
    def _lock(
        self, entry: CatalogEntry, meter: Meter, cancel: threading.Event
    ) -> Generator[bool, None, None]:
        """Hold the lock of an entry; gives whether somebody else held it before."""
        path = self.folder / entry.file
        lock = filelock.FileLock(_lock_file(path))
        waited = False
        while not lock.is_locked:
            check(cancel)
            try:
                lock.acquire(blocking=False)
            except filelock.Timeout:
                waited = True
                meter.downloaded(size_of(_partial(path)), "another process is fetching it")
                cancel.wait(_LOCK_POLL_S)
        try:
            yield waited
        finally:
            lock.release()

    @contextlib.contextmanager
    def _mapped_errors(self, entry: CatalogEntry) -> Generator[None, None, None]:
        try:
            yield
        except OSError as error:
            if error.errno in _FULL:
                raise DiskFull(
                    f"The disk of {self.folder} is full; the model {entry.name} needs {entry.size_text}. "
                    "What came so far is kept: make room and try again, or set NEXO_HOME to another disk."
                ) from error
            raise ModelError(
                f"The models folder {self.folder} cannot be used ({error}); mend that, or set NEXO_HOME to "
                "another folder."
            ) from error


def _looks_like_path(name: str) -> bool:
    return name.endswith(".gguf") or name.startswith("~") or "/" in name or "\\" in name


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


def _lock_file(path: Path) -> Path:
    return path.with_name(path.name + ".lock")


def _wrong_size(size: int, entry: CatalogEntry) -> str:
    return f"is damaged: it has {size:,} bytes instead of {entry.size:,}"


def _digest(path: Path, meter: Meter, cancel: threading.Event) -> str:
    digest = hashlib.sha256()
    done = 0
    with path.open("rb") as file:
        while chunk := file.read(4 * CHUNK):
            check(cancel)
            digest.update(chunk)
            done += len(chunk)
            meter.verified(done)
    return digest.hexdigest()


def _nowhere(entry: CatalogEntry, reasons: Sequence[str]) -> str:
    tried = "; ".join(reasons) or "no source is set up"
    return (
        f"The model {entry.name} ({entry.size_text}) could not be fetched. {tried}. "
        f"Check the network or the proxy and run `nexo-lsp models pull {entry.name}` (what came is kept), "
        f"or put {entry.file} into a folder and set NEXO_MODEL_DIR to it."
    )

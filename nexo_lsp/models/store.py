"""The models folder: what is there, and getting what is not.

A file appears under its own name only when its digest is right. Beside it may lie `FILE.partial` (a prefix
of it, continued by the next pull), `FILE.lock` (who fetches it now) and `FILE.checked` (what its digest was
found to be, so that half a gigabyte is not read again each time somebody asks). Older versions of a model
lie beside the newest one (`versions.py`); what came with the program is used where it is (`embedded.py`).
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import hashlib
import logging
import os
import threading
from collections.abc import Collection, Generator, Mapping, Sequence
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
from nexo_lsp.folders import expanded
from nexo_lsp.models.catalog import CATALOG, DEFAULT_MODEL, CatalogEntry, size_text
from nexo_lsp.models.cleaning import Cleaning, removable
from nexo_lsp.models.embedded import EmbeddedModels, digest_of, places
from nexo_lsp.models.installed import WRONG_DIGEST, InstalledModel, known_problem, listed, wrong_size
from nexo_lsp.models.leases import Leases
from nexo_lsp.models.progress import Meter, ProgressReport, PullProgress, ignore_progress
from nexo_lsp.models.record import read_record, write_record
from nexo_lsp.models.references import entry_of, file_of, is_reference
from nexo_lsp.models.sources import DiskFree, Source, default_sources, free_disk
from nexo_lsp.models.transfer import CHUNK, SourceFailed, check, size_of
from nexo_lsp.models.unpinned import (
    NotAnnounced,
    agrees,
    announced,
    as_it_lies,
    begin,
    entry_behind,
    forgotten,
    keep,
    note_of,
    remembered,
)
from nexo_lsp.models.versions import Versions, short, split_version
from nexo_lsp.settings import Settings

__all__ = ["InstalledModel", "ModelStore", "ProgressReport", "PullProgress", "Verdict"]

log = logging.getLogger("nexo_lsp.models")

_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
_LOCK_POLL_S = 0.2


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
    note: str = ""
    """What there is to say besides: who says what the file should be, where the catalogue does not."""


class ModelStore:
    """The models folder of one user. Everything blocks; callers off-load it to a thread."""

    def __init__(
        self,
        folder: Path,
        environ: Mapping[str, str],
        sources: Sequence[Source] | None = None,
        catalog: Sequence[CatalogEntry] = CATALOG,
        disk_free: DiskFree = free_disk,
        embedded: EmbeddedModels | None = None,
    ) -> None:
        self.folder = folder
        self.catalog = tuple(catalog)
        self._sources = tuple(sources) if sources is not None else default_sources(environ, disk_free)
        self._disk_free = disk_free
        self._embedded = embedded or EmbeddedModels(lambda: places(environ))
        self.versions = Versions(folder)
        self.leases = Leases(folder, self.versions)
        self.cleaning = Cleaning(folder, self.catalog, self.versions, self.leases)
        self.limit_bytes = 0
        """What the folder may hold; 0 sets no limit."""
        self.configured: Collection[str] = ()
        """The models that the settings name: they are never removed to make room."""

    def follow(self, settings: Settings) -> None:
        """Keep to the limit that the settings set, and keep the models that they name."""
        self.limit_bytes = round(settings.models.cache_limit_gb * 1e9)
        named = (settings.model, settings.review.model, settings.completion.model)
        self.configured = tuple(file_of(name, self.catalog) for name in named if name)

    def used(self, path: Path) -> None:
        """Note that a model is used now: what was not used for the longest time is removed first."""
        self.leases.used(path)

    def in_use(self, path: Path) -> contextlib.AbstractContextManager[None]:
        """While this is open no process removes `path`, whatever its settings say. See `Leases.hold`."""
        return self.leases.hold(path)

    def entry_for(self, name: str) -> CatalogEntry | None:
        """The catalogue entry behind a name, `auto`, or a path that ends in an entry's file name."""
        if is_reference(name):
            return self.entry(name)
        if name == "auto":
            name = DEFAULT_MODEL
        name, _ = split_version(name)
        file = Path(name).name
        return next((entry for entry in self.catalog if entry.name == name or entry.file == file), None)

    def locate(self, name_or_path: str) -> Path:
        """The file of a catalogue name, of `auto`, of a file in the models folder, or of a path.

        Of several versions it is the one that the user has chosen, else the catalogue's, else the last that
        came; `NAME@ID` is that one. A model that came with the program is found where the folder has none.

        Cheap: a look at sizes, no digest. Raises `ModelUnknown`, `ModelMissing` when the catalogue has it and
        this machine does not, `ModelCorrupt` when it has the wrong size or the last check found it wrong.
        """
        if is_reference(name_or_path):
            return self._there(self.entry(name_or_path), "")
        if _looks_like_path(name_or_path):
            for path in (expanded(name_or_path), self.folder / name_or_path):
                if path.is_file():
                    return path
            embedded = self._embedded.named(name_or_path)
            if embedded is not None:
                return embedded
            if self.entry_for(name_or_path) is None or Path(name_or_path).name != name_or_path:
                raise ModelUnknown(f"There is no model file at {name_or_path}.")
        return self._there(self.entry(name_or_path), split_version(name_or_path)[1])

    def _there(self, entry: CatalogEntry, wanted: str) -> Path:
        version = self.versions.find(entry, wanted) if wanted else self.versions.current(entry)
        if version is not None:
            return version.path
        if wanted:
            raise ModelMissing(f"The version {wanted} of {entry.name} is not on this machine.")
        embedded, path = self._embedded.find(entry), self.versions.place(entry)
        if embedded is not None:
            return embedded
        if not path.is_file():
            raise ModelMissing(
                f"The model {entry.name} ({entry.size_text}) is not on this machine; "
                f"run `nexo-lsp models pull {entry.name}`."
            )
        problem = known_problem(entry, path)
        raise ModelCorrupt(f"{path} {problem}; run `nexo-lsp models pull {entry.name}`.")

    def installed(self) -> tuple[InstalledModel, ...]:
        """Every model file in the folder by name, then what came with the program; nothing is hashed."""
        return listed(self.folder, self.catalog, self.versions, self._embedded)

    def pull(
        self,
        name: str,
        progress: ProgressReport = ignore_progress,
        cancel: threading.Event | None = None,
        force: bool = False,
    ) -> Path:
        """Have the model here: at once if it is, else fetched from the first source that delivers it.

        A file that is there already is read once and its digest checked, and fetched again if it is wrong;
        `force` fetches it again in any case. A version that the user has chosen is the model as long as it is
        here; otherwise an older one stays beside the catalogue's (see `versions`). Two processes that pull at
        once share one download. Raises `ModelUnknown`, `ModelDownloadFailed` (its message names each source
        and why), `DiskFull` (the limit of the folder counts like the disk),
        `ModelDownloadCancelled`, and `ModelError` where the folder cannot be written.
        """
        entry, (_, wanted) = self.entry(name), _split(name)
        cancel = cancel or threading.Event()
        chosen = self.versions.find(entry, wanted or self.versions.choice(entry.name).version)
        if chosen is not None and chosen.id != short(entry.sha256) and not force:
            with self._mapped_errors(entry):
                meter = Meter(progress, chosen.size)
                digest = read_record(chosen.path) or self._check(chosen.path, meter, cancel)
            if short(digest) == chosen.id:
                return chosen.path
        return self.have(entry, progress, cancel, force)

    def have(
        self,
        entry: CatalogEntry,
        progress: ProgressReport = ignore_progress,
        cancel: threading.Event | None = None,
        force: bool = False,
    ) -> Path:
        """Have the very file that `entry` describes; like `pull`, which looks the entry up."""
        cancel = cancel or threading.Event()
        if not entry.sha256 or (force and not entry.pinned):
            entry = self._announced(forgotten(entry), cancel)
        meter = Meter(progress, entry.size)
        with self._mapped_errors(entry):
            for path in () if force else self._candidates(entry):
                if self._is_right(entry, path, meter, cancel):
                    return path
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._lock(entry, meter, cancel) as waited:
                path = self.versions.place(entry)
                # Whoever held the lock has probably just fetched it.
                if (waited or not force) and self._is_right(entry, path, meter, cancel):
                    return path
                self.cleaning.make_room(self.limit_bytes, entry, _partial(path), self.configured)
                self._fetch(entry, path, meter, cancel, force)
        self.cleaning.trim(self.limit_bytes, (*self.configured, path.name))
        return path

    def _announced(self, entry: CatalogEntry, cancel: threading.Event) -> CatalogEntry:
        try:
            return announced(entry, self._sources, cancel)
        except NotAnnounced as failure:
            path = self.folder / entry.file
            if path.is_file():
                return as_it_lies(entry, path)
            raise ModelDownloadFailed(_nowhere(entry, [str(failure)])) from failure

    def _candidates(self, entry: CatalogEntry) -> tuple[Path, ...]:
        embedded = self._embedded.find(entry)
        path = self.versions.place(entry)
        return (path, embedded) if embedded is not None else (path,)

    def verify(
        self, name: str, progress: ProgressReport = ignore_progress, cancel: threading.Event | None = None
    ) -> Verdict:
        """Read the whole file and compare; what was found is remembered, so that `pull` mends a wrong file.

        Raises `ModelUnknown` for what the catalogue does not pin, `ModelMissing`, `ModelDownloadCancelled`.
        """
        entry, (_, wanted) = self.entry(name), _split(name)
        try:
            path = self._there(entry, wanted)
        except ModelCorrupt:
            path = self.versions.place(entry)
        except ModelMissing as error:
            raise ModelMissing(
                f"The model {name} is not on this machine; there is nothing to verify."
            ) from error
        size, right = size_of(path), entry.sha256
        ours = path.parent == self.folder
        version = next((one for one in self.versions.of(entry) if one.path == path), None) if ours else None
        if version is not None and version.id != short(right):
            # An older version is right if it is what it was when it was fetched.
            right = read_record(path) or version.id
        elif entry.size and size != entry.size:
            return Verdict(False, entry.name, path, size, "", wrong_size(size, entry))
        elif not right:
            entry = as_it_lies(entry, path)
        with self._mapped_errors(entry):
            meter, cancel = Meter(progress, size), cancel or threading.Event()
            digest = self._check(path, meter, cancel) if ours else _digest(path, meter, cancel)
        ok = digest.startswith(right)
        if ours and not right:
            keep(entry, path, digest)
        label = version.of(entry.name) if version is not None and wanted else entry.name
        return Verdict(ok, label, path, size, digest, "" if ok else WRONG_DIGEST, note_of(entry))

    def remove(self, name: str) -> int:
        """Delete a model of this folder with what was fetched of it in part; gives the bytes freed.

        All its versions go, or with `NAME@ID` that one. Raises `ModelMissing` when there is none,
        `ModelUnknown`, `ModelError` while it is fetched or used, and for what came with the program.
        """
        entry = next((entry for entry in self.catalog if entry.name == _split(name)[0]), None)
        if entry is None and (Path(name).name != name or not (self.folder / name).is_file()):
            entry = self.entry(name)
        files = removable(self.folder, self.versions, entry, name)
        if not files:
            embedded = self._embedded.find(entry) if entry is not None else None
            if embedded is not None:
                raise ModelError(f"{embedded} came with the program, and is never removed by it.")
            raise ModelMissing(f"The model {name} is not on this machine; there is nothing to remove.")
        freed = self.cleaning.remove_all(files)
        if entry is not None and not self.versions.of(entry) and self.versions.choice(entry.name).version:
            self.versions.choose(entry, "")
        return freed

    def entry(self, name: str) -> CatalogEntry:
        """The entry of a name, a file name or a reference (`auto`, `NAME@ID` too). Raises `ModelUnknown`.

        What is not pinned has the size and the digest that are remembered of its file, if it is here.
        """
        if is_reference(name):
            return remembered(entry_of(name, self.catalog), self.folder)
        wanted = DEFAULT_MODEL if name == "auto" else split_version(name)[0]
        for entry in self.catalog:
            if wanted in {entry.name, entry.file}:
                return remembered(entry, self.folder)
        fetched = entry_behind(self.folder / wanted, self.catalog) if Path(wanted).name == wanted else None
        if fetched is not None:
            return fetched
        names = [entry.name for entry in self.catalog]
        close = difflib.get_close_matches(wanted.lower(), names, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(names)}."
        raise ModelUnknown(f"There is no model called {name}; {hint}")

    def _is_right(self, entry: CatalogEntry, path: Path, meter: Meter, cancel: threading.Event) -> bool:
        if size_of(path) != entry.size:
            return False
        if path.parent != self.folder:
            return digest_of(path) == entry.sha256
        digest = read_record(path) or self._check(path, meter, cancel)
        right = agrees(entry, digest)
        if right:
            keep(entry, path, digest)
        return right

    def _check(self, path: Path, meter: Meter, cancel: threading.Event) -> str:
        digest = _digest(path, meter, cancel)
        published = any(digest == entry.sha256 for entry in self.catalog)
        write_record(path, digest, published=published)
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
        begin(entry, partial)
        meter.downloaded(size_of(partial), note_of(entry))
        if size_of(partial) >= entry.size:
            # An earlier pull was ended while it checked the digest, or left something else here.
            if agrees(entry, digest := _digest(partial, meter, cancel)):
                self._place(entry, partial, path, digest)
                return
            partial.unlink()
        reasons: list[str] = []
        for source in self._sources:
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
        raise ModelDownloadFailed(_nowhere(entry, reasons))

    def _fetch_from(
        self, source: Source, entry: CatalogEntry, partial: Path, meter: Meter, cancel: threading.Event
    ) -> str:
        """Gives the digest of what was fetched, which is right."""
        resumed = size_of(partial) > 0
        source.fetch(entry, partial, meter.downloaded, cancel)
        size = size_of(partial)
        if size != entry.size:
            raise SourceFailed(f"it delivered {size:,} of {entry.size:,} bytes")
        digest = _digest(partial, meter, cancel)
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


def _split(name: str) -> tuple[str, str]:
    """As `split_version`; what stands behind the @ of a reference is a revision."""
    return (name, "") if is_reference(name) else split_version(name)


def _looks_like_path(name: str) -> bool:
    return name.endswith(".gguf") or name.startswith("~") or "/" in name or "\\" in name


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


def _lock_file(path: Path) -> Path:
    return path.with_name(path.name + ".lock")


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

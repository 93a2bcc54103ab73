"""The models folder: what is there, and getting what is not.

A file appears under its own name only when its digest is right. Beside it may lie `FILE.partial` (a prefix
of it, continued by the next pull), `FILE.lock` (who fetches it now) and `FILE.checked` (what its digest was
found to be, so that half a gigabyte is not read again each time somebody asks). Older versions of a model
lie beside the newest one (`versions.py`); what came with the program is used where it is (`embedded.py`); of
what no catalogue pins, `FILE.origin` keeps what a source announced (`unpinned.py`).
"""

from __future__ import annotations

import contextlib
import difflib
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nexo_lsp.errors import (
    ModelCorrupt,
    ModelDownloadFailed,
    ModelError,
    ModelMissing,
    ModelUnknown,
)
from nexo_lsp.folders import expanded
from nexo_lsp.models.catalog import CATALOG, DEFAULT_MODEL, CatalogEntry
from nexo_lsp.models.cleaning import Cleaning, removable
from nexo_lsp.models.embedded import EmbeddedModels, digest_of, places
from nexo_lsp.models.fetching import Fetching, digest_of_file, nowhere, partial_of
from nexo_lsp.models.files import size_of
from nexo_lsp.models.installed import WRONG_DIGEST, InstalledModel, known_problem, listed, wrong_size
from nexo_lsp.models.leases import Leases
from nexo_lsp.models.progress import Meter, ProgressReport, PullProgress, ignore_progress
from nexo_lsp.models.record import read_record, write_record
from nexo_lsp.models.references import entry_of, file_of, is_reference
from nexo_lsp.models.sources import DiskFree, Source, default_sources, free_disk
from nexo_lsp.models.unpinned import (
    NotAnnounced,
    agrees,
    announced,
    as_it_lies,
    entry_behind,
    forgotten,
    keep,
    note_of,
    remembered,
)
from nexo_lsp.models.versions import Versions, short, split_version
from nexo_lsp.settings import Settings

__all__ = ["InstalledModel", "ModelStore", "ProgressReport", "PullProgress", "Verdict"]


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
    published: bool = True
    """Whether it can be fetched again: not an older version that was named."""


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
        self._sources_if: Callable[[bool], Sequence[Source]] = lambda offline: (
            sources if sources is not None else default_sources(environ, disk_free, offline=offline)
        )
        self._fetching = Fetching(folder, self._sources_if(False), disk_free)
        self._embedded = embedded or EmbeddedModels(lambda: places(environ))
        self.versions = Versions(folder)
        self.leases = Leases(folder, self.versions)
        self.cleaning = Cleaning(
            folder,
            self.catalog,
            self.versions,
            self.leases,
            lambda: (path for path, _ in self._embedded.files()),
        )
        self.limit_bytes = 0
        """What the folder may hold; 0 sets no limit."""
        self.configured: Collection[str] = ()
        """The models that the settings name: they are never removed to make room."""

    def follow(self, settings: Settings) -> None:
        """Keep to the limit and off the network as the settings say, and keep the models that they name."""
        self.limit_bytes = round(settings.models.cache_limit_gb * 1e9)
        self._fetching.sources = self._sources_if(settings.offline)
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

    def fetched_as(self, name: str) -> CatalogEntry | None:
        """The entry that `pull` would fetch to have `name`; None where it can fetch nothing of that name."""
        entry, (_, wanted) = self.entry_for(name), _split(name)
        return entry if entry is not None and wanted in {"", short(entry.sha256)} else None

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
            bare = "/" not in name_or_path and "\\" not in name_or_path
            # A name alone is one of the models folder, whatever the current folder has of that name.
            paths = (
                (self.folder / name_or_path,)
                if bare
                else (expanded(name_or_path), self.folder / name_or_path)
            )
            for path in paths:
                if path.is_file():
                    return path
            embedded = self._embedded.named(name_or_path)
            if embedded is not None:
                return embedded
            if self.entry_for(name_or_path) is None or Path(name_or_path).name != name_or_path:
                hint = (
                    f" in {self.folder}; for one in the current folder write ./{name_or_path}" if bare else ""
                )
                raise ModelUnknown(f"There is no model file at {name_or_path}{hint}.")
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
        once share one download. Raises `ModelUnknown`, `ModelMissing` for a version that is not here and that
        nobody delivers any more, `ModelDownloadFailed` (its message names each source and why), `DiskFull`
        (the limit of the folder counts like the disk), `ModelDownloadCancelled`, and `ModelError` where the
        folder cannot be written.
        """
        entry, (_, wanted) = self.entry(name), _split(name)
        cancel = cancel or threading.Event()
        chosen = self.versions.find(entry, wanted or self.versions.choice(entry.name).version)
        if chosen is not None and chosen.id != short(entry.sha256) and not force:
            with self._fetching.mapped_errors(entry):
                meter = Meter(progress, chosen.size)
                digest = read_record(chosen.path) or self._check(chosen.path, meter, cancel)
            if short(digest) == chosen.id:
                return chosen.path
        newest = short(entry.sha256)
        if wanted not in {"", newest}:
            raise ModelMissing(
                f"The version {wanted} of {entry.name} is not on this machine, or not as it was, and only "
                f"{newest or 'what is published now'} can be fetched: `nexo-lsp models pull {entry.name}`."
            )
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
        with self._fetching.mapped_errors(entry):
            for path in () if force else self._candidates(entry):
                if self._is_right(entry, path, meter, cancel):
                    return path
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._fetching.lock(entry, meter, cancel) as waited:
                path = self.versions.place(entry)
                # Whoever held the lock has probably just fetched it.
                if (waited or not force) and self._is_right(entry, path, meter, cancel):
                    return path
                self.cleaning.make_room(self.limit_bytes, entry, partial_of(path), self.configured)
                self._fetching.fetch(entry, path, meter, cancel, force)
        self.cleaning.trim(self.limit_bytes, (*self.configured, path.name))
        return path

    def _announced(self, entry: CatalogEntry, cancel: threading.Event) -> CatalogEntry:
        try:
            return announced(entry, self._fetching.sources, cancel)
        except NotAnnounced as failure:
            path = self.folder / entry.file
            if path.is_file():
                return as_it_lies(entry, path)
            raise ModelDownloadFailed(nowhere(entry, [str(failure)])) from failure

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
        with self._fetching.mapped_errors(entry):
            meter, cancel = Meter(progress, size), cancel or threading.Event()
            digest = self._check(path, meter, cancel) if ours else digest_of_file(path, meter, cancel)
        ok = digest.startswith(right)
        if ours and not right:
            keep(entry, path, digest)
        label = version.of(entry.name) if version is not None and wanted else entry.name
        published = wanted in {"", short(entry.sha256)}
        return Verdict(ok, label, path, size, digest, "" if ok else WRONG_DIGEST, note_of(entry), published)

    def remove(self, name: str) -> int:
        """Delete a model of this folder with what was fetched of it in part; gives the bytes freed.

        All its versions go, or with `NAME@ID` that one. Raises `ModelMissing` when there is none,
        `ModelUnknown`, `ModelError` while it is fetched or used, and for what came with the program.
        """
        try:
            entry = self.entry(name)
        except ModelUnknown:
            if Path(name).name != name or not (self.folder / name).is_file():
                raise
            entry = None
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
        digest = digest_of_file(path, meter, cancel)
        published = any(digest == entry.sha256 for entry in self.catalog)
        write_record(path, digest, published=published)
        return digest


def _split(name: str) -> tuple[str, str]:
    """As `split_version`; what stands behind the @ of a reference is a revision."""
    return (name, "") if is_reference(name) else split_version(name)


def _looks_like_path(name: str) -> bool:
    return name.endswith(".gguf") or name.startswith("~") or "/" in name or "\\" in name

"""What the models folder holds that nothing needs, and what goes first when it may not hold more.

Nothing is removed that is in use in any process, pinned, configured or being fetched: that is asked once
more, under the folder's gate, at the moment of removing.
"""

from __future__ import annotations

import contextlib
import glob
import logging
import re
import shutil
import time
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import filelock

from nexo_lsp.errors import DiskFull, ModelError
from nexo_lsp.folders import UNPACKED, expanded
from nexo_lsp.models.catalog import DEFAULT_MODEL, CatalogEntry, size_text
from nexo_lsp.models.files import size_of, within
from nexo_lsp.models.leases import Leases, used_file
from nexo_lsp.models.record import record_file
from nexo_lsp.models.unpinned import entry_behind, origin_file, remembered
from nexo_lsp.models.versions import Versions, short, split_version, versioned_path

log = logging.getLogger("nexo_lsp.models")

Kind = Literal["version", "model", "partial", "copy", "leftover"]

_NEW_S = 60
"""A small file takes much less to be written."""
_COPY = re.compile(r"(?P<stem>.+)\.[0-9a-f]{16}\.(gguf|partial)")


@dataclass(frozen=True, slots=True)
class Waste:
    """Files that go together."""

    kind: Kind
    path: Path
    """The one that the others belong to."""
    size: int
    """Bytes, all together."""
    why: str
    """Why it may go, for people."""
    beside: tuple[Path, ...] = ()
    """What goes with it."""


class Cleaning:
    """The housekeeping of one models folder."""

    def __init__(
        self,
        folder: Path,
        catalog: Sequence[CatalogEntry],
        versions: Versions,
        leases: Leases,
        elsewhere: Callable[[], Iterable[Path]] = tuple,
    ) -> None:
        """`elsewhere` gives the models that are used and lie in other folders."""
        self._folder = folder
        self._catalog = tuple(catalog)
        self._versions = versions
        self._leases = leases
        self._elsewhere = elsewhere

    def waste(self, keep: Collection[str] = ()) -> tuple[Waste, ...]:
        """What nothing uses: old versions, parts of pulls that have died, copies and records without a model.

        `keep` are names or versions (`NAME@ID`) that the settings ask for.
        """
        kept = self._kept(keep)
        return (
            *self._old_versions(kept),
            *self._partials(),
            *self._copies_of_nothing(keep),
            *self._leftovers(),
        )

    def remove(self, waste: Iterable[Waste]) -> tuple[Waste, ...]:
        """Remove what still may go, and give what went. What cannot be removed now (it is open) stays."""
        return tuple(one for one in waste if self._removed(one))

    def size(self) -> int:
        """Bytes of everything in the folder."""
        return sum(_tree(self._folder))

    def evictable(self, keep: Collection[str], but: Iterable[Path] = ()) -> tuple[Waste, ...]:
        """What may go when room is needed, first what was not used for the longest time.

        Copies of nothing and parts of dead pulls come first: they cost nobody anything, or only a part.
        What no source is known for (a file of the user's own, a link) never goes; `but` are files that stay.
        """
        stays, known = self._kept(keep) | set(but), {entry.file for entry in self._entries()}
        models = [
            self._model(path, "model", f"last used {_day(self._leases.last_use(path))}")
            for path in self._folder.glob("*.gguf")
            if split_version(path.name)[0] in known and not path.is_symlink()
            if path not in stays and not self._leases.is_held(path)
        ]
        models.sort(key=lambda one: self._leases.last_use(one.path))
        partials = [one for one in self._partials() if one.path not in stays]
        return (*self._copies_of_nothing(keep), *partials, *models)

    def _kept(self, keep: Collection[str]) -> frozenset[Path]:
        """The files that the settings and the pins ask for."""
        wanted = [split_version(name) for name in keep]
        kept: set[Path] = set()
        for entry in self._entries():
            names = {entry.name, entry.file, *(["auto"] if entry.name == DEFAULT_MODEL else [])}
            asked = [version for name, version in wanted if name in names]
            current = self._versions.current(entry)
            for version in self._versions.of(entry):
                used = current is not None and version.id == current.id
                if version.id in asked or ("" in asked and used):
                    kept.add(version.path)
        paths = (path for name in keep for path in (self._folder / name, expanded(name)))
        named = {ours for path in paths if (ours := within(path, self._folder)) is not None}
        return frozenset(kept | self._pinned() | named)

    def _entries(self) -> Iterator[CatalogEntry]:
        """The catalogue's models, and those that are here without standing in it."""
        yield from (remembered(entry, self._folder) for entry in self._catalog)
        known = {entry.file for entry in self._catalog}
        for path in self._folder.glob("*.gguf"):
            file, _ = split_version(path.name)
            if file not in known and (entry := entry_behind(path, self._catalog)) is not None:
                known.add(file)
                yield entry

    def _pinned(self) -> set[Path]:
        choices = self._versions.choices()
        pins = [
            self._versions.find(entry, choices[entry.name].version)
            for entry in self._entries()
            if entry.name in choices and choices[entry.name].pinned
        ]
        return {version.path for version in pins if version is not None}

    def _old_versions(self, kept: frozenset[Path]) -> Iterator[Waste]:
        for entry in self._entries():
            current = self._versions.current(entry)
            for version in self._versions.of(entry):
                if current is None or version.id == current.id or version.path in kept:
                    continue
                if version.id == short(entry.sha256) or self._leases.is_held(version.path):
                    # Newer than the one in use: what a roll-back left goes forward again without a download.
                    continue
                yield self._model(version.path, "version", f"{current.id} is used instead")

    def _partials(self) -> Iterator[Waste]:
        for path in sorted(self._folder.glob("*.partial")):
            if path.is_file() and not self.is_fetched(path):
                yield Waste("partial", path, size_of(path), "its download has ended before its end")
        for path in sorted(self._folder.glob("*.parts")):
            if path.is_dir() and not self.is_fetched(path):
                yield Waste("partial", path, sum(_tree(path)), "its download has ended before its end")

    def is_fetched(self, path: Path) -> bool:
        """Whether some process is fetching the model that `path` (the file, or a part) belongs to."""
        lock = filelock.FileLock(self._lock_of(path), timeout=0)
        if not Path(lock.lock_file).exists():
            return False
        try:
            with lock:
                return False
        except (filelock.Timeout, OSError):
            return True

    def _lock_of(self, path: Path) -> Path:
        """The lock that whoever fetches the model holds to which `path` belongs."""
        file = re.sub(r"(\.(partial|parts|lock|checked|used|origin))+$", "", path.name)
        return self._folder / (split_version(file)[0] + ".lock")

    def _copies_of_nothing(self, keep: Iterable[str]) -> Iterator[Waste]:
        # Models that lie elsewhere have their copies here as well.
        elsewhere = (*map(Path, keep), *self._elsewhere())
        stems = {path.stem for path in (*self._folder.glob("*.gguf"), *elsewhere)}
        for path in sorted((self._folder / UNPACKED).glob("*")):
            match = _COPY.fullmatch(path.name)
            if match is not None and match["stem"] not in stems:
                yield Waste("copy", path, size_of(path), "the model that it was made of is gone")

    def _leftovers(self) -> Iterator[Waste]:
        for path in sorted(self._folder.iterdir() if self._folder.is_dir() else ()):
            for end in (".checked", ".used", ".origin"):
                if path.name.endswith(end) and not path.with_name(path.name.removesuffix(end)).exists():
                    yield Waste("leftover", path, size_of(path), "the model that it tells of is gone")
            if path.name.endswith(".new") and time.time() - _written_at(path) > _NEW_S:
                yield Waste("leftover", path, size_of(path), "it was being written when its process died")
            unneeded = path.name.endswith(".gguf.lock") and not _parts_and_versions(path.with_suffix(""))
            if unneeded and not self.is_fetched(path):
                yield Waste("leftover", path, size_of(path), "the model that it is for is gone")
        for path in self._leases.dead():
            yield Waste("leftover", path, size_of(path), "the process that used the model has died")

    def make_room(self, limit: int, entry: CatalogEntry, partial: Path, keep: Collection[str]) -> None:
        """Let go of what was not used for longest, until `entry` fits under `limit` bytes (0: none).

        Older versions of the same model stay until the new one is here; `trim` comes for them then. Raises
        `DiskFull`, before anything is removed, when what must stay leaves too little room.
        """
        excess = self.size() + entry.size - size_of(partial) - limit
        if not limit or excess <= 0:
            return
        own = [version.path for version in self._versions.of(entry)]
        candidates = self.evictable(keep, but=(*own, partial))
        pinned = self._pinned()
        later = sum(size_of(path) for path in own if path not in pinned and not self._leases.is_held(path))
        if sum(one.size for one in candidates) + later < excess:
            raise DiskFull(
                f"The model {entry.name} ({entry.size_text}) would make the models folder larger than "
                f"nexo.models.cacheLimitGb allows ({size_text(limit)}), and what else is there is in use, "
                "pinned or configured; raise the limit, or remove a model with `nexo-lsp models remove`."
            )
        self._evict(candidates, excess)

    def trim(self, limit: int, keep: Collection[str]) -> None:
        """Let go of what was not used for longest, until the folder holds no more than `limit` bytes."""
        excess = self.size() - limit
        if limit and excess > 0:
            self._evict(self.evictable(keep), excess)

    def _evict(self, candidates: Iterable[Waste], excess: int) -> None:
        for one in candidates:
            if excess <= 0:
                return
            if self._removed(one):
                excess -= one.size

    def remove_all(self, files: Sequence[Path]) -> int:
        """Remove models and parts of models with all that belongs to them; gives the bytes freed.

        Raises `ModelError` when one of them is being fetched or used; what came before it is gone by then.
        """
        freed = 0
        for path in files:
            one = self._model(path, "model", "the user wanted it removed")
            try:
                self._remove(one)
            except filelock.Timeout as error:
                raise ModelError(
                    f"{path.name} is being fetched by another process; stop that first."
                ) from error
            except OSError as error:
                raise ModelError(
                    f"{path} cannot be removed ({error.strerror}); is an engine using it?"
                ) from error
            freed += one.size
        return freed

    def _model(self, path: Path, kind: Kind, why: str) -> Waste:
        copies = tuple(
            file
            for file in (self._folder / UNPACKED).glob("*")
            if (match := _COPY.fullmatch(file.name)) is not None and match["stem"] == path.stem
        )
        beside = (*copies, record_file(path), used_file(path), origin_file(path))
        return Waste(kind, path, size_of(path) + sum(map(size_of, copies)), why, beside)

    def _removed(self, one: Waste) -> bool:
        try:
            if one.path in self._pinned():
                return False
            self._remove(one)
        except (filelock.Timeout, ModelError):
            return False
        except OSError as error:
            log.warning("%s stays, since it cannot be removed (%s)", one.path, error.strerror or error)
            return False
        return True

    def _remove(self, one: Waste) -> None:
        """Raises `ModelError` while it is used, `filelock.Timeout` while it is fetched, and `OSError`."""
        with self._versions.gate(), self._not_fetched(one.path):
            # A lease may have been but begun when it was looked at.
            if self._leases.is_held(one.path, clear=True) or self._leases.is_alive(one.path):
                raise ModelError(f"{one.path.name} is being used by an engine; stop that first.")
            if one.path.is_dir():
                shutil.rmtree(one.path)
            else:
                # The model before what belongs to it: should it be open (Windows), nothing is lost.
                one.path.unlink(missing_ok=True)
            for file in one.beside:
                with contextlib.suppress(OSError):
                    file.unlink(missing_ok=True)
        log.info("removed %s: %s", one.path, one.why)

    @contextlib.contextmanager
    def _not_fetched(self, path: Path) -> Generator[None, None, None]:
        """Keep others from fetching what `path` belongs to. Raises `filelock.Timeout` while somebody does."""
        file = self._lock_of(path)
        known = file.exists()
        with filelock.FileLock(file, timeout=0):
            yield
            if not known:
                # Removed while it is held: who waits for it sees that its file is gone, and makes a new one.
                with contextlib.suppress(OSError):
                    file.unlink(missing_ok=True)


def removable(folder: Path, versions: Versions, entry: CatalogEntry | None, name: str) -> tuple[Path, ...]:
    """The files of a model, in part or whole, that `remove` means by `name` (`NAME@ID` is one version)."""
    plain = folder / (entry.file if entry is not None else name)
    wanted = split_version(name)[1] if entry is not None else ""
    if entry is not None and wanted:
        version = versions.find(entry, wanted)
        # One that is known to be damaged is no version any more, and may go all the same.
        path = version.path if version is not None else versioned_path(plain, wanted)
        return (path,) if path.exists() else ()
    return _parts_and_versions(plain)


def _parts_and_versions(plain: Path) -> tuple[Path, ...]:
    """All versions of the model file `plain` that are there, whole or in part."""
    found = sorted(plain.parent.glob(f"{glob.escape(plain.stem)}@*{plain.suffix}*"))
    # What stands behind the @ may be the user's own: `coder@work.gguf` is no version of `coder.gguf`.
    beside = (path for path in found if split_version(path.name.removesuffix(".partial"))[1])
    files = (plain, plain.with_name(plain.name + ".partial"), *beside)
    return tuple(path for path in files if path.exists() and path.suffix in {".gguf", ".partial"})


def _tree(folder: Path) -> Iterator[int]:
    """The sizes of all files below; what vanishes meanwhile counts nothing."""
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            if path.is_file() and not path.is_symlink():
                yield path.stat().st_size


def _written_at(path: Path) -> float:
    """In seconds since the epoch; now for what is gone."""
    try:
        return path.stat().st_mtime
    except OSError:
        return time.time()


def _day(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d")

"""Several versions of one model, side by side.

The first version of a model to come here has the catalogue's file name. When the catalogue moves on to
another digest, the new version is put beside it as `STEM@DIGEST.gguf` (the first eight digits of its
SHA-256): a file that an engine may have open is never renamed or written to. Which of them is used follows
from the catalogue and from `versions.json`, where the user's choice is kept: replacing that file is all there
is to a roll-back, so that a process that is killed at any moment leaves the old choice or the new one.
"""

from __future__ import annotations

import contextlib
import glob
import json
import logging
import re
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import filelock

from nexo_lsp.errors import ModelError, ModelMissing
from nexo_lsp.models.catalog import CatalogEntry
from nexo_lsp.models.files import size_of
from nexo_lsp.models.record import record_of, write_record, write_whole

log = logging.getLogger("nexo_lsp.models")

CHOICES_FILE = "versions.json"
_GATE_FILE = "versions.lock"
_GATE_S = 30
_VERSIONED = re.compile(r"(?P<stem>.+)@(?P<id>[0-9a-f]{8})(?P<end>\.gguf)?")


@dataclass(frozen=True, slots=True)
class Version:
    """One file of a model that is, as far as is known, as it was published."""

    id: str
    """The first eight digits of its SHA-256."""
    path: Path
    size: int
    verified: bool
    """Whether its digest was read from the file, and the file has not changed since."""
    added_ns: int

    def of(self, name: str) -> str:
        """What `locate` knows this version of the model `name` by."""
        return f"{name}@{self.id}"


@dataclass(frozen=True, slots=True)
class Choice:
    """What the user wants of a model instead of the newest version."""

    version: str
    """An id; empty where the newest is wanted."""
    pinned: bool
    """Whether it is also kept from updates and from being removed."""


def short(sha256: str) -> str:
    """The id of the version with that digest."""
    return sha256[:8]


def split_version(name: str) -> tuple[str, str]:
    """A name or file and the version that stands in it, empty if there is none: `NAME@0123abcd`."""
    match = _VERSIONED.fullmatch(name)
    return (match["stem"] + (match["end"] or ""), match["id"]) if match else (name, "")


def versioned_path(path: Path, version: str) -> Path:
    """Where a version lies when another one has the plain name."""
    return path.with_name(f"{path.stem}@{version}{path.suffix}")


class Versions:
    """The versions in one models folder, and which of them the user has chosen."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def of(self, entry: CatalogEntry) -> tuple[Version, ...]:
        """All versions of a model that are here and not known to be damaged, in the order they came in."""
        plain = self._folder / entry.file
        pattern = f"{glob.escape(plain.stem)}@*{plain.suffix}"
        paths = (plain, *sorted(self._folder.glob(pattern)))
        found = [version for path in paths if (version := self._version(entry, path)) is not None]
        # The same version may lie here twice, put by hand: the plain name is the better one.
        unique = {version.id: version for version in reversed(found)}
        return tuple(sorted(unique.values(), key=lambda version: (version.added_ns, version.path.name)))

    def find(self, entry: CatalogEntry, version: str) -> Version | None:
        """One version of a model by its id."""
        return next((one for one in self.of(entry) if version and one.id == version), None)

    def current(self, entry: CatalogEntry) -> Version | None:
        """The version that is used: the chosen one, else the catalogue's, else the one that came last.

        None when there is none, and when the catalogue's version is damaged, so that it is fetched again.
        """
        here = {version.id: version for version in self.of(entry)}
        chosen = self.choice(entry.name).version
        if chosen in here:
            return here[chosen]
        if chosen:
            log.warning("version %s of %s was chosen and is not here any more", chosen, entry.name)
        newest = short(entry.sha256)
        if newest in here:
            return here[newest]
        if not here or (newest and self.place(entry).exists()):
            return None
        return list(here.values())[-1]

    def place(self, entry: CatalogEntry) -> Path:
        """Where the catalogue's version is, or would be put: no other version lies there."""
        plain = self._folder / entry.file
        wanted = short(entry.sha256)
        beside = versioned_path(plain, wanted)
        if beside.exists():
            return beside
        there = self._version(entry, plain)
        # An entry that is not pinned, and of which nothing was announced yet, has but one place.
        return plain if there is None or not wanted or there.id == wanted else beside

    def choice(self, name: str) -> Choice:
        """What the user has chosen for a model; a file that cannot be read says nothing."""
        return self.choices().get(name, Choice("", pinned=False))

    def choices(self) -> dict[str, Choice]:
        """Every choice, by the model's name."""
        try:
            data: Any = json.loads((self._folder / CHOICES_FILE).read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        if not isinstance(data, dict):
            return {}
        found: dict[str, Choice] = {}
        for name, value in cast("dict[str, object]", data).items():
            if isinstance(value, dict):
                row = cast("dict[str, object]", value)
                version = row.get("version")
                if isinstance(version, str) and version:
                    found[name] = Choice(version, row.get("pinned") is True)
        return found

    def choose(self, entry: CatalogEntry, version: str, *, pinned: bool = False) -> None:
        """Use that version from now on; empty goes back to the newest.

        Raises `ModelMissing` when it is not here, `ModelError` when the folder cannot be written.
        """
        with self.gate():
            if version and self.find(entry, version) is None:
                raise ModelMissing(self._no_such(entry, version))
            choices = self.choices()
            choices.pop(entry.name, None)
            if version:
                choices[entry.name] = Choice(version, pinned)
            data = {name: {"version": one.version, "pinned": one.pinned} for name, one in choices.items()}
            try:
                write_whole(self._folder / CHOICES_FILE, json.dumps(data, indent=2) + "\n")
            except OSError as error:
                raise ModelError(
                    f"What is to be used cannot be noted in {self._folder} ({error.strerror or error})."
                ) from error

    def pin(self, entry: CatalogEntry, version: str = "") -> Version:
        """Keep a version (by default the one in use) whatever the catalogue says. Raises as `choose`."""
        wanted = self.find(entry, version) if version else self.current(entry)
        if wanted is None:
            raise ModelMissing(self._no_such(entry, version))
        self.choose(entry, wanted.id, pinned=True)
        return wanted

    def unpin(self, entry: CatalogEntry) -> Version | None:
        """Follow the catalogue again; gives what is used now. Raises `ModelError`."""
        self.choose(entry, "")
        return self.current(entry)

    def roll(self, entry: CatalogEntry, *, forward: bool = False) -> Version:
        """Use the version that came before the one in use, or the one that came after it.

        A pin moves along: whoever pins and rolls back wants the older one kept. Raises `ModelMissing` when
        there is none, and as `choose`.
        """
        here = self.of(entry)
        now = self.current(entry)
        places = [version.id for version in here]
        at = (places.index(now.id) if now is not None else len(places)) + (1 if forward else -1)
        if not 0 <= at < len(here):
            which = "after" if forward else "before"
            raise ModelMissing(
                f"There is no version of {entry.name} here that came {which} the one in use; "
                "`nexo-lsp models versions` shows those that are."
            )
        pinned = self.choice(entry.name).pinned
        # Forward to the catalogue's own is no choice of its own any more: the next update counts again.
        back_home = here[at].id == short(entry.sha256) and not pinned
        self.choose(entry, "" if back_home else here[at].id, pinned=pinned)
        return here[at]

    @contextlib.contextmanager
    def gate(self) -> Generator[None, None, None]:
        """Hold what all short changes of the folder hold: choices, removals, the beginning of a use.

        Raises `ModelError` when somebody holds it for long, or the folder cannot be written.
        """
        lock = filelock.FileLock(self._folder / _GATE_FILE)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=_GATE_S)
        except filelock.Timeout as error:
            raise ModelError(f"Another process is changing {self._folder}; try again in a moment.") from error
        except OSError as error:
            raise ModelError(
                f"The models folder {self._folder} cannot be written ({error.strerror or error})."
            ) from error
        try:
            yield
        finally:
            lock.release()

    def _version(self, entry: CatalogEntry, path: Path) -> Version | None:
        size = size_of(path)
        if not size:
            return None
        _, named = split_version(path.name)
        record, wanted = record_of(path), short(entry.sha256)
        if record is not None:
            found = short(record.sha256)
            right = found == named if named else record.published or found == wanted
            if right and not record.published:
                # An older program found it right and did not note that: the catalogue will move on some day.
                write_record(path, record.sha256, published=True)
            return Version(found, path, size, True, record.added_ns) if right else None
        # Never read since it came here: its name, or its size, is all that says what it is.
        if (named or wanted) == wanted and entry.size and size != entry.size:
            return None
        return Version(named or wanted, path, size, False, path.stat().st_mtime_ns)

    def _no_such(self, entry: CatalogEntry, version: str) -> str:
        here = ", ".join(one.id for one in self.of(entry)) or "none"
        what = f"The version {version} of {entry.name}" if version else f"The model {entry.name}"
        return f"{what} is not on this machine (versions here: {here})."

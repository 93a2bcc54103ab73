"""What lies in the models folder, and what came with the program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nexo_lsp.models.catalog import CatalogEntry
from nexo_lsp.models.embedded import EmbeddedModels
from nexo_lsp.models.files import size_of
from nexo_lsp.models.record import read_record
from nexo_lsp.models.unpinned import entry_behind, remembered
from nexo_lsp.models.versions import Versions, split_version

WRONG_DIGEST = "is damaged: its SHA-256 is not the published one"


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
    version: str = ""
    """The id of a version that is not the one in use; empty for the one that is."""
    embedded: str = ""
    """Where it came with the program; empty for a file of the models folder."""

    @property
    def name(self) -> str:
        """What `locate` knows it by."""
        if self.entry is None:
            return self.path.name
        return f"{self.entry.name}@{self.version}" if self.version else self.entry.name


def wrong_size(size: int, entry: CatalogEntry) -> str:
    """What is wrong with a file of `size` bytes."""
    return f"is damaged: it has {size:,} bytes instead of {entry.size:,}"


def known_problem(entry: CatalogEntry, path: Path) -> str:
    """What is wrong with the file of an entry, as far as a cheap look shows; empty for nothing."""
    size = size_of(path)
    if entry.size and size != entry.size:
        return wrong_size(size, entry)
    return WRONG_DIGEST if entry.sha256 and read_record(path) not in {None, entry.sha256} else ""


def listed(
    folder: Path, catalog: Sequence[CatalogEntry], versions: Versions, embedded: EmbeddedModels
) -> tuple[InstalledModel, ...]:
    """Every model file in `folder` by name, then those that came with the program; none of them is hashed."""
    found: list[InstalledModel] = []
    for path in sorted(folder.glob("*.gguf")):
        plain, _ = split_version(path.name)
        entry = next((entry for entry in catalog if entry.file == plain), None)
        entry = remembered(entry, folder) if entry is not None else entry_behind(path, catalog)
        found.append(
            InstalledModel(None, path, size_of(path), False)
            if entry is None
            else _of_entry(versions, entry, path)
        )
    for path, place in embedded.files():
        # An embedded file under another name may be one of the catalogue's too: only reading it would tell.
        entry = next((one for one in catalog if (one.file, one.size) == (path.name, size_of(path))), None)
        found.append(InstalledModel(entry, path, size_of(path), False, embedded=place.why))
    return tuple(found)


def _of_entry(versions: Versions, entry: CatalogEntry, path: Path) -> InstalledModel:
    version = next((one for one in versions.of(entry) if one.path == path), None)
    if version is None:
        return InstalledModel(entry, path, size_of(path), False, known_problem(entry, path))
    current = versions.current(entry)
    other = "" if current is not None and current.id == version.id else version.id
    return InstalledModel(entry, path, version.size, version.verified, version=other)

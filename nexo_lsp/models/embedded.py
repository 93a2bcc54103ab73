"""Models that come with the program: in a wheel, or in a folder beside it. They are used where they lie.

The order in which they are looked for is that of `places`: what the user names by hand, then what lies beside
the program, then what Python packages bring. Nothing there is ever written, changed or removed.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import importlib.util
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from nexo_lsp.folders import expanded
from nexo_lsp.models.catalog import CatalogEntry
from nexo_lsp.models.files import CHUNK, size_of

log = logging.getLogger("nexo_lsp.models")

GROUP = "nexo_lsp.models"
"""The entry point group: a package that brings models names itself there, whatever the entry's name."""
VARIABLE = "NEXO_MODELS_EMBEDDED"


@dataclass(frozen=True, slots=True)
class Place:
    """One folder that may hold models."""

    folder: Path
    why: str
    """What made us look there, for people."""


@dataclass(frozen=True, slots=True)
class Program:
    """Where the running program lies, as far as it matters here."""

    executable: str
    prefix: str
    frozen: bool
    """Whether it is one executable that holds its own Python (PyInstaller and the like)."""

    @staticmethod
    def running() -> Program:
        """This one."""
        return Program(sys.executable, sys.prefix, bool(getattr(sys, "frozen", False)))


def places(
    environ: Mapping[str, str],
    program: Program | None = None,
    packages: Callable[[], Iterable[Place]] | None = None,
) -> tuple[Place, ...]:
    """The folders that exist, in the order in which they are looked through; every one is logged.

    `program` and `packages` are the running program and its installed packages if they are not given.
    """
    program = program or Program.running()
    wanted = [Place(expanded(text), VARIABLE) for text in _listed(environ.get(VARIABLE, ""))]
    if program.frozen and program.executable:
        wanted.append(Place(Path(program.executable).parent / "models", "beside the program"))
    wanted.append(Place(Path(program.prefix) / "share" / "nexo-lsp" / "models", "beside the program"))
    wanted += (packages or package_places)()
    found: dict[Path, Place] = {}
    for place in wanted:
        there = place.folder.is_dir()
        log.debug("embedded models, %s: %s%s", place.why, place.folder, "" if there else " (not there)")
        if there:
            found.setdefault(place.folder.absolute(), place)
    return tuple(found.values())


def package_places() -> Iterator[Place]:
    """The folders of the installed packages that bring models. None of their code is run."""
    for point in sorted(importlib.metadata.entry_points(group=GROUP), key=lambda point: point.value):
        top, *below = point.module.split(".")
        try:
            spec = importlib.util.find_spec(top)
        except (ImportError, ValueError, AttributeError) as error:
            log.warning("the package %s, which is said to bring models, cannot be found: %s", top, error)
            continue
        for root in (spec.submodule_search_locations if spec is not None else None) or ():
            yield Place(Path(root, *below), f"package {point.module}")


def _listed(text: str) -> Iterator[str]:
    return (part.strip() for part in text.split(os.pathsep) if part.strip())


class EmbeddedModels:
    """The models that came with this program. What is there is looked up once, at the first need."""

    def __init__(self, look: Callable[[], tuple[Place, ...]]) -> None:
        self._look = functools.cache(look)

    def files(self) -> tuple[tuple[Path, Place], ...]:
        """Every model file, the first of each name only: it is the one that is found."""
        found: dict[str, tuple[Path, Place]] = {}
        for place in self._look():
            with contextlib.suppress(OSError):
                for path in sorted(place.folder.glob("*.gguf")):
                    found.setdefault(path.name, (path, place))
        return tuple(found.values())

    def named(self, file: str) -> Path | None:
        """The model file of that name."""
        return next((path for path, _ in self.files() if path.name == file), None)

    def find(self, entry: CatalogEntry) -> Path | None:
        """The file of a catalogue entry: of its size, under its name, or under any name with its digest."""
        right = [(path, place) for path, place in self.files() if size_of(path) == entry.size]
        right.sort(key=lambda found: found[0].name != entry.file)
        for path, place in right:
            # Two models of one kind may well have the same size, so another name has to be looked into.
            if path.name == entry.file or digest_of(path) == entry.sha256:
                log.info("%s is embedded: %s (%s)", entry.name, path, place.why)
                return path
        return None

    def why(self, path: Path) -> str:
        """What made us look where `path` lies; empty for a file that is not embedded."""
        return next((place.why for found, place in self.files() if found == path), "")


def digest_of(path: Path) -> str:
    """The SHA-256 of an embedded file; empty where it cannot be read. Read once in a process."""
    try:
        stat = path.stat()
        return _read_digest(path, stat.st_size, stat.st_mtime_ns)
    except OSError as error:
        log.warning("the embedded model %s cannot be read: %s", path, error)
        return ""


@functools.lru_cache(maxsize=64)
def _read_digest(path: Path, _size: int, _mtime_ns: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(4 * CHUNK):
            digest.update(chunk)
    return digest.hexdigest()

"""Models that no catalogue pins: what they are is what a source announces, and is remembered beside them.

`FILE.origin` holds what was announced when the file was fetched and the digest that was found then, so that
every later check compares with it. `FILE.partial.origin` holds what the bytes that are there already were
announced as: when that has changed since, they are no beginning of the new file.
"""

from __future__ import annotations

import contextlib
import glob
import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

from nexo_lsp.errors import ModelUnknown
from nexo_lsp.models.announcing import Announced
from nexo_lsp.models.catalog import CatalogEntry
from nexo_lsp.models.record import write_whole
from nexo_lsp.models.references import entry_of
from nexo_lsp.models.transfer import SourceFailed
from nexo_lsp.models.versions import split_version

_ITSELF = "the file"
"""Who says what a file is that was put into the folder by hand, where no source can be asked."""


@runtime_checkable
class Announcer(Protocol):
    """A source that can say what a file is before it delivers it."""

    @property
    def name(self) -> str:
        """What people call it, in messages."""
        ...

    def announce(self, entry: CatalogEntry, cancel: threading.Event) -> Announced:
        """Raises `SourceFailed` with a reason, and `ModelDownloadCancelled`."""
        ...


class NotAnnounced(SourceFailed):
    """No source says what the file is; the message names each and why."""


@dataclass(frozen=True, slots=True)
class _Origin:
    reference: str
    size: int
    sha256: str
    by: str
    mark: str


def origin_file(path: Path) -> Path:
    """Where is kept what was announced of `path`."""
    return path.with_name(path.name + ".origin")


def announced(entry: CatalogEntry, sources: Sequence[object], cancel: threading.Event) -> CatalogEntry:
    """The entry as the first source announces it that can: with a size, and with a digest if it says one.

    Raises `NotAnnounced`, `ModelDownloadCancelled`.
    """
    reasons: list[str] = []
    for source in sources:
        if not isinstance(source, Announcer):
            continue
        try:
            said = source.announce(entry, cancel)
        except SourceFailed as failure:
            reasons.append(f"{source.name}: {failure}")
            continue
        return replace(
            entry,
            size=said.size,
            sha256=said.sha256,
            announced_by=source.name,
            announced_mark=said.mark,
            # What is fetched is of the commit that was told of, also if the branch moves on meanwhile.
            hub_revision=said.revision or entry.hub_revision,
        )
    raise NotAnnounced("; ".join(reasons) or "no source is set up")


def as_it_lies(entry: CatalogEntry, path: Path) -> CatalogEntry:
    """The entry for a file that is there while nobody can say what it should be."""
    return replace(entry, size=path.stat().st_size, sha256="", announced_by=_ITSELF)


def forgotten(entry: CatalogEntry) -> CatalogEntry:
    """The entry without what was announced of it."""
    return (
        replace(entry, size=0, sha256="", announced_by="", announced_mark="") if entry.announced_by else entry
    )


def remembered(entry: CatalogEntry, folder: Path) -> CatalogEntry:
    """The entry with what is remembered of its file in `folder`; of several versions, of the last one."""
    if entry.sha256:
        return entry
    plain = folder / entry.file
    paths = (plain, *folder.glob(f"{glob.escape(plain.stem)}@*{plain.suffix}"))
    # What is told of a file that is gone says nothing of the one that is fetched next.
    last = max((path for path in paths if path.is_file()), key=_noted_at, default=None)
    origin = _read(last) if last is not None else None
    if origin is None or not origin.sha256:
        return entry
    return replace(
        entry,
        size=origin.size,
        sha256=origin.sha256,
        announced_by=origin.by,
        announced_mark=origin.mark,
    )


def entry_behind(path: Path, catalog: Sequence[CatalogEntry]) -> CatalogEntry | None:
    """The entry of a file that was fetched by a reference, or None for any other file."""
    origin = _read(path)
    if origin is None:
        return None
    try:
        entry = entry_of(origin.reference, catalog)
    except ModelUnknown:
        return None
    # It may be one of several versions (`versions.py`).
    file, _ = split_version(path.name)
    return remembered(entry, path.parent) if entry.file in {file, path.name} else None


def agrees(entry: CatalogEntry, digest: str) -> bool:
    """Whether a file with that digest can be the entry's."""
    return digest == entry.sha256 or (not entry.sha256 and bool(entry.announced_by))


def begin(entry: CatalogEntry, partial: Path) -> None:
    """Note what is about to be fetched; a partial file that is the beginning of another is thrown away."""
    if entry.pinned:
        return
    now = _of(entry, entry.sha256)
    if _read(partial) != now:
        partial.unlink(missing_ok=True)
        _write(partial, now)


def keep(entry: CatalogEntry, path: Path, digest: str) -> None:
    """Remember what `path` is from now on. Nothing to do for what the catalogue pins."""
    if entry.pinned:
        return
    origin = _of(entry, digest)
    if _read(path) != origin:
        # Where the folder is read-only it is not remembered, like other findings.
        with contextlib.suppress(OSError):
            _write(path, origin)
    with contextlib.suppress(OSError):
        origin_file(path.with_name(path.name + ".partial")).unlink(missing_ok=True)


def note_of(entry: CatalogEntry) -> str:
    """What there is to say of where trust in the file comes from; empty for what the catalogue pins."""
    if entry.pinned:
        return ""
    if entry.announced_by == _ITSELF:
        return "not pinned: nobody could be asked what it should be; the SHA-256 that was found is remembered"
    if not entry.sha256:
        return "not pinned: only its length is announced; the SHA-256 that is found is remembered"
    return f"not pinned: its SHA-256 ({entry.sha256[:8]}…) is the one that {entry.announced_by} announced"


def _noted_at(path: Path) -> int:
    """When the origin of `path` was noted, in nanoseconds; 0 where it was not."""
    try:
        return origin_file(path).stat().st_mtime_ns
    except OSError:
        return 0


def _of(entry: CatalogEntry, digest: str) -> _Origin:
    return _Origin(entry.name, entry.size, digest, entry.announced_by, entry.announced_mark)


def _write(path: Path, origin: _Origin) -> None:
    data = {
        "reference": origin.reference,
        "size": origin.size,
        "sha256": origin.sha256,
        "by": origin.by,
        "mark": origin.mark,
    }
    write_whole(origin_file(path), json.dumps(data))


def _read(path: Path) -> _Origin | None:
    try:
        data: Any = json.loads(origin_file(path).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(data, dict):
        return None
    row = cast("dict[str, object]", data)
    texts = [row.get(key) for key in ("reference", "sha256", "by", "mark")]
    reference, sha256, by, mark = (text if isinstance(text, str) else "" for text in texts)
    size = row.get("size")
    return _Origin(reference, size, sha256, by, mark) if isinstance(size, int) and reference and by else None

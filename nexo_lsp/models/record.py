"""What is known of a model file, remembered beside it for as long as the file stays the same."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast


@dataclass(frozen=True, slots=True)
class Record:
    """What was found when the file was fetched or read."""

    sha256: str
    """Of the file as it is."""
    published: bool
    """Whether that was the digest of a published version: then the file is right, if not the newest."""
    added_ns: int
    """When this version came here, in nanoseconds since the epoch, or the file's own time."""


def record_file(path: Path) -> Path:
    """Where the record of `path` lies."""
    return path.with_name(path.name + ".checked")


def record_of(path: Path) -> Record | None:
    """What is known of `path`; None when it was never read, or has changed since."""
    try:
        stat = path.stat()
    except OSError:
        return None
    known = _noted(path)
    if known.get("size") != stat.st_size or known.get("mtime_ns") != stat.st_mtime_ns:
        return None
    digest, added = known.get("sha256"), known.get("added_ns", stat.st_mtime_ns)
    if not isinstance(digest, str) or not isinstance(added, int):
        return None
    return Record(digest, known.get("published") is True, added)


def read_record(path: Path) -> str | None:
    """The digest of `path` as it was last found, or None when it was not, or the file has changed since."""
    record = record_of(path)
    return record.sha256 if record is not None else None


def _noted(path: Path) -> dict[str, object]:
    """What is written beside `path`, whether or not it has changed since; empty where nothing is."""
    try:
        data: Any = json.loads(record_file(path).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return cast("dict[str, object]", data) if isinstance(data, dict) else {}


def write_record(path: Path, sha256: str, *, published: bool = False) -> None:
    """Remember a digest. Where the folder is read-only it is not remembered, and found again next time.

    A digest that was a published one stays so when it is found again, also in a file that was touched.
    """
    with contextlib.suppress(OSError):
        before, noted, stat = record_of(path), _noted(path), path.stat()
        same = before is not None and before.sha256 == sha256
        known = noted.get("sha256") == sha256 and noted.get("published") is True
        data = {
            "size": stat.st_size,
            "mtime_ns": stat.st_mtime_ns,
            "sha256": sha256,
            "published": published or known,
            "added_ns": before.added_ns if before is not None and same else time.time_ns(),
        }
        write_whole(record_file(path), json.dumps(data))


def write_whole(path: Path, text: str) -> None:
    """Write a small file so that whoever reads it, and a crash, sees all of the old text or of the new one.

    Raises `OSError`.
    """
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.new")
    try:
        with temporary.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)

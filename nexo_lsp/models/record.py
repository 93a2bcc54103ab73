"""What the digest of a file was found to be, remembered beside it for as long as the file stays the same."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any, cast


def record_file(path: Path) -> Path:
    """Where the record of `path` lies."""
    return path.with_name(path.name + ".checked")


def read_record(path: Path) -> str | None:
    """The digest of `path` as it was last found, or None when it was not, or the file has changed since."""
    try:
        stat = path.stat()
        data: Any = json.loads(record_file(path).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(data, dict):
        return None
    known = cast("dict[str, object]", data)
    if known.get("size") != stat.st_size or known.get("mtime_ns") != stat.st_mtime_ns:
        return None
    digest = known.get("sha256")
    return digest if isinstance(digest, str) else None


def write_record(path: Path, sha256: str) -> None:
    """Remember a digest. Where the folder is read-only it is not remembered, and found again next time."""
    with contextlib.suppress(OSError):
        stat = path.stat()
        data = {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": sha256}
        record_file(path).write_text(json.dumps(data), "utf-8")

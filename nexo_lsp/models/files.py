"""What all who handle model files share, without any library."""

from __future__ import annotations

from pathlib import Path

CHUNK = 1 << 18
"""Bytes moved at once: small enough that cancelling is felt at once, large enough to cost nothing."""


def size_of(path: Path) -> int:
    """How many bytes `path` has; 0 where there is no file."""
    try:
        return path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return 0

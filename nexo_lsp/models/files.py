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


def within(path: Path, folder: Path) -> Path | None:
    """`path` as it is called in `folder`, however it is spelled; None if it lies elsewhere.

    A link in the folder is itself, not what it points at.
    """
    try:
        ours = folder.resolve()
        if path.parent.resolve() == ours:
            return folder / path.name
        real = path.resolve()
    except (OSError, RuntimeError):
        # A circle of links leads to no model.
        return None
    return folder / real.name if real.parent == ours else None

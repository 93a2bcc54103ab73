"""A file that appears under its name when it is complete and found good, and else not at all."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import filelock

from nexo_lsp.errors import ModelError, UsageError


@dataclass
class NewFile:
    """A file in the making."""

    target: Path
    partial: Path
    """Where it is written; the same disk as `target`."""
    force: bool

    def place(self) -> None:
        """Give it its name, for good. Raises `UsageError` if something has that name, `ModelError`."""
        require_free(self.target, force=self.force)
        try:
            self.partial.replace(self.target)
            if os.name == "posix":
                # The new name is itself data of the folder; other systems do not let a folder be opened.
                folder = os.open(self.target.parent, os.O_RDONLY)
                try:
                    os.fsync(folder)
                finally:
                    os.close(folder)
        except OSError as error:
            raise ModelError(
                f"{self.target} cannot be written ({error.strerror}); is an engine using it?"
            ) from error


def require_free(target: Path, *, force: bool) -> None:
    """Raises `UsageError` if there is a `target` already that may not be replaced."""
    if target.exists() and not force:
        raise UsageError(f"{target} is there already; --force replaces it, --out names another place.")


@contextmanager
def new_file(target: Path, *, force: bool) -> Generator[NewFile, None, None]:
    """A file to be written as `partial` and then placed; whatever is not placed is removed.

    Raises `UsageError` if there is a `target` and not `force`, `ModelError` if the folder cannot be written
    or another process is writing the same file.
    """
    require_free(target, force=force)
    lock = target.with_name(f"{target.name}.lock")
    made = NewFile(target, target.with_name(f"{target.name}.partial"), force)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(lock, timeout=0):
            try:
                # What a process that was killed has left.
                made.partial.unlink(missing_ok=True)
                yield made
            finally:
                for file in (made.partial, lock):
                    with suppress(OSError):
                        file.unlink(missing_ok=True)
    except filelock.Timeout as error:
        raise ModelError(
            f"Another process is writing {target}; wait for it, or name another place."
        ) from error
    except OSError as error:
        raise ModelError(
            f"{target} cannot be written ({error.strerror or error}); choose another place with --out."
        ) from error

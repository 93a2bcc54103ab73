"""Who uses a model file now, in this process or another, and when each was last used.

Whoever has a model loaded holds an OS lock on a file of its own in `leases/`. The lock ends with its process,
however that ends, so a lease of the dead is told from one of the living without trusting process ids. The
time of the last use is that of a small file beside the model: the access time that a disk keeps is off or
rough on most machines, and the model's own time says whether its digest is still known.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
from collections.abc import Generator
from pathlib import Path

import filelock

from nexo_lsp.errors import ModelError, ModelMissing
from nexo_lsp.models.files import within
from nexo_lsp.models.versions import Versions

log = logging.getLogger("nexo_lsp.models")

_FOLDER = "leases"
_END = ".lease"
_LOOKED_AT_S = 5


def used_file(path: Path) -> Path:
    """The file whose time is that of the last use of `path`."""
    return path.with_name(path.name + ".used")


class Leases:
    """The uses of the models of one folder."""

    def __init__(self, folder: Path, versions: Versions) -> None:
        self._models = folder
        self._folder = folder / _FOLDER
        self._versions = versions

    def used(self, path: Path) -> None:
        """Note that a model is used now. Where that cannot be noted, it is not."""
        ours = within(path, self._models)
        if ours is not None:
            with contextlib.suppress(OSError):
                used_file(ours).touch()

    def last_use(self, path: Path) -> float:
        """When `path` was last used or came here, in seconds since the epoch; 0 for what is not there."""
        times = [0.0]
        for file in (path, used_file(path)):
            with contextlib.suppress(OSError):
                times.append(file.stat().st_mtime)
        return max(times)

    @contextlib.contextmanager
    def hold(self, path: Path) -> Generator[None, None, None]:
        """While this is open nobody removes `path`. Several may hold the same file.

        A file outside the models folder needs no lease: nothing there is ever removed. In a folder that
        cannot be written none can be had, and nothing removed. Raises `ModelMissing` when the file is gone.
        """
        ours = within(path, self._models)
        if ours is None:
            yield
            return
        lock = self._taken(ours)
        self.used(ours)
        try:
            yield
        finally:
            self.used(ours)
            if lock is not None:
                lock.release()
                with contextlib.suppress(OSError):
                    Path(lock.lock_file).unlink(missing_ok=True)

    def is_held(self, path: Path, *, clear: bool = False) -> bool:
        """Whether anybody uses `path` now.

        Only whoever holds the gate of the folder may rely on the answer, and may `clear` away the leases of
        processes that have died.
        """
        held = False
        for file in self._folder.glob(f"*{_END}"):
            # `NAME.gguf.1234-0123abcd.lease`: other models' names may begin with the same letters.
            if file.name.removesuffix(_END).rpartition(".")[0] == path.name and _is_alive(file, clear=clear):
                held = True
        return held

    def dead(self) -> tuple[Path, ...]:
        """What processes that have died left of their leases."""
        return tuple(file for file in self._folder.glob(f"*{_END}") if not _is_alive(file))

    def is_alive(self, file: Path) -> bool:
        """Whether `file` is a lease that somebody holds."""
        return file.suffix == _END and _is_alive(file)

    def _taken(self, path: Path) -> filelock.BaseFileLock | None:
        name = f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}{_END}"
        # Somebody who looks at the new lease holds it for a moment.
        # An engine lets go of a model in another thread than the one that took it.
        lock = filelock.FileLock(self._folder / name, timeout=_LOOKED_AT_S, thread_local=False)
        try:
            with self._versions.gate():
                if not path.is_file():
                    raise ModelMissing(f"{path} is not there any more.")
                self._folder.mkdir(exist_ok=True)
                lock.acquire()
        except ModelMissing:
            raise
        except (ModelError, OSError) as error:
            log.info("%s is used without a lease: %s", path, error)
            return None
        return lock


def _is_alive(file: Path, *, clear: bool = False) -> bool:
    lock = filelock.FileLock(file, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        return True
    except OSError as error:
        # What cannot be looked at may be in use.
        log.debug("the lease %s cannot be looked at: %s", file, error)
        return file.exists()
    try:
        if clear:
            file.unlink(missing_ok=True)
    except OSError:
        pass
    finally:
        lock.release()
    return False

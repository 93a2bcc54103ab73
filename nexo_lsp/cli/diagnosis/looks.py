"""What the doctor asks of the machine beside its profile; each can be replaced, as tests and pictures do."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nexo_lsp.engines.llama.asking import Probe, probe

_IMPORT_TIMEOUT_S = 120.0


def _system() -> str:
    return f"{platform.system()} {platform.release()}"


def _python() -> str:
    return f"{platform.python_implementation()} {platform.python_version()} ({sys.executable})"


def import_failure(module: str) -> str:
    """Why `module` cannot be imported, tried elsewhere: a library that crashes takes its process along.

    Empty if it can.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-c", f"import {module}"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_IMPORT_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode == 0:
        return ""
    return (done.stderr.strip().splitlines() or [f"it crashed (exit code {done.returncode})"])[-1]


def writable(folder: Path) -> bool:
    """Whether something can be put into `folder`, which may have to be made first."""
    place = existing(folder)
    return place is not None and place.is_dir() and os.access(place, os.W_OK)


def disk_free(folder: Path) -> int | None:
    """The bytes that are free where `folder` is, or would be made; None where that is not known."""
    place = existing(folder)
    try:
        return shutil.disk_usage(place).free if place is not None else None
    except OSError:
        return None


def existing(folder: Path) -> Path | None:
    """The innermost part of a path that is there."""
    try:
        return next((place for place in (folder, *folder.parents) if place.exists()), None)
    except OSError:
        return None


@dataclass(frozen=True, slots=True)
class Looks:
    """`Looks()` looks at this machine."""

    system: Callable[[], str] = _system
    """The operating system and its version, for people."""
    python: Callable[[], str] = _python
    ask: Probe = probe
    """Asks llama.cpp, in a process of its own, what it would do."""
    import_failure: Callable[[str], str] = import_failure
    writable: Callable[[Path], bool] = writable
    disk_free: Callable[[Path], int | None] = disk_free

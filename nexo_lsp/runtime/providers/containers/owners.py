"""Whose a container is, written on it as labels, so that what a dead owner left behind can be told."""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

MARK = "nexo-lsp"
"""The label that all of ours have; its value is what the thing is."""
_PID, _STARTED = f"{MARK}.owner.pid", f"{MARK}.owner.started"
_HOST, _USER = f"{MARK}.owner.host", f"{MARK}.owner.user"
_CREATED = f"{MARK}.created"
_MODEL, _DIGEST = f"{MARK}.model", f"{MARK}.model.sha256"

_SAME_START_S = 5.0
"""The start of a process is computed from the clock, which may have been set since. A number is not given to
another process within so short a time."""


@dataclass(frozen=True, slots=True)
class Owner:
    """A process of one user on one machine."""

    pid: int
    started: float
    """Seconds since the epoch: tells two processes with the same number apart."""
    host: str
    user: str

    @staticmethod
    def this() -> Owner:
        """This process."""
        return Owner(os.getpid(), psutil.Process().create_time(), _host(), _user())

    def alive(self) -> bool:
        """Whether the process still runs. Only to be asked of one on this machine."""
        try:
            return abs(psutil.Process(self.pid).create_time() - self.started) <= _SAME_START_S
        except psutil.NoSuchProcess:
            return False
        except psutil.Error:
            # There, and not to be looked at.
            return True


def labels(owner: Owner, model: str, digest: str | None) -> dict[str, str]:
    """What is written on a container and on its network."""
    return {
        MARK: "engine",
        _PID: str(owner.pid),
        _STARTED: f"{owner.started:.2f}",
        _HOST: owner.host,
        _USER: owner.user,
        _CREATED: f"{time.time():.0f}",
        _MODEL: model,
        **({_DIGEST: digest} if digest else {}),
    }


def is_orphan(written: Mapping[str, str], me: Owner) -> bool:
    """Whether the owner that the labels name is dead, as far as `me` can know that.

    Processes of other machines, containers and users may not be visible from here: theirs are left alone.
    """
    try:
        owner = Owner(int(written[_PID]), float(written[_STARTED]), written[_HOST], written[_USER])
    except (KeyError, ValueError):
        return False
    return (owner.host, owner.user) == (me.host, me.user) and not owner.alive()


def _host() -> str:
    """Where process numbers mean the same: a machine, or a container (a namespace of processes) on it.

    Hashed, as `machine-id(5)` wants it: the number itself is not to be shown around.
    """
    parts = [MARK, platform.node()]
    with contextlib.suppress(OSError):
        parts.append(Path("/etc/machine-id").read_text("ascii").strip())
    with contextlib.suppress(OSError):
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _user() -> str:
    return str(os.getuid()) if hasattr(os, "getuid") else getpass.getuser()

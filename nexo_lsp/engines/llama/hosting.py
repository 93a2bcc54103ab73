"""What every process that hosts a worker does first, whether it serves one parent or many clients."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from contextlib import suppress
from typing import BinaryIO

_M_MMAP_THRESHOLD = -3
_MAPPED_BYTES = 2**20


def ignore_interrupts() -> None:
    """Ctrl-C in a terminal reaches the whole group; the server decides what ends when."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def return_memory() -> None:
    """Let large blocks go back to the system when they are freed, where the allocator is glibc's.

    Evaluated prompts are saved as blocks of megabytes that come and go. glibc maps such blocks apart, but
    after the first one that is freed it takes all smaller ones from its heap (`mallopt(3)`,
    M_MMAP_THRESHOLD), where holes between them stay. A threshold that is set stays where it is.
    """
    if sys.platform == "linux":
        # Other C libraries have no such function, and no need of it.
        with suppress(AttributeError):
            ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)


def claim_stdout() -> BinaryIO:
    """Keep the real stdout for ourselves, and let whatever prints to descriptor 1 reach stderr instead."""
    sys.stdout.flush()
    private = os.dup(1)
    os.dup2(2, 1)
    if sys.platform == "win32":
        import msvcrt

        msvcrt.setmode(private, os.O_BINARY)
        msvcrt.setmode(0, os.O_BINARY)
    return os.fdopen(private, "wb")

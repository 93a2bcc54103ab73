"""What every process that hosts a worker does first, whether it serves one parent or many clients."""

from __future__ import annotations

import os
import signal
import sys
from typing import BinaryIO


def ignore_interrupts() -> None:
    """Ctrl-C in a terminal reaches the whole group; the server decides what ends when."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


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

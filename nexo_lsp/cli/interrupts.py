"""Ctrl-C, for work that ends in its own good order."""

from __future__ import annotations

import concurrent.futures
import contextlib
import signal
import threading
from collections.abc import Callable, Generator
from types import FrameType
from typing import TypeVar

T = TypeVar("T")


def interruptible(work: Callable[[threading.Event], T]) -> T:
    """Run `work` in a thread, so that Ctrl-C reaches us at once and `work` ends in its own good order."""
    cancel = threading.Event()
    with _ctrl_c_sets(cancel), concurrent.futures.ThreadPoolExecutor(1) as pool:
        future = pool.submit(work, cancel)
        # On Windows only a wait that ends by itself lets Ctrl-C through.
        while not future.done():
            concurrent.futures.wait([future], timeout=0.1)
        return future.result()


@contextlib.contextmanager
def _ctrl_c_sets(cancel: threading.Event) -> Generator[None, None, None]:
    """Let Ctrl-C set `cancel`. An exception could come anywhere, also where a thread is just being started.

    A second Ctrl-C is the ordinary one, for the case that nobody heeds the first.
    """

    def stop(_signal: int, _frame: FrameType | None) -> None:
        if cancel.is_set():
            raise KeyboardInterrupt
        cancel.set()

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before or signal.default_int_handler)

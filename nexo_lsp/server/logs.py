"""The server's log: a rotating file and stderr, written by a thread of its own so that no handler waits."""

from __future__ import annotations

import logging
import logging.handlers
import queue
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from nexo_lsp.folders import folders

_LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR")
_BYTES: Final = 2_000_000
_FORMAT: Final = "%(asctime)s %(levelname)-7s %(process)d %(name)s: %(message)s"


class ServerLog:
    """The handlers behind one process's log. `file` is where it goes, None if no file can be written."""

    def __init__(self, file: Path | None, listener: logging.handlers.QueueListener) -> None:
        self.file = file
        self._listener = listener

    def close(self) -> None:
        """Write what is waiting, and end the thread."""
        self._listener.stop()


def start(environ: Mapping[str, str]) -> ServerLog:
    """Start logging at the level that `NEXO_LOG` names.

    Unset, the file gets INFO and stderr (which editors show as errors) gets WARNING.
    """
    word = environ.get("NEXO_LOG", "").strip().upper()
    level = word if word in _LEVELS else "INFO"
    stderr = logging.StreamHandler(sys.stderr)
    stderr.setLevel(level if word in _LEVELS else "WARNING")
    handlers: list[logging.Handler] = [stderr]
    file = folders(environ).logs / "server.log"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handlers.append(
            logging.handlers.RotatingFileHandler(file, maxBytes=_BYTES, backupCount=3, encoding="utf-8")
        )
    except OSError as error:
        print(f"nexo-lsp: no log file, {error}", file=sys.stderr)
        file = None
    for handler in handlers:
        handler.setFormatter(logging.Formatter(_FORMAT))
    waiting: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    listener = logging.handlers.QueueListener(waiting, *handlers, respect_handler_level=True)
    root = logging.getLogger()
    root.handlers[:] = [logging.handlers.QueueHandler(waiting)]
    root.setLevel(level)
    # pygls logs whole messages, that is, the user's code, at INFO.
    logging.getLogger("pygls").setLevel(logging.WARNING)
    for noisy in ("httpx", "httpcore", "huggingface_hub", "urllib3", "websockets", "filelock", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    listener.start()
    return ServerLog(file, listener)

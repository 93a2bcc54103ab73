"""A local connection between two processes of one user: a Unix socket, or a named pipe on Windows.

Frames of bytes go both ways. Nobody gets in without the token, which only the user can read; both sides prove
that they have it, so that neither talks to a stranger who took the other's place.
"""

from __future__ import annotations

import hmac
import os
import secrets
import socket
import sys
import tempfile
import threading
from contextlib import suppress
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

FRAME_LIMIT = 16 * 1024 * 1024
"""A longer frame ends the connection."""

# The system's limit is 104 bytes on macOS and 108 on Linux, with the zero at the end.
_PATH_LIMIT = 100
_NONCE_BYTES = 32
_TEMP_PREFIX = "nexo-lsp-"


class ChannelError(Exception):
    """The other side is there, and is not to be talked to; the text says why, for the log."""


class Channel:
    """One end of a connection. One thread may send while another receives."""

    def __init__(self, connection: Connection[Any, Any]) -> None:
        self._connection = connection
        self._closing = threading.Lock()

    def send(self, frame: bytes) -> None:
        """Send a frame; waits while the other side does not read. Raises `OSError` when it is gone."""
        self._connection.send_bytes(frame)

    def receive(self, timeout_s: float | None = None) -> bytes:
        """The next frame. Raises `EOFError` when the other side is gone, `TimeoutError`."""
        try:
            if timeout_s is not None and not self._connection.poll(timeout_s):
                raise TimeoutError("the other side says nothing")
            return self._connection.recv_bytes(FRAME_LIMIT)
        except TimeoutError:
            raise
        except OSError as error:
            raise EOFError(str(error)) from error

    def sever(self) -> None:
        """End the connection for both sides; from any thread, also while others send and receive."""
        with self._closing, suppress(OSError):
            if sys.platform == "win32":
                self._connection.close()
            else:
                # Closing the descriptor would wake nobody, and its number could be given to another file.
                with socket.socket(fileno=os.dup(self._connection.fileno())) as same:
                    same.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Let go of it; only when no thread uses it any more."""
        with self._closing, suppress(OSError):
            self._connection.close()

    def prove(self, token: bytes, timeout_s: float) -> None:
        """Prove to the listening side that we know `token`, and have it prove the same.

        Raises `ChannelError`, also when it says nothing for `timeout_s` seconds, and `EOFError` when it hangs
        up: it is gone, or does not take us in.
        """
        try:
            theirs = self.receive(timeout_s)
            mine = secrets.token_bytes(_NONCE_BYTES)
            self.send(_proof(token, b"client", theirs) + mine)
            answer = self.receive(timeout_s)
        except TimeoutError as error:
            raise ChannelError(str(error)) from error
        except OSError as error:
            raise EOFError(str(error)) from error
        if not hmac.compare_digest(answer, _proof(token, b"server", mine)):
            raise ChannelError("it does not know the token")

    def demand(self, token: bytes, timeout_s: float) -> None:
        """The listening side of `prove`. Raises `ChannelError`."""
        mine = secrets.token_bytes(_NONCE_BYTES)
        try:
            self.send(mine)
            answer = self.receive(timeout_s)
            expected = _proof(token, b"client", mine)
            if not hmac.compare_digest(answer[: len(expected)], expected):
                raise ChannelError("the client does not know the token")
            self.send(_proof(token, b"server", answer[len(expected) :]))
        except (EOFError, OSError) as error:
            raise ChannelError(f"the client does not answer ({error})") from error


def _proof(token: bytes, role: bytes, nonce: bytes) -> bytes:
    # With its role in it, an answer cannot be sent back to the one who asked.
    return hmac.digest(token, role + b":" + nonce, "sha256")


class Door:
    """Where connections come in."""

    def __init__(self, folder: Path) -> None:
        """Listen, in `folder` (which must be the user's alone) if that can be. Raises `OSError`."""
        self._made: Path | None = None
        self._listener = self._listen(folder)
        self.address = str(self._listener.address)
        """What `connect` wants."""

    def accept(self) -> Channel:
        """The next connection, of a client that has proved nothing yet. Raises `OSError`."""
        return Channel(self._listener.accept())

    def close(self) -> None:
        """Take no more connections, and leave nothing behind on the disk."""
        with suppress(OSError):
            self._listener.close()
        if self._made is not None:
            with suppress(OSError):
                self._made.rmdir()

    def _listen(self, folder: Path) -> Listener:
        if sys.platform == "win32":
            return Listener(family="AF_PIPE", backlog=16)
        try:
            return _unix_listener(folder)
        except OSError:
            # The path is too long, or its file system has no sockets (a network drive).
            self._made = Path(tempfile.mkdtemp(prefix=_TEMP_PREFIX))
            return _unix_listener(self._made)


def _unix_listener(folder: Path) -> Listener:
    path = str(folder / f"{secrets.token_hex(6)}.sock")
    if len(os.fsencode(path)) > _PATH_LIMIT:
        raise OSError(f"{path} is too long for a socket")
    return Listener(path, "AF_UNIX", backlog=16)


def connect(address: str) -> Channel:
    """Connect to a `Door`. Raises `OSError` when nobody listens there."""
    return Channel(Client(address, "AF_PIPE" if sys.platform == "win32" else "AF_UNIX"))


def sweep(address: str) -> None:
    """Take away what a door that was never closed left at `address`."""
    if sys.platform == "win32":
        return
    path = Path(address)
    with suppress(OSError):
        path.unlink(missing_ok=True)
        if path.parent.name.startswith(_TEMP_PREFIX):
            path.parent.rmdir()

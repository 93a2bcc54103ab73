"""The frames of LSP's base protocol: a header block, an empty line, a JSON body."""

from __future__ import annotations

import json
from typing import Any, Final

# No editor sends more than this in one message; a larger length is garbage or an attack on our memory.
_MAX_BODY: Final = 512 * 1024 * 1024
_MAX_HEADER: Final = 64 * 1024


class FrameError(Exception):
    """The stream is not LSP; nothing after this point can be understood."""


class FrameParser:
    """Turns the bytes of a stream, in chunks of any size, into message bodies."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._wanted: int | None = None

    def feed(self, data: bytes) -> list[bytes]:
        """Take the next bytes; gives the bodies that are complete now. Raises `FrameError`."""
        self._buffer += data
        bodies: list[bytes] = []
        while (body := self._next()) is not None:
            bodies.append(body)
        return bodies

    def _next(self) -> bytes | None:
        if self._wanted is None:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                if len(self._buffer) > _MAX_HEADER:
                    raise FrameError("a message header without an end; this is not a language client")
                return None
            self._wanted = _content_length(bytes(self._buffer[:end]))
            del self._buffer[: end + 4]
        if len(self._buffer) < self._wanted:
            return None
        body = bytes(self._buffer[: self._wanted])
        del self._buffer[: self._wanted]
        self._wanted = None
        return body


def _content_length(header: bytes) -> int:
    for line in header.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length" and value.strip().isdigit():
            length = int(value)
            if length <= _MAX_BODY:
                return length
            raise FrameError(f"a message of {length} bytes is more than any client sends")
    raise FrameError("a message header without Content-Length; this is not a language client")


def frame(message: dict[str, Any]) -> bytes:
    """A message with its header, ready for the stream."""
    body = json.dumps(message, separators=(",", ":")).encode()
    return b"Content-Length: %d\r\n\r\n" % len(body) + body

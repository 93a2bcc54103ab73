"""Server-sent events: from bytes, cut anywhere, to the data of each event."""

from __future__ import annotations

import re

_LINE_END = re.compile(rb"\r\n|\n|\r")

MOST = 4 << 20
"""Bytes of one event at the most: nothing that a model says is as long."""


class TooLong(Exception):
    """An event without an end."""


class Events:
    """Collects a stream of `text/event-stream`. Lines that are no event (comments, garbage) are left out."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> list[str]:
        """The data of the events that are complete with `chunk`. Raises `TooLong`."""
        # A carriage return at the end may be the first half of a line's end.
        pending = self._rest + chunk
        held = pending.endswith(b"\r")
        lines = _LINE_END.split(pending[:-1] if held else pending)
        self._rest = lines.pop() + (b"\r" if held else b"")
        if len(self._rest) > MOST:
            raise TooLong
        return self._read(lines)

    def finish(self) -> list[str]:
        """What is left when the stream ends: some servers leave out the last empty line."""
        lines, self._rest = [self._rest.rstrip(b"\r"), b""], b""
        return self._read(lines)

    def _read(self, lines: list[bytes]) -> list[str]:
        done: list[str] = []
        for line in lines:
            if not line:
                if self._data:
                    # Whole lines only, so no character is ever cut in two.
                    done.append(b"\n".join(self._data).decode("utf-8", "replace"))
                self._data, self._size = [], 0
                continue
            name, _, value = line.partition(b":")
            if name == b"data":
                self._data.append(value.removeprefix(b" "))
                self._size += len(value)
                if self._size > MOST:
                    raise TooLong
        return done

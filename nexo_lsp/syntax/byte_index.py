"""Between code points and the bytes of UTF-8, which is what tree-sitter counts."""

from __future__ import annotations

import re
from bisect import bisect_right
from functools import cached_property

# One checkpoint for so many code points: a lookup decodes at most this much.
_STEP = 512
_SURROGATE = re.compile("[\ud800-\udfff]")


def encode(text: str) -> bytes:
    """`text` in UTF-8. A lone surrogate, which has none, becomes U+FFFD: as long (three bytes), and valid."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return _SURROGATE.sub("\ufffd", text).encode()


class ByteIndex:
    """Translates offsets of one text, in constant time for ASCII and by checkpoints for everything else."""

    def __init__(self, text: str, data: bytes) -> None:
        self._text = text
        self.data = data
        self._ascii = len(data) == len(text)

    @cached_property
    def _checkpoints(self) -> list[int]:
        """The byte at which each `_STEP`th code point starts."""
        points = [0]
        for start in range(0, len(self._text), _STEP):
            points.append(points[-1] + len(encode(self._text[start : start + _STEP])))
        return points

    def byte(self, offset: int) -> int:
        """The byte at which the code point at `offset` starts (clamped to the text)."""
        offset = max(0, min(offset, len(self._text)))
        if self._ascii:
            return offset
        step = offset // _STEP
        return self._checkpoints[step] + len(encode(self._text[step * _STEP : offset]))

    def offset(self, byte: int) -> int:
        """The code point that starts at `byte`; a byte inside one means its start."""
        if self._ascii:
            return byte
        step = bisect_right(self._checkpoints, byte) - 1
        start = self._checkpoints[step]
        within = len(self.data[start:byte].decode(errors="ignore"))
        return min(step * _STEP + within, len(self._text))

"""Taking the beginning of an answer away again where a server repeats what the answer was to begin with."""

from __future__ import annotations

import re
from typing import Protocol

from nexo_lsp.engines.llama.text_stream import TextStream

FENCE = "```"

_CHATTER = 200
"""Characters of talk before the code that an answer may begin with."""

_SHORTEST = 8
"""Characters: a shorter end of the prefix may well be what really follows it."""


class Cutter(Protocol):
    """Takes something away from the beginning of an answer."""

    def feed(self, text: str) -> str:
        """Add a part of the answer; returns what is now sure to be kept."""
        ...

    def finish(self) -> str:
        """What was held back, at the answer's end."""
        ...


class Unchanged:
    """Takes nothing away."""

    def feed(self, text: str) -> str:
        """All of it."""
        return text

    def finish(self) -> str:
        """Nothing is ever held back."""
        return ""


class Unfenced:
    """For JSON: models put it into a block of Markdown."""

    def __init__(self) -> None:
        self._held = ""
        self._decided = False
        self._inside: TextStream | None = None

    def feed(self, text: str) -> str:
        """Add a part of the answer; returns what is now sure to be inside the block."""
        if self._decided:
            return self._keep(text)
        self._held += text
        begun = self._held.lstrip()
        if begun.startswith(FENCE):
            if "\n" not in begun:
                return ""
            self._inside = TextStream((f"\n{FENCE}",))
            begun = begun.partition("\n")[2]
        elif FENCE.startswith(begun[: len(FENCE)]):
            return ""
        self._held, self._decided = "", True
        return self._keep(begun)

    def finish(self) -> str:
        """What was held back."""
        held, self._held = self._held, ""
        return held + (self._inside.finish() if self._inside is not None else "")

    def _keep(self, text: str) -> str:
        return text if self._inside is None else self._inside.feed(text.encode())


class Verbatim:
    """For servers that go on with a begun answer: some send that beginning too, as it was given."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._held = ""
        self._decided = not prefix

    def feed(self, text: str) -> str:
        """Add a part of the answer; returns what is now sure to follow the prefix."""
        if self._decided:
            return text
        self._held += text
        if self._prefix.startswith(self._held) and self._held != self._prefix:
            return ""
        return self.finish().removeprefix(self._prefix)

    def finish(self) -> str:
        """What was held back."""
        held, self._held, self._decided = self._held, "", True
        return held


class Loose:
    """For servers that were asked in words: a model may repeat the beginning with other spaces, leave out the
    fence, or say something first."""

    def __init__(self, prefix: str) -> None:
        starts = [0, *(match.end() for match in re.finditer("\n", prefix))]
        self._tails = [tail for at in starts if len(tail := _dense(prefix[at:])) >= _SHORTEST or at == 0]
        self._fenced = prefix.lstrip().startswith(FENCE)
        self._most = len(prefix) + _CHATTER
        self._ends_line = prefix.endswith("\n")
        self._held = ""
        self._decided = not prefix.strip()

    def feed(self, text: str) -> str:
        """Add a part of the answer; returns what is now sure to follow the prefix."""
        if self._decided:
            return text
        self._held += text
        if (end := self._end()) is not None:
            rest, self._held, self._decided = self._held[end:], "", True
            return rest
        return "" if self._open() else self.finish()

    def finish(self) -> str:
        """What was held back."""
        held, self._held, self._decided = self._held, "", True
        return held

    def _end(self) -> int | None:
        """Where the repeated prefix ends in what is held, if it is all there."""
        for start in self._starts():
            for tail in self._tails:
                end = _match(self._held, start, tail)
                if end is None:
                    continue
                if not self._ends_line:
                    return end
                # The line's end belongs to the prefix; spaces before it say nothing.
                line = re.compile(r"[ \t]*\n").match(self._held, end)
                if line is not None:
                    return line.end()
        return None

    def _open(self) -> bool:
        """Whether what comes next may still make it a repetition."""
        if len(self._held) > self._most:
            return False
        if self._fenced and FENCE not in self._held and len(self._held) < _CHATTER:
            return True
        dense = [_dense(self._held[start:]) for start in self._starts()]
        return any(tail.startswith(said) or said == tail for said in dense for tail in self._tails)

    def _starts(self) -> list[int]:
        """Where the repetition may begin: at the answer, at its block of code, and inside that, since
        the block may be said to be of another language."""
        fence = self._held.find(FENCE)
        if fence < 0:
            return [0]
        line = self._held.find("\n", fence)
        return [0, fence] if line < 0 else [0, fence, line + 1]


def _dense(text: str) -> str:
    return "".join(text.split())


def _match(text: str, start: int, dense: str) -> int | None:
    """Where `dense` ends in `text` from `start` on, spaces aside."""
    at = 0
    for index in range(start, len(text)):
        if at == len(dense):
            return index
        if text[index].isspace():
            continue
        if text[index] != dense[at]:
            return None
        at += 1
    return len(text) if at == len(dense) else None

"""Windows on a document that stay where they are while somebody types.

What an engine has evaluated is worth keeping only up to the first difference. A window that always begins
the same number of lines above the cursor moves with each new line, and everything is evaluated again. So a
window is kept until it is far too large or far too small, and found again by its text when lines above it
come or go.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from dataclasses import dataclass

from nexo_lsp.context.budget import estimate_tokens, first_lines, last_lines

# By how much of its text a window is found again, in code points: a few lines, so that an edit further down
# does not hide it, and more than what repeats in a file by chance.
_HEAD = 200
# The places of one document between which somebody goes back and forth.
_KEPT = 4


@dataclass(frozen=True, slots=True)
class Window:
    """The text before and behind a cursor that a prompt holds. Neither begins or ends inside a line."""

    prefix: str
    suffix: str


class Windows:
    """The windows on one document, by what was shown of it before.

    A new window takes at most the two budgets (in estimated tokens). A kept one has between half and one and
    a half times that, or all the text there is. The cursor's own line is always kept whole.
    """

    def __init__(self, before_tokens: int, after_tokens: int) -> None:
        self._before = before_tokens
        self._after = after_tokens
        # Less than the least window, so that it is found again where its end is deleted.
        self._head = min(_HEAD, 3 * before_tokens // 4)
        self._kept: deque[Window] = deque(maxlen=_KEPT)

    def around(self, before: str, after: str) -> Window:
        """The window at a cursor between `before` and `after`, whose lines end with line feeds.

        Both may be cut off far from the cursor.
        """
        window = Window(self._prefix(before), self._suffix(after))
        # The place that is worked at replaces its own older self.
        for older in [old for old in self._kept if self._head_of(old) == self._head_of(window)]:
            self._kept.remove(older)
        self._kept.appendleft(window)
        return window

    def _head_of(self, window: Window) -> str:
        return window.prefix[: self._head]

    def _prefix(self, before: str) -> str:
        most = self._before + self._before // 2
        # A token has three characters of ASCII at the most, by the estimate.
        near = before[max(0, len(before) - 3 * most - 1) :]
        starts_early = len(near) == len(before)
        for old in self._kept:
            found = _found_again(old.prefix, self._head, near, starts_early=starts_early)
            if found is None:
                continue
            whole = starts_early and len(found) == len(before)
            if estimate_tokens(found) <= most and (whole or estimate_tokens(found) >= self._before // 2):
                return found
        return last_lines(before, self._before)

    def _suffix(self, after: str) -> str:
        most = self._after + self._after // 2
        for old in self._kept:
            suffix = old.suffix
            whole = len(suffix) == len(after)
            if not after.startswith(suffix) or not (whole or after[len(suffix)] == "\n"):
                continue
            if self._after // 2 <= estimate_tokens(suffix) <= most:
                return suffix
        return first_lines(after, self._after)


def _found_again(prefix: str, length: int, near: str, *, starts_early: bool) -> str | None:
    """What is in `near` from where `prefix` begins, by so much of its text.

    If that stands in several places: from the one that is most alike, and of those the last.
    """
    head = prefix[:length]
    best: tuple[int, str] | None = None
    at = near.rfind(head) if head else -1
    while at >= 0:
        if near[at - 1] == "\n" if at else starts_early:
            here = near[at:]
            alike = _alike(prefix, here)
            if best is None or alike > best[0]:
                best = alike, here
        at = near.rfind(head, 0, at + len(head) - 1) if at else -1
    return best[1] if best is not None else None


def _alike(one: str, other: str) -> int:
    """How much of both, from the start, is the same."""
    longest = min(len(one), len(other))
    return bisect_left(range(longest), True, key=lambda end: one[: end + 1] != other[: end + 1])

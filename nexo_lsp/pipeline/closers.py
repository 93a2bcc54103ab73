"""Brackets and quotes that stand behind the cursor because the editor put them there.

They come and go with single keystrokes. Behind the cursor they begin what the model is shown first, so that
each of them would have everything evaluated again. So they are not shown; the model closes what is open, and
its answer ends where it does.
"""

from __future__ import annotations

_PAIRS = {"(": ")", "[": "]", "{": "}"}
_QUOTES = "\"'`"
_SEPARATORS = ";,:"
_CLOSERS = frozenset([*_PAIRS.values(), *_QUOTES, *_SEPARATORS])


def closers_behind(after: str) -> str:
    """The rest of the cursor's line if it is nothing but closing brackets, quotes and separators, else ""."""
    rest = after.partition("\n")[0]
    return rest if rest.strip() and _CLOSERS.issuperset(rest.replace(" ", "")) else ""


def until_closed(text: str, closers: str) -> str:
    """The part of generated `text`, which is to stand before `closers`, that comes before what they close."""
    first = closers.strip()[:1]
    if first in _QUOTES:
        return text[: _end_of_string(text, 0, first)] if first else text
    open_brackets: list[str] = []
    at = 0
    while at < len(text):
        char = text[at]
        if char in _QUOTES:
            at = _end_of_string(text, at + 1, char)
        elif char in _PAIRS:
            open_brackets.append(_PAIRS[char])
        elif char in _PAIRS.values():
            if not open_brackets:
                return text[:at]
            open_brackets.pop()
        at += 1
    return text.removesuffix(first) if first in _SEPARATORS else text


def _end_of_string(text: str, at: int, quote: str) -> int:
    """Where the string that `at` lies in is closed by `quote`; the end of `text` if it is not."""
    while at < len(text) and text[at] != quote:
        at += 2 if text[at] == "\\" else 1
    return min(at, len(text))

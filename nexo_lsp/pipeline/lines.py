"""Places by lines, for languages whose code is not understood: what belongs together, what is a comment."""

from __future__ import annotations

import re

from nexo_lsp.documents import Snapshot
from nexo_lsp.text import Span

# A stretch of lines without a gap is taken for one thought, up to so many lines on each side of its middle.
_REACH = 20

# What begins a comment, by LSP's language ids; the languages of `syntax/languages.py` bring their own.
_MARKERS: dict[str, tuple[str, ...]] = {
    "#": (
        "awk", "cmake", "coffeescript", "crystal", "dockerfile", "elixir", "fish", "gdscript", "graphql",
        "julia", "makefile", "nim", "nix", "perl", "perl6", "powershell", "python", "r", "raku", "tcl",
        "terraform", "toml", "yaml", "zsh",
    ),
    "//": (
        "d", "dart", "fsharp", "glsl", "groovy", "hlsl", "jsonc", "less", "objective-c", "objective-cpp",
        "odin", "proto", "proto3", "scala", "scss", "solidity", "swift", "systemverilog", "v", "verilog",
        "wgsl", "zig",
    ),
    "--": ("ada", "applescript", "elm", "haskell", "idris", "purescript", "sql", "plsql", "vhdl"),
    ";": ("asm", "clojure", "commonlisp", "emacs-lisp", "ini", "lisp", "nasm", "racket", "scheme"),
    "%": ("erlang", "latex", "matlab", "octave", "prolog", "tex"),
    "!": ("fortran", "fortran-modern", "FortranFreeForm"),
    "'": ("vb",),
}  # fmt: skip
_MARKER_OF = {language: marker for marker, languages in _MARKERS.items() for language in languages}
_NO_LINE_COMMENTS = frozenset({"css", "html", "json", "markdown", "plaintext", "xml"})
# Of a language that nobody told us of, a marker counts only with a word behind it: `--x` may be code.
_ANY_COMMENT = re.compile(r"(?:#+|//+|--|;+|%+)\s+\w")


def whole_lines(snapshot: Snapshot, span: Span) -> Span | None:
    """What the lines of `span` hold, from the first line's code to the last one's end; None if only blanks.

    A selection that ends where a line begins does not reach into that line.
    """
    lines = snapshot.lines
    first, last = lines.line_of(span.start), lines.line_of(span.end)
    if last > first and span.end == lines.start_of(last):
        last -= 1
    return _content(snapshot, first, last)


def lines_around(snapshot: Snapshot, span: Span) -> Span | None:
    """The lines around `span` without a blank one between them; None on a blank line."""
    lines = snapshot.lines
    first, last = lines.line_of(span.start), lines.line_of(span.end)
    if not lines.line(first).strip():
        return None
    top, bottom = max(0, first - _REACH), min(lines.line_count - 1, last + _REACH)
    while first > top and lines.line(first - 1).strip():
        first -= 1
    while last < bottom and lines.line(last + 1).strip():
        last += 1
    return _content(snapshot, first, last)


def comment_at(snapshot: Snapshot, offset: int) -> Span | None:
    """The comment that the line of `offset` is, with the comment lines next to it; None if it is none."""
    lines = snapshot.lines
    first = last = lines.line_of(offset)
    if not _is_comment(snapshot, first):
        return None
    while first > 0 and _is_comment(snapshot, first - 1):
        first -= 1
    while last + 1 < lines.line_count and _is_comment(snapshot, last + 1):
        last += 1
    return _content(snapshot, first, last)


def _content(snapshot: Snapshot, first: int, last: int) -> Span | None:
    start, end = snapshot.lines.start_of(first), snapshot.lines.end_of(last)
    text = snapshot.text[start:end]
    if not text.strip():
        return None
    return Span(start + len(text) - len(text.lstrip()), start + len(text.rstrip()))


def _is_comment(snapshot: Snapshot, line: int) -> bool:
    text = snapshot.lines.line(line).strip()
    if not text or (line == 0 and text.startswith("#!")):
        return False
    language = snapshot.language
    marker = language.line_comment if language is not None else ""
    marker = marker or _MARKER_OF.get(snapshot.language_id, "")
    if marker:
        return text.startswith(marker)
    return snapshot.language_id not in _NO_LINE_COMMENTS and _ANY_COMMENT.match(text) is not None

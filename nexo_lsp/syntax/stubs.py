"""Whether a body does nothing yet."""

from __future__ import annotations

import re
from collections.abc import Sequence

from nexo_lsp.syntax.comments import says_todo

_NOT_YET = (
    r"""["'`][^"'`]*\b(?:todo|not\s+(?:yet\s+)?implemented|unimplemented|implement\s+me)\b[^"'`]*["'`]"""
)
_ERROR_NAME = r"\\?(?:[\w.:\\]*?(?:NotImplemented|UnsupportedOperation)\w*)"

# One statement that stands for a body still to be written, as the languages have it.
_STATEMENT = re.compile(
    rf"""(?ix)
    pass | \.\.\. | : | true
    | raise \s+ {_ERROR_NAME} (?: \s* \(.*\) | \s*,.* )?
    | raise \s+ {_NOT_YET}
    | throw \s+ (?:new \s+)? {_ERROR_NAME} \s* [({{] .* [)}}]
    | throw \s+ (?:new \s+)? [\w.:\\]+ \s* [({{] \s* {_NOT_YET} \s* [)}}]
    | (?:return \s+)? (?:std::|core::)? (?:todo|unimplemented) \s* ! \s* [(\[{{] .* [)\]}}]
    | (?:return \s+)? (?:panic|error|fatal|die|exit|log\.fatal|println) !? \s* \(? \s* {_NOT_YET} .* \)?
    | (?:return \s+)? TODO \s* \(.*\)
    | assert \s* \( \s* (?:0|false) \s* && \s* {_NOT_YET} \s* \)
    """,
    re.DOTALL,
)
# `true` and `:` do nothing in a shell only, `...` and `pass` mean something in Python only.
_ONLY_IN = {":": "shellscript", "true": "shellscript", "pass": "python", "...": "python"}
# A longer body is real work, and is not worth a regular expression.
_LONGEST = 400


def is_stub(language_id: str, code: str, comments: Sequence[str]) -> bool:
    """Whether a body is still to be written; `code` comes without comments, docstring and brackets.

    A body of comments alone is a stub if one of them says so: "nothing to do" is a decision.
    """
    code = code.strip()
    if len(code) > _LONGEST:
        return False
    if not code:
        return not comments or any(says_todo(comment) for comment in comments)
    statements = [part.strip() for part in re.split(r";[ \t]*(?:\n|$)|\n", code) if part.strip()]
    if len(statements) > 1 and all(_is_nothing(language_id, part) for part in statements):
        return True
    return _is_nothing(language_id, code.rstrip("; \t\r\n"))


def _is_nothing(language_id: str, statement: str) -> bool:
    if _STATEMENT.fullmatch(statement) is None:
        return False
    return _ONLY_IN.get(statement, language_id) == language_id

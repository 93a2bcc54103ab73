from __future__ import annotations

from typing import Any

from rich.cells import cell_len

from nexo_lsp.cli.finding_block import finding_block
from nexo_lsp.cli.terminal import visible
from nexo_lsp.pipeline.findings import Finding
from nexo_lsp.text import LineIndex, Span


def finding(text: str, quote: str, **changes: Any) -> Finding:
    start = text.index(quote)
    values: dict[str, Any] = {
        "id": "f1",
        "span": Span(start, start + len(quote)),
        "quote": quote,
        "category": "bug",
        "severity": "warning",
        "message": "It is wrong.",
        "suggestion": None,
        "symbol": "f",
    }
    return Finding(**{**values, **changes})


def block(text: str, quote: str, width: int | None = None, **changes: Any) -> list[str]:
    lines = finding_block(finding(text, quote, **changes), LineIndex(text), "a.py", width)
    return [line.plain for line in lines]


def test_headline_place_code_and_help() -> None:
    text = "def f(x):\n    return x / 0\n"
    assert block(text, "x / 0", suggestion="Do not\n  divide.") == [
        "warning[bug]: It is wrong.",
        " --> a.py:2:12 in f",
        "  |",
        "2 |     return x / 0",
        "  |            ^^^^^",
        "  = help: Do not divide.",
        "",
    ]


def carets_under(lines: list[str]) -> str:
    """What stands above the carets, by terminal cells."""
    at = next(index for index, line in enumerate(lines) if "^" in line)
    start = cell_len(lines[at][: lines[at].index("^")])
    count = lines[at].count("^")
    source, cells, out = lines[at - 1], 0, ""
    for index, char in enumerate(source):
        cells = cell_len(source[:index])
        if start <= cells < start + count:
            out += char
    return out


def test_wide_characters_and_emoji_keep_the_carets_in_place() -> None:
    for before in ("日本語 = ", "x👩‍👩‍👧y ", "e\u0301e\u0301 ", "\tif ", "🙂🙂 "):
        text = f"{before}call(変数) # end"
        assert carets_under(block(text, "call(変数)")) == "call(変数)"


def test_a_quote_of_several_lines_is_marked_without_its_indentation() -> None:
    text = "def f():\n    try:\n        g()\n    except:\n        pass\n"
    lines = block(text, "    try:\n        g()\n    except:\n        pass")
    assert lines[3:11] == [
        "2 |     try:",
        "  |     ^^^^",
        "3 |         g()",
        "  |         ^^^",
        "4 |     except:",
        "  |     ^^^^^^^",
        "5 |         pass",
        "  |         ^^^^",
    ]


def test_long_quotes_are_cut() -> None:
    text = "\n".join(f"line{number}" for number in range(1, 21))
    lines = block(text, text)
    assert lines[-2].strip() == "| … 14 more lines"


def test_long_lines_are_cut_around_the_quote() -> None:
    text = "a" * 300 + " BAD " + "b" * 300
    lines = block(text, "BAD", width=60)
    assert carets_under(lines) == "BAD"
    assert max(cell_len(line) for line in lines[2:]) <= 60
    assert lines[3].count("…") == 2
    wide = block("日" * 200 + " BAD " + "本" * 200, "BAD", width=40)
    assert carets_under(wide) == "BAD"
    assert max(cell_len(line) for line in wide[2:]) <= 40
    # To a pipe nothing is cut.
    assert any(text in line for line in block(text, "BAD"))


def test_an_empty_span_gets_one_caret() -> None:
    lines = block("x = 1\n", "", message="m")
    assert lines[4] == "  | ^"


def test_a_quote_that_ends_with_its_line_end_stays_on_its_line() -> None:
    lines = block("x = 1\r\ny = 2\r\n", "x = 1\r\n")
    assert lines[3:5] == ["1 | x = 1", "  | ^^^^^"]


def test_control_characters_never_reach_the_terminal() -> None:
    text = "x = '\x1b[2J\u202e' # \x07"
    lines = block(
        text, "'\x1b[2J\u202e'", message="Clear\x1b]0;title\x07", suggestion="\x9b31m", symbol="\x1b[A"
    )
    assert not any(char in "".join(lines) for char in "\x1b\x07\x9b\u202e")
    assert "<U+001B>[2J<U+202E>" in lines[3]
    assert visible("a\tb\nc\r") == "a\tb\nc<U+000D>"

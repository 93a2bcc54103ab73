from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nexo_lsp.context.budget import estimate_tokens, first_lines, last_lines
from nexo_lsp.context.window import Window, Windows

BEFORE, AFTER = 60, 24
FILE = "".join(f"    line_{n} = value_{n * n}\n" for n in range(400))
LINES = st.lists(st.sampled_from(["", "a = 1", "    b = 2", "😀 é", "x" * 90, "}", "a = 1"]), max_size=60)
KEYS = st.lists(st.sampled_from(["a", "é", "😀", "\n", "        b = 3\n", "<", ">", "<<", "v", "^", "cut"]))


def check(window: Window, before: str, after: str) -> None:
    """What holds for every window."""
    assert before.endswith(window.prefix)
    assert after.startswith(window.suffix)
    start = len(before) - len(window.prefix)
    assert start == 0 or before[start - 1] == "\n", "it begins with a line"
    assert after[len(window.suffix) :][:1] in {"", "\n"}, "it ends with a line"
    own_line = before[before.rfind("\n") + 1 :]
    rest_of_line = after.partition("\n")[0]
    assert estimate_tokens(window.prefix) <= max(BEFORE * 3 // 2, estimate_tokens(own_line))
    assert estimate_tokens(window.suffix) <= max(AFTER * 3 // 2, estimate_tokens(rest_of_line))
    small = len(last_lines(before, BEFORE)), len(first_lines(after, AFTER))
    if estimate_tokens(window.prefix) < BEFORE // 2:
        assert len(window.prefix) >= small[0]
    if estimate_tokens(window.suffix) < AFTER // 2:
        assert len(window.suffix) >= small[1]


@given(LINES, st.integers(0, 2_000), KEYS)
def test_a_window_is_the_text_at_the_cursor_in_whole_lines_within_its_bounds(
    lines: list[str], at: int, keys: list[str]
) -> None:
    text = "\n".join(lines)
    at = min(at, len(text))
    before, after = text[:at], text[at:]
    windows = Windows(BEFORE, AFTER)
    for key in keys:
        if key == "<":
            before = before[:-1]
        elif key == "<<":
            before = before[:-40]
        elif key == ">":
            after = after[1:]
        elif key == "v":
            line, end, after = after.partition("\n")
            before += line + end
        elif key == "^":
            before, end, line = before.rpartition("\n")
            after = end + line + after
        elif key == "cut":
            before = before[len(before) // 4 :]
        else:
            before += key
        check(windows.around(before, after), before, after)


def starts(windows: Windows, before: str, after: str, typed: str, step: int = 1) -> tuple[set[int], set[str]]:
    """Where the prefixes begin, and what the suffixes are, while `typed` is typed."""
    begins, suffixes = set[int](), set[str]()
    for end in range(0, len(typed) + 1, step):
        window = windows.around(before + typed[:end], after)
        begins.add(len(before) + end - len(window.prefix))
        suffixes.add(window.suffix)
    return begins, suffixes


def test_typing_seldom_moves_a_window() -> None:
    half = FILE.index("    line_200")
    before, after = FILE[:half], FILE[half:]
    typed = "        typed = 12\n" * 40
    begins, suffixes = starts(Windows(BEFORE, AFTER), before, after, typed)
    assert len(begins) <= 2 + estimate_tokens(typed) // (BEFORE // 2)
    assert len(suffixes) == 1
    first = {len(last_lines(before + typed[:end], BEFORE)) - end for end in range(len(typed))}
    assert len(begins) < len(first) / 2, "a window of a fixed size moves far more often"


def test_typing_in_front_of_the_rest_of_a_line_keeps_the_suffix() -> None:
    half = FILE.index("value_", len(FILE) // 2)
    begins, suffixes = starts(Windows(BEFORE, AFTER), FILE[:half], FILE[half:], "call(a)[0] + ")
    assert len(begins) == len(suffixes) == 1


def test_small_deletions_and_steps_down_keep_the_beginning() -> None:
    windows = Windows(BEFORE, AFTER)
    half = FILE.index("    line_200")
    start = half - len(windows.around(FILE[:half], FILE[half:]).prefix)
    down = FILE.index("    line_202")
    assert down - len(windows.around(FILE[:down], FILE[down:]).prefix) == start
    up = FILE.index("    line_199")
    assert up - len(windows.around(FILE[:up], FILE[up:]).prefix) == start


def test_lines_that_come_and_go_above_do_not_matter() -> None:
    windows = Windows(BEFORE, AFTER)
    half = FILE.index("    line_200")
    window = windows.around(FILE[:half], FILE[half:])
    assert windows.around("import os\n" * 7 + FILE[:half], FILE[half:]) == window
    assert windows.around(FILE[300:half], FILE[half:] + "more\n") == window


def test_what_is_typed_over_changes_the_suffix_once() -> None:
    windows = Windows(BEFORE, AFTER)
    half, over = FILE.index("    line_200"), FILE.index("    line_201")
    windows.around(FILE[:half], FILE[half:])
    _, suffixes = starts(windows, FILE[:half], FILE[over:], "    line_200 = other\n")
    assert suffixes == {first_lines(FILE[over:], AFTER)}


def test_going_back_finds_the_window_that_was_there() -> None:
    windows = Windows(BEFORE, AFTER)
    here, there = FILE.index("    line_200"), FILE.index("    line_300")
    windows.around(FILE[:here], FILE[here:])
    typed = FILE[:here] + "    a = 1\n"
    window = windows.around(typed, FILE[here:])
    windows.around(FILE[:there], FILE[there:])
    assert windows.around(typed, FILE[here:]) == window


def test_among_equal_lines_the_window_stays() -> None:
    same = "    same = 1\n" * 300
    begins, _ = starts(Windows(BEFORE, AFTER), same, same, "    more = 2\n", 1)
    assert len(begins) == 1


def test_a_huge_text_is_only_looked_at_near_the_cursor() -> None:
    class Watched(str):
        looked: int = 0

        def __getitem__(self, key: int | slice) -> str:  # type: ignore[override]
            part = super().__getitem__(key)
            Watched.looked = max(Watched.looked, len(part))
            return part

    windows = Windows(BEFORE, AFTER)
    huge = Watched("x = 1\n" * 200_000)
    for _ in range(3):
        windows.around(huge, huge)
    assert Watched.looked < 10 * BEFORE * 3

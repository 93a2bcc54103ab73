"""What an action must never do to code: drop, shift or touch what it was not about."""

from __future__ import annotations

import pytest

from nexo_lsp.documents import Snapshot
from nexo_lsp.errors import BadAnswer, StaleDocument
from nexo_lsp.pipeline.actions import ActionKind, Explanation, Offer, Proposal, offers
from nexo_lsp.text import Span, apply_edits
from tests.unit.pipeline.conftest import Desk, MakeDesk


def offers_at(snapshot: Snapshot, start: str, end: str = "") -> dict[ActionKind, Offer]:
    at = snapshot.text.index(start)
    to = snapshot.text.index(end) + len(end) if end else at
    return {offer.kind: offer for offer in offers(snapshot, Span(at, to), ())}


async def carry_out(desk: Desk, snapshot: Snapshot, offer: Offer) -> Proposal:
    result = await desk.app.actions.run(snapshot.uri, snapshot.version, offer, lambda _progress: None)
    assert isinstance(result, Proposal)
    return result


async def test_an_answer_that_was_cut_off_is_not_taken_for_the_whole(make_desk: MakeDesk) -> None:
    lines = "".join("    t += 1\n" for _ in range(590))
    desk = await make_desk({"answer": lines})
    source = f"def run(t):\n{lines}    return t\n"
    snapshot = desk.open(source)
    with pytest.raises(BadAnswer, match="cut off"):
        await carry_out(desk, snapshot, offers_at(snapshot, "t += 1")[ActionKind.OPTIMIZE])


async def test_strings_at_the_margin_keep_their_place(make_desk: MakeDesk) -> None:
    source = (
        'class A:\n    def f(self):\n        x = """\nat the margin\n"""\n        y = 1\n        return x\n'
    )
    answer = '        x = """\nat the margin\n"""\n        return x'
    desk = await make_desk({"answer": answer})
    snapshot = desk.open(source)
    proposal = await carry_out(desk, snapshot, offers_at(snapshot, "y = 1")[ActionKind.OPTIMIZE])
    assert apply_edits(source, proposal.edits) == source.replace("        y = 1\n", "")


@pytest.mark.parametrize("char", ["\u2028", "\x0c", "\x85"])
async def test_what_only_python_takes_for_a_line_end_is_left_alone(make_desk: MakeDesk, char: str) -> None:
    source = f"class A:\n    def f(self):\n        y = 1\n        return 'a{char}b'\n"
    desk = await make_desk({"answer": f"    return 'a{char}b'"})
    snapshot = desk.open(source)
    proposal = await carry_out(desk, snapshot, offers_at(snapshot, "y = 1")[ActionKind.OPTIMIZE])
    assert apply_edits(source, proposal.edits) == source.replace("        y = 1\n", "")


async def test_white_space_at_the_end_of_other_lines_is_not_touched(make_desk: MakeDesk) -> None:
    source = 'def f(a):\n    s = """x   \n"""\n    b = a + a   \n    return b, s\n'
    desk = await make_desk({"answer": '    s = """x\n"""\n    b = 2 * a\n    return b, s'})
    snapshot = desk.open(source)
    proposal = await carry_out(desk, snapshot, offers_at(snapshot, "b = a")[ActionKind.OPTIMIZE])
    assert apply_edits(source, proposal.edits) == source.replace("b = a + a   ", "b = 2 * a")


async def test_a_doc_comment_that_is_edited_meanwhile_makes_the_answer_stale(make_desk: MakeDesk) -> None:
    source = "/** Old words. */\nfunction f(a) {\n  return a;\n}\n"
    desk = await make_desk({"answer": " Gives a back.\n"})
    snapshot = desk.open(source, "a.js", "javascript")
    proposal = await carry_out(desk, snapshot, offers_at(snapshot, "return a")[ActionKind.DOCUMENT])
    desk.edit(snapshot.uri, "Old words", "Newer and longer words")
    with pytest.raises(StaleDocument):
        desk.app.actions.settle(proposal)


# Languages without a grammar.

PERL = (
    "my $n = 3;\n\n# print the squares\n# of all numbers\n\nmy $sum = 0;\nfor my $i (1..$n) { $sum += $i; }\n"
)


@pytest.mark.parametrize(
    ("name", "language", "comment", "code"),
    [
        ("a.pl", "perl", "# print it", "my $x = 1;"),
        ("a.r", "r", "# print it", "x <- 1"),
        ("a.zig", "zig", "// print it", "const x = 1;"),
        ("a.sql", "sql", "-- print it", "SELECT 1;"),
        ("a.clj", "clojure", ";; print it", "(def x 1)"),
        ("a.erl", "erlang", "% print it", "x() -> 1."),
        ("a.unheard", "unheard", "# print it", "x = 1"),
    ],
)
async def test_a_comment_is_followed_in_any_language(
    make_desk: MakeDesk, name: str, language: str, comment: str, code: str
) -> None:
    desk = await make_desk({"match": f"{comment}\n<FILL>", "answer": "print(x)\n"})
    source = f"{code}\n{comment}\n"
    snapshot = desk.open(source, name, language)
    proposal = await carry_out(desk, snapshot, offers_at(snapshot, comment)[ActionKind.GENERATE])
    assert apply_edits(source, proposal.edits) == f"{code}\n{comment}\nprint(x)\n"
    assert ActionKind.GENERATE not in offers_at(snapshot, code)


@pytest.mark.parametrize(
    ("language", "line"),
    [("perl", "#!/usr/bin/perl"), ("perl", "%hash = ();"), ("unheard", "--x;"), ("css", "#id { top: 0 }")],
)
async def test_what_only_looks_like_a_comment_is_none(make_desk: MakeDesk, language: str, line: str) -> None:
    snapshot = (await make_desk()).open(f"{line}\nx\n", "a.x", language)
    assert ActionKind.GENERATE not in offers_at(snapshot, line)


async def test_comment_lines_that_belong_together_are_one_wish(make_desk: MakeDesk) -> None:
    snapshot = (await make_desk()).open(PERL, "a.pl", "perl")
    offer = offers_at(snapshot, "of all")[ActionKind.GENERATE]
    assert PERL[offer.span.start : offer.span.end] == "# print the squares\n# of all numbers"


async def test_the_lines_around_the_cursor_or_the_selection_are_explained(make_desk: MakeDesk) -> None:
    desk = await make_desk({"answer": "It sums."})
    snapshot = desk.open(PERL, "a.pl", "perl")
    lines = offers_at(snapshot, "my $sum")[ActionKind.EXPLAIN]
    assert PERL[lines.span.start : lines.span.end] == PERL[PERL.index("my $sum") :].rstrip("\n")
    result = await desk.app.actions.run(snapshot.uri, 1, lines, lambda _progress: None)
    assert isinstance(result, Explanation)
    assert "my $n = 3;" in desk.events()[0]["prompt"], "the lines around are shown too"
    chosen = offers_at(snapshot, "$sum = 0", "for")[ActionKind.EXPLAIN]
    assert chosen.title == "Explain the selected code"


async def test_a_selection_is_optimised_by_lines(make_desk: MakeDesk) -> None:
    desk = await make_desk({"match": "Rewrite", "answer": "my $sum = $n * ($n + 1) / 2;"})
    source = PERL.replace("\n", "\r\n")
    snapshot = desk.open(source, "a.pl", "perl")
    offer = offers_at(snapshot, "$sum = 0", "+= $i")[ActionKind.OPTIMIZE]
    assert ActionKind.OPTIMIZE not in offers_at(snapshot, "my $sum"), "nothing is selected"
    proposal = await carry_out(desk, snapshot, offer)
    after = apply_edits(source, proposal.edits)
    assert after == source[: source.index("my $sum")] + "my $sum = $n * ($n + 1) / 2;\r\n"


async def test_a_selection_outside_of_functions_is_optimised_and_must_parse(make_desk: MakeDesk) -> None:
    source = "names = []\nfor n in range(3):\n    names.append(n)\nprint(names)\n"
    desk = await make_desk({"answer": "names = list(range(3))"})
    snapshot = desk.open(source)
    offer = offers_at(snapshot, "names = []", "append(n)")[ActionKind.OPTIMIZE]
    proposal = await carry_out(desk, snapshot, offer)
    assert apply_edits(source, proposal.edits) == "names = list(range(3))\nprint(names)\n"


async def test_a_finding_is_fixed_in_any_language(make_desk: MakeDesk) -> None:
    finding = {
        "quote": "my $n = 3;",
        "message": "m",
        "category": "bug",
        "severity": "warning",
        "suggestion": "",
    }
    desk = await make_desk(
        {"match": "Problem in the line", "answer": "my $n = 4;"}, {"json": {"findings": [finding]}}
    )
    snapshot = desk.open(PERL, "a.pl", "perl")
    report = await desk.app.reviews.review(snapshot.uri)
    (found,) = report.findings
    fix = next(o for o in offers(snapshot, found.span, report.findings) if o.kind is ActionKind.FIX)
    proposal = await carry_out(desk, snapshot, fix)
    assert apply_edits(PERL, proposal.edits) == PERL.replace("= 3;", "= 4;")


@pytest.mark.parametrize(
    ("needle", "kind", "answer"),
    [
        ("return a", ActionKind.DOCUMENT, "Give a back."),
        ("return a", ActionKind.OPTIMIZE, "    return +a"),
        ("# double it", ActionKind.GENERATE, "b = 2 * a\n"),
    ],
)
async def test_the_preview_is_what_stands_there_afterwards(
    make_desk: MakeDesk, needle: str, kind: ActionKind, answer: str
) -> None:
    desk = await make_desk({"answer": answer})
    source = "# 🎉\r\ndef f(a):\r\n    return a\r\n\r\n\r\n# double it\r\n"
    snapshot = desk.open(source)
    proposal = await carry_out(desk, snapshot, offers_at(snapshot, needle)[kind])
    start, end = proposal.span
    assert source[:start] + proposal.text + source[end:] == apply_edits(source, proposal.edits)

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from nexo_lsp.documents import Snapshot
from nexo_lsp.errors import DisabledError, EngineCrashed
from nexo_lsp.pipeline.findings import Finding
from nexo_lsp.pipeline.units import review_units
from nexo_lsp.settings import Layer
from nexo_lsp.syntax.languages import language_for
from nexo_lsp.text import Change, PositionEncoding, Range
from tests.unit.pipeline.conftest import MakeDesk

SOURCE = """def mean(values):
    return sum(values) / len(values)


def head(path):
    f = open(path)
    return f.readline()
"""
Make = Callable[..., dict[str, str]]


def rules(finding: Make) -> list[dict[str, Any]]:
    mean = finding("return sum(values) / len(values)", "Division by zero.")
    head = finding("f = open(path)", "Never closed.", severity="error")
    return [
        {"match": r"def mean\(values\)(?!.*def head)", "json": {"findings": [mean]}},
        {"match": r"f = open\(path\)\n    return f.readline", "json": {"findings": [head]}},
    ]


def places(snapshot: Snapshot, findings: tuple[Finding, ...]) -> list[tuple[str, int]]:
    for item in findings:
        assert snapshot.text[item.span.start : item.span.end] == item.quote
    return [(item.quote, snapshot.position(item.span.start).line) for item in findings]


async def test_findings_stand_at_the_quoted_code(make_desk: MakeDesk, finding: Make) -> None:
    desk = await make_desk(*rules(finding))
    snapshot = desk.open(SOURCE)
    report = await desk.app.reviews.review(snapshot.uri)
    assert report.complete
    assert places(snapshot, report.findings) == [
        ("return sum(values) / len(values)", 1),
        ("f = open(path)", 5),
    ]
    assert [item.severity for item in report.findings] == ["warning", "warning"], (
        "an error is shown as a warning"
    )


async def test_the_user_may_raise_the_severity(make_desk: MakeDesk, finding: Make) -> None:
    desk = await make_desk(*rules(finding), NEXO_REVIEW_MAX_SEVERITY="error")
    report = await desk.app.reviews.review(desk.open(SOURCE).uri)
    assert [item.severity for item in report.findings] == ["warning", "error"]


async def test_findings_come_as_they_are_found(make_desk: MakeDesk, finding: Make) -> None:
    desk = await make_desk(*rules(finding))
    shown: list[int] = []
    desk.app.reviews.on_findings = lambda _snapshot, findings: shown.append(len(findings))
    await desk.app.reviews.review(desk.open(SOURCE).uri)
    assert shown == [1, 2]


async def test_a_finding_whose_quote_is_not_in_the_code_is_thrown_away(
    make_desk: MakeDesk, finding: Make
) -> None:
    desk = await make_desk({"json": {"findings": [finding("return total / 2")]}})
    report = await desk.app.reviews.review(desk.open(SOURCE).uri)
    assert report.findings == ()


async def test_an_answer_that_is_no_json_is_left_out(make_desk: MakeDesk) -> None:
    desk = await make_desk({"answer": '{"findings": [{"quote"'})
    report = await desk.app.reviews.review(desk.open(SOURCE).uri)
    assert report.findings == ()
    assert report.complete


async def test_the_same_code_is_asked_about_once(make_desk: MakeDesk, finding: Make) -> None:
    desk = await make_desk(*rules(finding))
    snapshot = desk.open(SOURCE)
    first = await desk.app.reviews.review(snapshot.uri)
    again = await desk.app.reviews.review(snapshot.uri)
    assert again.findings == first.findings
    assert len(desk.events()) == 2, "one request for each of the two functions"


async def test_answers_survive_a_restart(make_desk: MakeDesk, finding: Make) -> None:
    desk = await make_desk(*rules(finding))
    await desk.app.reviews.review(desk.open(SOURCE).uri)
    await desk.app.close()
    later = await make_desk(*rules(finding))
    report = await later.app.reviews.review(later.open(SOURCE).uri)
    assert len(report.findings) == 2
    assert len(later.events()) == 2, "both requests are those of the first run"


async def test_only_the_changed_function_is_asked_about_again(make_desk: MakeDesk, finding: Make) -> None:
    desk = await make_desk(*rules(finding))
    snapshot = desk.open(SOURCE)
    await desk.app.reviews.review(snapshot.uri)
    desk.edit(snapshot.uri, "f.readline()", "f.read()")
    report = await desk.app.reviews.review(snapshot.uri)
    assert [item.symbol for item in report.findings] == ["mean"], "the finding was not repeated"
    assert len(desk.events()) == 3


async def test_findings_move_with_edits_above_and_vanish_when_their_code_is_edited(
    make_desk: MakeDesk, finding: Make
) -> None:
    desk = await make_desk(*rules(finding))
    snapshot = desk.open(SOURCE)
    await desk.app.reviews.review(snapshot.uri)
    moved = desk.insert(snapshot.uri, 0, "# 🎉 a comment\n\n")
    assert places(moved, desk.app.reviews.findings(snapshot.uri)) == [
        ("return sum(values) / len(values)", 3),
        ("f = open(path)", 7),
    ]
    edited = desk.edit(snapshot.uri, "open(path)", "open(path, 'rb')")
    assert places(edited, desk.app.reviews.findings(snapshot.uri)) == [
        ("return sum(values) / len(values)", 3)
    ]


async def test_an_edit_above_during_the_review_moves_what_is_found(
    make_desk: MakeDesk, finding: Make
) -> None:
    slow = [{**rule, "delay_ms": 20, "pieces": 4} for rule in rules(finding)]
    desk = await make_desk(*slow)
    snapshot = desk.open(SOURCE)
    started = asyncio.Event()
    task = asyncio.create_task(
        desk.app.reviews.review(
            snapshot.uri, progress=lambda update: started.set() if update.tokens else None
        )
    )
    await started.wait()
    now = desk.insert(snapshot.uri, 0, "import os\n")
    report = await task
    assert places(now, report.findings) == [("return sum(values) / len(values)", 2), ("f = open(path)", 6)]
    assert not report.complete, "it was a review of the version before"


async def test_editing_the_function_at_work_cancels_the_engine(make_desk: MakeDesk, finding: Make) -> None:
    desk = await make_desk({"match": "def mean", "hang": True, "times": 1}, *rules(finding)[1:])
    snapshot = desk.open(SOURCE)
    working = asyncio.Event()

    def progress(update: object) -> None:
        working.set()

    task = asyncio.create_task(desk.app.reviews.review(snapshot.uri, progress=progress))
    await working.wait()
    await desk.asked()
    desk.edit(snapshot.uri, "sum(values)", "max(values)")
    report = await task
    assert [item.symbol for item in report.findings] == ["head"]
    assert not report.complete
    assert len(desk.events("cancel")) == 1


async def test_an_asker_who_leaves_does_not_stop_the_review(make_desk: MakeDesk, finding: Make) -> None:
    slow = [{**rule, "delay_ms": 10, "pieces": 4} for rule in rules(finding)]
    desk = await make_desk(*slow)
    snapshot = desk.open(SOURCE)
    first = asyncio.create_task(desk.app.reviews.review(snapshot.uri))
    second = asyncio.create_task(desk.app.reviews.review(snapshot.uri))
    await desk.asked()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert len((await second).findings) == 2
    assert desk.events("cancel") == []


@pytest.mark.parametrize("how", ["stop", "close"])
async def test_stopping_and_closing_end_the_engine_work(make_desk: MakeDesk, how: str) -> None:
    desk = await make_desk({"hang": True})
    snapshot = desk.open(SOURCE)
    task = asyncio.create_task(desk.app.reviews.review(snapshot.uri))
    await desk.asked()
    if how == "stop":
        desk.app.stop()
    else:
        desk.app.documents.close(snapshot.uri)
        desk.app.closed(snapshot)
    report = await task
    assert not report.complete
    await desk.idle()
    assert desk.events("finish") == []


async def test_closing_takes_the_findings_away(make_desk: MakeDesk, finding: Make) -> None:
    desk = await make_desk(*rules(finding))
    snapshot = desk.open(SOURCE)
    await desk.app.reviews.review(snapshot.uri)
    shown: list[tuple[Finding, ...]] = []
    desk.app.reviews.on_findings = lambda _snapshot, findings: shown.append(findings)
    desk.app.documents.close(snapshot.uri)
    desk.app.closed(snapshot)
    assert shown == [()]


async def test_a_dismissed_finding_never_comes_back(make_desk: MakeDesk, finding: Make) -> None:
    desk = await make_desk(*rules(finding))
    snapshot = desk.open(SOURCE)
    report = await desk.app.reviews.review(snapshot.uri)
    await desk.app.reviews.dismiss(snapshot.uri, report.findings[0].id)
    assert [item.symbol for item in desk.app.reviews.findings(snapshot.uri)] == ["head"]
    await desk.app.close()
    later = await make_desk(*rules(finding))
    elsewhere = later.open("import os\n\n\n" + SOURCE, "b.py")
    report = await later.app.reviews.review(elsewhere.uri)
    assert [item.symbol for item in report.findings] == ["head"]


async def test_a_crash_is_every_askers_error(make_desk: MakeDesk) -> None:
    desk = await make_desk({"crash": True})
    snapshot = desk.open(SOURCE)
    with pytest.raises(EngineCrashed):
        await desk.app.reviews.review(snapshot.uri)


@pytest.mark.parametrize(
    ("name", "environ"),
    [
        ("a.py", {"NEXO_ENABLE": "false"}),
        ("a.py", {"NEXO_DISABLED_LANGUAGES": "python"}),
        ("a.py", {"NEXO_DISABLED_GLOBS": "*.py"}),
        (".env", {}),
        ("id_rsa", {}),
    ],
)
async def test_what_may_not_be_shown_is_never_asked_about(
    make_desk: MakeDesk, name: str, environ: dict[str, str]
) -> None:
    desk = await make_desk(**environ)
    snapshot = desk.open(SOURCE, name)
    desk.app.set_workspace([snapshot.path.parent] if snapshot.path else [], trusted=False)
    with pytest.raises(DisabledError):
        await desk.app.reviews.review(snapshot.uri)
    assert desk.events() == []


async def test_switching_off_clears_the_findings(make_desk: MakeDesk, finding: Make) -> None:
    desk = await make_desk(*rules(finding))
    snapshot = desk.open(SOURCE)
    await desk.app.reviews.review(snapshot.uri)
    problems = desk.app.configure([Layer("test", {"enable": False})])
    assert problems == ()
    assert desk.app.reviews.findings(snapshot.uri) == ()


async def test_a_language_without_a_grammar_is_reviewed_by_lines(make_desk: MakeDesk, finding: Make) -> None:
    desk = await make_desk({"match": "divide", "json": {"findings": [finding("divide a by zero")]}})
    snapshot = desk.open("let a be 3\ndivide a by zero\n", "a.cobol", "cobol")
    report = await desk.app.reviews.review(snapshot.uri)
    assert places(snapshot, report.findings) == [("divide a by zero", 1)]


async def test_a_long_function_is_reviewed_in_parts(make_desk: MakeDesk, finding: Make) -> None:
    body = "".join(f"    value_{n} = compute_something({n})\n" for n in range(400))
    desk = await make_desk({"json": {"findings": [finding("value_399 = compute_something(399)")]}})
    snapshot = desk.open(f"def long():\n{body}")
    report = await desk.app.reviews.review(snapshot.uri)
    assert len(desk.events()) > 2
    assert places(snapshot, report.findings) == [("value_399 = compute_something(399)", 400)]


async def test_stubs_are_not_reviewed(make_desk: MakeDesk) -> None:
    desk = await make_desk()
    report = await desk.app.reviews.review(desk.open("def later():\n    pass\n").uri)
    assert report.complete
    assert desk.events() == []


async def test_a_finding_dismissed_while_the_review_goes_on_stays_away(
    make_desk: MakeDesk, finding: Make
) -> None:
    mean, head = rules(finding)
    desk = await make_desk(mean, {**head, "delay_ms": 20})
    snapshot = desk.open(SOURCE)
    shown = asyncio.Event()
    desk.app.reviews.on_findings = lambda _snapshot, _findings: shown.set()
    task = asyncio.create_task(desk.app.reviews.review(snapshot.uri))
    await shown.wait()
    (first,) = desk.app.reviews.findings(snapshot.uri)
    await desk.app.reviews.dismiss(snapshot.uri, first.id)
    assert [item.symbol for item in (await task).findings] == ["head"]


async def test_a_quote_is_found_at_the_line_that_it_is(make_desk: MakeDesk, finding: Make) -> None:
    desk = await make_desk({"json": {"findings": [finding("i = 1")]}})
    snapshot = desk.open("def f():\n    pi = 1.5\n    i = 1\n    return pi + i\n")
    report = await desk.app.reviews.review(snapshot.uri)
    assert places(snapshot, report.findings) == [("i = 1", 2)]


@pytest.mark.parametrize(("old", "new"), [("f = open", "# f = open"), ("open(path)", "open(path)  # fine")])
async def test_a_finding_goes_when_its_line_is_added_to(
    make_desk: MakeDesk, finding: Make, old: str, new: str
) -> None:
    desk = await make_desk(*rules(finding))
    snapshot = desk.open(SOURCE)
    await desk.app.reviews.review(snapshot.uri)
    at = snapshot.text.index(old) + (len(old) if new.startswith(old) else 0)
    for offset, char in enumerate(new.replace(old, "")):
        place = desk.app.documents.get(snapshot.uri).position(at + offset)
        now, edits = desk.app.documents.change(snapshot.uri, 2 + offset, [Change(Range(place, place), char)])
        desk.app.changed(now, edits)
    assert [item.symbol for item in desk.app.reviews.findings(snapshot.uri)] == ["mean"]


async def test_a_finding_stays_when_lines_are_added_beside_it(make_desk: MakeDesk, finding: Make) -> None:
    desk = await make_desk(*rules(finding))
    snapshot = desk.open(SOURCE)
    await desk.app.reviews.review(snapshot.uri)
    desk.insert(snapshot.uri, 5, "    print(1)\n")
    now = desk.insert(snapshot.uri, 7, "    print(2)\n")
    assert places(now, desk.app.reviews.findings(now.uri)) == [
        ("return sum(values) / len(values)", 1),
        ("f = open(path)", 6),
    ]


async def test_stopping_ends_what_an_overtaken_review_had_begun(make_desk: MakeDesk) -> None:
    desk = await make_desk({"hang": True})
    snapshot = desk.open("def area(n):\n    return scale(n)\n\n\ndef scale(n):\n    return n * 2\n")
    first = asyncio.create_task(desk.app.reviews.review(snapshot.uri))
    await desk.asked()
    # What `area` is shown with changes, so that its review is another question than the one at work.
    desk.edit(snapshot.uri, "def scale(n):", "def scale(n, by=2):")
    second = asyncio.create_task(desk.app.reviews.review(snapshot.uri))
    await desk.asked(3)
    desk.app.stop()
    assert not (await first).complete
    assert not (await second).complete
    await desk.idle()
    assert desk.events("finish") == []


async def test_known_answers_leave_the_loop_its_turns(make_desk: MakeDesk) -> None:
    desk = await make_desk({"json": {"findings": []}})
    snapshot = desk.open("".join(f"def f{n}(a):\n    return a + {n}\n\n\n" for n in range(40)))
    await desk.app.reviews.review(snapshot.uri)
    turns = 0
    task = asyncio.create_task(desk.app.reviews.review(snapshot.uri))
    while not task.done():
        turns += 1
        await asyncio.sleep(0)
    assert (await task).complete
    assert turns >= 40
    assert len(desk.events()) == 40


async def test_known_findings_are_shown_in_one_go(make_desk: MakeDesk, finding: Make) -> None:
    desk = await make_desk(*rules(finding))
    uri = desk.open(SOURCE).uri
    await desk.app.reviews.review(uri)
    desk.app.documents.close(uri)
    desk.app.closed(desk.app.documents.open(uri, "python", 1, SOURCE))
    shown: list[int] = []
    desk.app.reviews.on_findings = lambda _snapshot, findings: shown.append(len(findings))
    await desk.app.reviews.review(uri)
    assert shown == [2]


async def test_a_line_of_minified_code_is_left_out(make_desk: MakeDesk) -> None:
    desk = await make_desk()
    snapshot = desk.open("x=1;" * 20_000 + "\nlet y = 2\n", "a.min", "unheard")
    assert (await desk.app.reviews.review(snapshot.uri)).complete
    assert [len(event["prompt"]) < 20_000 for event in desk.events()] == [True]


def test_a_language_with_a_tree_and_no_outline_goes_by_lines() -> None:
    python = language_for("python")
    assert python is not None
    packed = replace(python, id="packed", query="")
    snapshot = Snapshot("file:///a", "packed", packed, 1, SOURCE, PositionEncoding.UTF16)
    assert [unit.symbol for unit in review_units(snapshot)] == [""]


@pytest.mark.parametrize(
    ("name", "language"), [("a.md", "markdown"), ("a.json", "json"), ("a.txt", "plaintext")]
)
async def test_prose_and_data_are_not_reviewed(make_desk: MakeDesk, name: str, language: str) -> None:
    desk = await make_desk()
    report = await desk.app.reviews.review(desk.open('{"a": 1}\nSome words.\n', name, language).uri)
    assert report.complete
    assert desk.events() == []

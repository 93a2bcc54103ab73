from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from nexo_lsp.documents import Snapshot
from nexo_lsp.errors import BadAnswer, EditRefused, StaleDocument, UsageError
from nexo_lsp.generation import Piece, Request
from nexo_lsp.pipeline.actions import ActionKind, ActionProgress, Explanation, Offer, Proposal, offers
from nexo_lsp.pipeline.code import behind_head
from nexo_lsp.text import Span, apply_edits
from tests.unit.pipeline.conftest import Desk, MakeDesk

STUB = '''class Box:
    def __init__(self, width, height):
        self.width = width
        self.height = height

    def area(self):
        """How much it covers."""
        pass


def twice(number):
    return number + number
'''


def offered(snapshot: Snapshot, needle: str) -> dict[ActionKind, Offer]:
    at = snapshot.text.index(needle)
    return {offer.kind: offer for offer in offers(snapshot, Span(at, at), ())}


async def run(desk: Desk, snapshot: Snapshot, needle: str, kind: ActionKind) -> Proposal:
    offer = offered(snapshot, needle)[kind]
    result = await desk.app.actions.run(snapshot.uri, snapshot.version, offer, lambda _progress: None)
    assert isinstance(result, Proposal)
    return result


async def test_a_stub_offers_an_implementation(make_desk: MakeDesk) -> None:
    snapshot = (await make_desk()).open(STUB)
    assert set(offered(snapshot, "pass")) == {ActionKind.GENERATE, ActionKind.DOCUMENT, ActionKind.EXPLAIN}
    assert offered(snapshot, "pass")[ActionKind.GENERATE].title == "Implement 'area'"


async def test_a_function_offers_everything_but_an_implementation(make_desk: MakeDesk) -> None:
    snapshot = (await make_desk()).open(STUB)
    assert set(offered(snapshot, "number + number")) == {
        ActionKind.OPTIMIZE,
        ActionKind.DOCUMENT,
        ActionKind.TESTS,
        ActionKind.EXPLAIN,
    }


async def test_listing_asks_no_model(make_desk: MakeDesk) -> None:
    desk = await make_desk()
    offered(desk.open(STUB), "pass")
    assert desk.events() == []


async def test_a_stub_is_implemented_in_place(make_desk: MakeDesk) -> None:
    desk = await make_desk({"answer": "    return self.width * self.height   \n```\nThat is all."})
    snapshot = desk.open(STUB)
    proposal = await run(desk, snapshot, "pass", ActionKind.GENERATE)
    after = apply_edits(snapshot.text, proposal.edits)
    assert after == STUB.replace("        pass\n", "        return self.width * self.height\n")
    assert "self.height = height" in desk.events()[0]["prompt"], "the constructor was shown"


async def test_what_follows_the_function_is_cut_off(make_desk: MakeDesk) -> None:
    desk = await make_desk({"answer": "    return 2 * number\n\n\nprint(twice(4))\n"})
    snapshot = desk.open("def twice(number):\n    pass\n")
    proposal = await run(desk, snapshot, "pass", ActionKind.GENERATE)
    assert apply_edits(snapshot.text, proposal.edits) == "def twice(number):\n    return 2 * number\n"


async def test_only_changed_lines_are_edited_and_line_ends_are_kept(make_desk: MakeDesk) -> None:
    desk = await make_desk(
        {"answer": "    total = 0\n    for n in ns:\n        total += n\n    return total"}
    )
    source = "# 🎉\r\ndef add(ns):\r\n    total = 0\r\n    for n in ns:\r\n        total = total + n\r\n    return total\r\n"
    snapshot = desk.open(source)
    proposal = await run(desk, snapshot, "total + n", ActionKind.OPTIMIZE)
    assert [edit.text for edit in proposal.edits] == ["        total += n\r\n"]
    assert apply_edits(source, proposal.edits) == source.replace("total = total + n", "total += n")


async def test_tabs_stay_tabs(make_desk: MakeDesk) -> None:
    desk = await make_desk({"answer": "\treturn b.w * b.h\n}"})
    source = 'package p\n\nfunc (b *Box) Area() int {\n\tpanic("not implemented")\n}\n'
    snapshot = desk.open(source, "a.go", "go")
    proposal = await run(desk, snapshot, "panic", ActionKind.GENERATE)
    after = apply_edits(source, proposal.edits)
    assert after == source.replace('panic("not implemented")', "return b.w * b.h")


async def test_code_that_does_not_parse_is_tried_again_and_then_refused(make_desk: MakeDesk) -> None:
    desk = await make_desk({"answer": "    return ((("})
    snapshot = desk.open(STUB)
    with pytest.raises(EditRefused):
        await run(desk, snapshot, "pass", ActionKind.GENERATE)
    assert len(desk.events()) == 3


async def test_a_second_try_is_enough(make_desk: MakeDesk) -> None:
    desk = await make_desk(
        {"answer": "    return (((", "times": 1}, {"answer": "    return self.width * self.height"}
    )
    proposal = await run(desk, desk.open(STUB), "pass", ActionKind.GENERATE)
    assert "self.width * self.height" in proposal.text


async def test_an_answer_that_is_still_a_stub_is_no_answer(make_desk: MakeDesk) -> None:
    desk = await make_desk({"answer": "    raise NotImplementedError"})
    with pytest.raises(BadAnswer):
        await run(desk, desk.open("def f(a):\n    pass\n"), "pass", ActionKind.GENERATE)


async def test_nothing_to_optimise_is_said(make_desk: MakeDesk) -> None:
    desk = await make_desk({"answer": "    return number + number"})
    with pytest.raises(BadAnswer, match="nothing to change"):
        await run(desk, desk.open(STUB), "number + number", ActionKind.OPTIMIZE)


async def test_the_comment_under_the_cursor_is_followed(make_desk: MakeDesk) -> None:
    desk = await make_desk({"match": "<FILL>", "answer": "names.sort()\n    return names\nprint(1)"})
    source = "def sort(names):\n    # sort the names and return them\n"
    snapshot = desk.open(source)
    proposal = await run(desk, snapshot, "# sort", ActionKind.GENERATE)
    assert apply_edits(source, proposal.edits) == source.rstrip() + "\n    names.sort()\n    return names\n"


DOCUMENTED = [
    ("python", "a.py", "def f(a):\n    return a\n", "Give a back.\n\n    Args:\n        a: what.\n    ",
     'def f(a):\n    """Give a back.\n\n    Args:\n        a: what.\n    """\n    return a\n'),
    ("python", "a.py", 'def f(a):\n    """Old."""\n    return a\n', "New.", 'def f(a):\n    """New."""\n    return a\n'),
    ("java", "A.java", "class A {\n    int f(int a) {\n        return a;\n    }\n}\n", "Gives a back.\n * @param a what\n ",
     "class A {\n    /**\n     * Gives a back.\n     * @param a what\n     */\n    int f(int a) {\n        return a;\n    }\n}\n"),
    ("rust", "a.rs", "fn f(a: u8) -> u8 {\n    a\n}\n", "Gives `a` back.\n/// Always.\nfn f(a: u8)",
     "/// Gives `a` back.\n/// Always.\nfn f(a: u8) -> u8 {\n    a\n}\n"),
    ("go", "a.go", "package p\n\nfunc F(a int) int {\n\treturn a\n}\n", "gives a back.\nfunc F(a int)",
     "package p\n\n// F gives a back.\nfunc F(a int) int {\n\treturn a\n}\n"),
    ("lua", "a.lua", "function f(a)\n  return a\nend\n", "Gives a back.\n", "--- Gives a back.\nfunction f(a)\n  return a\nend\n"),
]  # fmt: skip


@pytest.mark.parametrize(("language", "name", "source", "answer", "after"), DOCUMENTED)
async def test_documentation_follows_the_languages_convention(
    make_desk: MakeDesk, language: str, name: str, source: str, answer: str, after: str
) -> None:
    desk = await make_desk({"answer": answer})
    snapshot = desk.open(source, name, language)
    proposal = await run(desk, snapshot, "return a" if "return a" in source else "a\n}", ActionKind.DOCUMENT)
    assert apply_edits(source, proposal.edits) == after


async def test_a_finding_is_fixed(make_desk: MakeDesk) -> None:
    quote = "def log(message, history=[]):"
    finding = {
        "quote": quote,
        "category": "bug",
        "severity": "warning",
        "message": "Shared.",
        "suggestion": "None",
    }
    source = f"{quote}\n    history.append(message)\n    return history\n"
    fixed = "def log(message, history=None):\n    history = history or []\n    history.append(message)\n    return history"
    desk = await make_desk({"match": "Fix one problem", "answer": fixed}, {"json": {"findings": [finding]}})
    snapshot = desk.open(source)
    report = await desk.app.reviews.review(snapshot.uri)
    offer = next(
        o for o in offers(snapshot, report.findings[0].span, report.findings) if o.kind is ActionKind.FIX
    )
    assert offer.title == "Fix: Shared."
    result = await desk.app.actions.run(snapshot.uri, 1, offer, lambda _progress: None)
    assert isinstance(result, Proposal)
    assert apply_edits(source, result.edits) == fixed + "\n"
    desk.edit(snapshot.uri, "history=[]", "history=()")
    with pytest.raises((UsageError, StaleDocument)):
        await desk.app.actions.run(snapshot.uri, 1, offer, lambda _progress: None)


async def test_tests_go_into_the_projects_test_folder(make_desk: MakeDesk, tmp_path: Path) -> None:
    desk = await make_desk({"answer": "():\n    assert twice(2) == 4\n"})
    (tmp_path / "project" / "tests").mkdir(parents=True)
    (tmp_path / "project" / "pyproject.toml").touch()
    path = tmp_path / "project" / "box.py"
    snapshot = desk.app.documents.open(path.as_uri(), "python", 1, STUB)
    proposal = await run(desk, snapshot, "number + number", ActionKind.TESTS)
    (made,) = proposal.new_files
    assert made.uri == (tmp_path / "project" / "tests" / "test_box.py").as_uri()
    assert made.text == "from box import twice\n\n\ndef test_twice():\n    assert twice(2) == 4\n"


async def test_tests_never_overwrite_a_file(make_desk: MakeDesk, tmp_path: Path) -> None:
    desk = await make_desk({"answer": "():\n    assert twice(2) == 4\n\n\ndef test_half"})
    (tmp_path / "test_box.py").write_text("precious\n", encoding="utf-8")
    snapshot = desk.app.documents.open((tmp_path / "box.py").as_uri(), "python", 1, STUB)
    proposal = await run(desk, snapshot, "number + number", ActionKind.TESTS)
    (made,) = proposal.new_files
    assert made.uri == (tmp_path / "test_box_2.py").as_uri()
    assert made.text.endswith("assert twice(2) == 4\n"), "the unfinished test was cut off"


async def test_of_tests_that_were_cut_off_what_is_whole_stays(make_desk: MakeDesk, tmp_path: Path) -> None:
    desk = await make_desk(
        {"answer": "():\n    assert twice(2) == 4\n    assert twice(-1) == -2\n    assert twice("}
    )
    snapshot = desk.app.documents.open((tmp_path / "box.py").as_uri(), "python", 1, STUB)
    (made,) = (await run(desk, snapshot, "number + number", ActionKind.TESTS)).new_files
    assert made.text.endswith("assert twice(2) == 4\n    assert twice(-1) == -2\n")


async def test_a_test_that_was_cut_off_at_its_head_goes(make_desk: MakeDesk, tmp_path: Path) -> None:
    desk = await make_desk(
        {"answer": "():\n    assert twice(2) == 4\n\n\ndef test_more():\n    box = 1\n    assert twice("}
    )
    snapshot = desk.app.documents.open((tmp_path / "box.py").as_uri(), "python", 1, STUB)
    (made,) = (await run(desk, snapshot, "number + number", ActionKind.TESTS)).new_files
    assert made.text.endswith("def test_twice():\n    assert twice(2) == 4\n")


async def test_tests_that_never_parse_are_refused(make_desk: MakeDesk, tmp_path: Path) -> None:
    desk = await make_desk({"answer": "((((\n    assert twice("})
    snapshot = desk.app.documents.open((tmp_path / "box.py").as_uri(), "python", 1, STUB)
    with pytest.raises(EditRefused, match="do not parse"):
        await run(desk, snapshot, "number + number", ActionKind.TESTS)


async def test_an_explanation_is_text(make_desk: MakeDesk) -> None:
    desk = await make_desk({"answer": "It **doubles**."})
    snapshot = desk.open(STUB)
    offer = offered(snapshot, "number + number")[ActionKind.EXPLAIN]
    seen: list[ActionProgress] = []
    result = await desk.app.actions.run(snapshot.uri, 1, offer, seen.append)
    assert result == Explanation(snapshot.uri, "Explain 'twice'", "It **doubles**.")
    assert seen[-1].tokens > 0
    assert seen[-1].text == "It **doubles**."


async def test_an_edit_above_moves_the_proposal(make_desk: MakeDesk) -> None:
    desk = await make_desk({"answer": "    return self.width * self.height"})
    snapshot = desk.open(STUB)
    proposal = await run(desk, snapshot, "pass", ActionKind.GENERATE)
    now = desk.insert(snapshot.uri, 0, "import os\r\n\n")
    settled = desk.app.actions.settle(proposal)
    assert settled.version == now.version
    after = apply_edits(now.text, settled.edits)
    assert after == "import os\r\n\n" + STUB.replace("pass", "return self.width * self.height")


async def test_an_edit_in_the_same_place_makes_it_stale(make_desk: MakeDesk) -> None:
    desk = await make_desk({"answer": "    return self.width * self.height"})
    snapshot = desk.open(STUB)
    proposal = await run(desk, snapshot, "pass", ActionKind.GENERATE)
    desk.edit(snapshot.uri, "pass", "return 1")
    with pytest.raises(StaleDocument):
        desk.app.actions.settle(proposal)


async def test_an_offer_of_an_older_version_is_found_again(make_desk: MakeDesk) -> None:
    desk = await make_desk({"answer": "    return self.width * self.height"})
    snapshot = desk.open(STUB)
    offer = offered(snapshot, "pass")[ActionKind.GENERATE]
    now = desk.insert(snapshot.uri, 0, "import os\n")
    result = await desk.app.actions.run(snapshot.uri, snapshot.version, offer, lambda _progress: None)
    assert isinstance(result, Proposal)
    assert "return self.width * self.height" in apply_edits(now.text, result.edits)
    desk.edit(snapshot.uri, "pass", "...")
    with pytest.raises(StaleDocument):
        await desk.app.actions.run(snapshot.uri, snapshot.version, offer, lambda _progress: None)


async def test_cancelling_stops_the_engine(make_desk: MakeDesk) -> None:
    desk = await make_desk({"hang": True})
    snapshot = desk.open(STUB)
    offer = offered(snapshot, "pass")[ActionKind.GENERATE]
    task = asyncio.create_task(desk.app.actions.run(snapshot.uri, 1, offer, lambda _progress: None))
    await desk.asked()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(desk.events("cancel")) == 1


async def predicted(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, snapshot: Snapshot, needle: str, kind: ActionKind
) -> str:
    """What the engine was told that the answer would probably repeat."""
    engine, requests = desk.app.engine(), list[Request]()
    stream = engine.stream

    def noted(request: Request) -> AsyncGenerator[Piece, None]:
        requests.append(request)
        return stream(request)

    monkeypatch.setattr(engine, "stream", noted)
    await run(desk, snapshot, needle, kind)
    return requests[0].prediction


@pytest.mark.parametrize(
    ("language", "name", "source", "answer", "expected"),
    [
        (
            "python",
            "a.py",
            'class A:\n    def f(self, a):\n        """Add."""\n        b = a + 1\n        return b\n',
            "    return a + 1",
            "    b = a + 1\n    return b\n```",
        ),
        (
            "go",
            "a.go",
            "package p\n\nfunc F(a int) int {\n\tb := a + 1\n\treturn b\n}\n",
            "\treturn a + 1\n}",
            "\tb := a + 1\n\treturn b\n}\n```",
        ),
    ],
)
async def test_a_rewrite_is_expected_to_repeat_the_code_behind_the_head(
    make_desk: MakeDesk,
    monkeypatch: pytest.MonkeyPatch,
    language: str,
    name: str,
    source: str,
    answer: str,
    expected: str,
) -> None:
    desk = await make_desk({"answer": answer})
    snapshot = desk.open(source, name, language)
    assert await predicted(desk, monkeypatch, snapshot, "return", ActionKind.OPTIMIZE) == expected


async def test_of_a_stub_nothing_is_repeated(make_desk: MakeDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = await make_desk({"answer": "    return self.width * self.height"})
    assert await predicted(desk, monkeypatch, desk.open(STUB), "pass", ActionKind.GENERATE) == ""


@pytest.mark.parametrize(
    ("language", "name", "source", "expected"),
    [
        ("python", "a.py", 'def f(a):\n    """Old\n    words."""\n    return a\n', 'Old\n    words."""'),
        ("python", "a.py", "def f(a):\n    return a\n", ""),
        ("rust", "a.rs", "/// Old.\n/// Words.\nfn f(a: u8) -> u8 {\n    return a\n}\n", "Old.\n/// Words."),
        ("java", "A.java", "class A {\n    /**\n     * Old.\n     */\n    int f(int a) {\n        return a;\n    }\n}\n",
         "Old.\n */"),
    ],
)  # fmt: skip
async def test_documentation_is_expected_to_repeat_what_was_there(
    make_desk: MakeDesk,
    monkeypatch: pytest.MonkeyPatch,
    language: str,
    name: str,
    source: str,
    expected: str,
) -> None:
    desk = await make_desk({"answer": "New."})
    snapshot = desk.open(source, name, language)
    assert await predicted(desk, monkeypatch, snapshot, "return", ActionKind.DOCUMENT) == expected


@pytest.mark.parametrize(
    ("code", "head", "rest"),
    [
        ("def f(a):\n    return a", "def f(a):", "    return a"),
        ("def f(a): return a", "def f(a):", "return a"),
        ("int f()\n{\n  return 1;\n}", "int f() {", "  return 1;\n}"),
        ("int g() {\n}", "int f() {", "int g() {\n}"),
        ("x = 1\n", "", "x = 1\n"),
        ("f", "f(a):", "f"),
    ],
)
def test_what_is_behind_a_head(code: str, head: str, rest: str) -> None:
    assert behind_head(code, head) == rest

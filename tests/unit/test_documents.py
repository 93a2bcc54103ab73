"""The document store: versions, edits, URIs, histories, and parses away from the loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from nexo_lsp.documents import (
    LARGE_TEXT,
    DocumentStore,
    file_name_of,
    minimal_edit,
    scheme_of,
)
from nexo_lsp.errors import DocumentError, DocumentNotOpen
from nexo_lsp.offload import in_thread
from nexo_lsp.syntax.parsing import parse
from nexo_lsp.text import Change, Edit, Position, PositionEncoding, Range, Span, apply_edits

URI = "file:///project/a.py"
T = TypeVar("T")


def insert(line: int, character: int, text: str) -> Change:
    return Change(Range(Position(line, character), Position(line, character)), text)


def opened(text: str, *, language: str = "python", uri: str = URI) -> DocumentStore:
    store = DocumentStore()
    store.open(uri, language, 1, text)
    return store


class Gate:
    """An off-load that works in a thread, but only once it is let."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.open = asyncio.Event()
        self.runs = 0

    async def __call__(self, work: Callable[[], T], /) -> T:
        self.runs += 1
        self.asked.set()
        await self.open.wait()
        return await in_thread(work)


def large_text() -> str:
    return "def f(a):\n    return a\n\n\n" * (LARGE_TEXT // 20)


def test_the_changes_of_one_message_refer_each_to_the_text_before_it() -> None:
    store = opened("a\nb\n")
    snapshot, edits = store.change(URI, 2, [insert(0, 1, "\nnew"), insert(1, 3, "😀"), insert(1, 5, "!")])
    assert snapshot.text == "a\nnew😀!\nb\n"
    assert edits == (Edit(Span(1, 1), "\nnew"), Edit(Span(5, 5), "😀"), Edit(Span(6, 6), "!"))
    assert snapshot.version == 2
    assert store.get(URI) is snapshot


def test_a_snapshot_never_changes() -> None:
    store = opened("x = 1\n")
    first = store.get(URI)
    tree = first.tree
    store.change(URI, 2, [insert(0, 0, "def f(): pass\n")])
    assert first.text == "x = 1\n"
    assert first.version == 1
    assert first.tree is tree
    assert tree is not None
    assert tree.outline().symbols == ()
    assert first != store.get(URI)
    assert len({first, store.get(URI)}) == 2


def test_a_replaced_text_becomes_the_smallest_edit() -> None:
    store = opened("def f():\n    return 1\n")
    snapshot, edits = store.change(URI, 2, [Change(None, "def f():\n    return 22\n")])
    assert edits == (Edit(Span(20, 21), "22"),)
    assert snapshot.text == "def f():\n    return 22\n"


@pytest.mark.parametrize(
    ("before", "after", "edit"),
    [
        ("", "", Edit(Span(0, 0), "")),
        ("abc", "abc", Edit(Span(3, 3), "")),
        ("", "abc", Edit(Span(0, 0), "abc")),
        ("abc", "", Edit(Span(0, 3), "")),
        ("aa", "aaa", Edit(Span(2, 2), "a")),
        ("aaa", "aa", Edit(Span(2, 3), "")),
        ("abcd", "axyd", Edit(Span(1, 3), "xy")),
        ("abab", "ab", Edit(Span(2, 4), "")),
    ],
)
def test_minimal_edits(before: str, after: str, edit: Edit) -> None:
    assert minimal_edit(before, after) == edit
    assert apply_edits(before, [edit]) == after


def test_positions_are_in_the_clients_encoding() -> None:
    store = DocumentStore()
    store.encoding = PositionEncoding.UTF8
    snapshot = store.open(URI, "python", 1, "é = 1\n")
    assert snapshot.position(5) == Position(0, 6)
    assert snapshot.offset(Position(0, 2)) == 1
    assert snapshot.span(Range(Position(0, 2), Position(1, 0))) == Span(1, 6)
    assert snapshot.range(Span(1, 6)) == Range(Position(0, 2), Position(1, 0))
    with pytest.raises(DocumentError):
        store.encoding = PositionEncoding.UTF16
    assert store.encoding is PositionEncoding.UTF8


def test_what_is_not_open_is_said_so(caplog: pytest.LogCaptureFixture) -> None:
    store = DocumentStore()
    with pytest.raises(DocumentNotOpen, match=r"a\.py"):
        store.get(URI)
    with pytest.raises(DocumentNotOpen):
        store.change(URI, 2, [])
    assert store.find(URI) is None
    assert store.edits_since(URI, 1) is None
    store.close(URI)
    assert "not open" in caplog.text


def test_opening_twice_and_closing() -> None:
    store = opened("one")
    first = store.get(URI)
    store.open(URI, "python", 1, "two")
    store.open("file:///b.go", "go", 1, "package b")
    assert [snapshot.text for snapshot in store.all()] == ["two", "package b"]
    # The same version number, and yet another text.
    assert store.edits_after(first) is None
    store.close(URI)
    assert [snapshot.uri for snapshot in store.all()] == ["file:///b.go"]


def test_a_version_that_goes_back_is_taken_and_ends_the_history(caplog: pytest.LogCaptureFixture) -> None:
    store = opened("a")
    store.change(URI, 5, [insert(0, 0, "b")])
    with caplog.at_level(logging.WARNING):
        snapshot, _ = store.change(URI, 3, [insert(0, 0, "c")])
    assert (snapshot.text, snapshot.version) == ("cba", 3)
    assert "from version 5 to 3" in caplog.text
    assert store.edits_since(URI, 5) is None
    assert store.edits_since(URI, 1) is None
    assert store.edits_since(URI, 3) == ()


def test_the_edits_since_a_version() -> None:
    store = opened("a")
    first = store.get(URI)
    store.change(URI, 4, [insert(0, 1, "b"), insert(0, 2, "c")])
    store.change(URI, 5, [])
    store.change(URI, 9, [Change(None, "abcd")])
    assert store.edits_since(URI, 1) == (
        Edit(Span(1, 1), "b"),
        Edit(Span(2, 2), "c"),
        Edit(Span(3, 3), "d"),
    )
    assert store.edits_after(first) == store.edits_since(URI, 1)
    assert store.edits_since(URI, 5) == (Edit(Span(3, 3), "d"),)
    assert store.edits_since(URI, 9) == ()
    assert store.edits_since(URI, 2) is None


def test_the_history_is_bounded() -> None:
    store = opened("")
    for version in range(2, 1_203):
        store.change(URI, version, [insert(0, 0, "x")])
    assert store.edits_since(URI, 1) is None
    assert store.edits_since(URI, 201) is None
    since = store.edits_since(URI, 202)
    assert since is not None
    assert len(since) == 1_000


def test_a_text_without_a_language_has_everything_but_a_tree() -> None:
    store = opened("hello\nworld", language="plaintext", uri="untitled:Untitled-1")
    snapshot, _ = store.change("untitled:Untitled-1", 2, [insert(1, 0, "my ")])
    assert snapshot.text == "hello\nmy world"
    assert snapshot.language is None
    assert snapshot.tree is None
    assert snapshot.path is None
    assert snapshot.is_parsed


@pytest.mark.parametrize(
    ("uri", "language_id", "language", "read_only"),
    [
        ("untitled:Untitled-1", "python", "python", False),
        ("git:/repo/a.rs?%7B%22ref%22%3A%22~%22%7D", "", "rust", True),
        ("vscode-notebook-cell:/n.ipynb#X10sZmlsZQ%3D%3D", "python", "python", False),
        ("file:///a.py", "python", "python", False),
    ],
)
def test_documents_that_are_not_files(uri: str, language_id: str, language: str, read_only: bool) -> None:
    snapshot = DocumentStore().open(uri, language_id, 0, "")
    assert snapshot.language is not None
    assert snapshot.language.id == language
    assert snapshot.read_only is read_only
    assert snapshot.scheme == uri.split(":", maxsplit=1)[0]
    assert (snapshot.path is None) is (snapshot.scheme != "file")


@pytest.mark.parametrize(
    ("uri", "posix", "windows"),
    [
        ("file:///home/me/a%20b.py", "/home/me/a b.py", r"\home\me\a b.py"),
        ("file:///c%3A/Users/me/a.py", "/c:/Users/me/a.py", r"C:\Users\me\a.py"),
        ("file:///C:/x/%C3%A9%23.py", "/C:/x/é#.py", r"C:\x\é#.py"),
        ("file://localhost/a.py", "/a.py", r"\a.py"),
        ("file://server/share/a.py", None, r"\\server\share\a.py"),
        ("file:///a?b#c.py", "/a?b#c.py", r"\a?b#c.py"),
        ("FILE:///a.py", "/a.py", r"\a.py"),
        ("file:/a.py", "/a.py", r"\a.py"),
        ("untitled:Untitled-1", None, None),
        ("git:/repo/a.py?x", None, None),
    ],
)
def test_file_names_of_uris(uri: str, posix: str | None, windows: str | None) -> None:
    assert file_name_of(uri, windows=False) == posix
    assert file_name_of(uri, windows=True) == windows


def test_the_path_of_a_file_is_that_of_this_machine(tmp_path: Path) -> None:
    file = tmp_path / "größe und #.py"
    snapshot = DocumentStore().open(file.as_uri(), "python", 0, "")
    assert snapshot.path == file


def test_schemes() -> None:
    assert [scheme_of(uri) for uri in ("FILE:///a", "untitled:x", r"c:\a.py", "/a", "")] == [
        "file",
        "untitled",
        "file",
        "file",
        "file",
    ]


async def test_a_small_text_is_parsed_at_once() -> None:
    store = opened("def f(): pass\n")
    snapshot = await store.parsed(URI)
    assert snapshot is store.get(URI)
    assert snapshot.is_parsed


async def test_a_large_text_is_parsed_elsewhere_and_once_for_all_who_wait() -> None:
    gate = Gate()
    store = DocumentStore(offload=gate)
    store.open(URI, "python", 1, large_text())
    waiting = [asyncio.ensure_future(store.parsed(URI)) for _ in range(3)]
    await gate.asked.wait()
    assert not store.get(URI).is_parsed
    waiting[0].cancel()  # one asker leaves; the others are still served
    gate.open.set()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert results[1] is results[2] is store.get(URI)
    assert gate.runs == 1
    assert store.get(URI).is_parsed


async def test_changes_during_a_parse_are_in_the_tree_that_is_handed_out() -> None:
    gate = Gate()
    store = DocumentStore(offload=gate)
    store.open(URI, "python", 1, large_text())
    waiting = asyncio.ensure_future(store.parsed(URI))
    await gate.asked.wait()
    store.change(URI, 2, [insert(0, 0, "# 😀\n")])
    store.change(URI, 3, [insert(1, 4, "größer_"), Change(Range(Position(5, 0), Position(9, 0)), "")])
    gate.open.set()
    snapshot = await waiting
    assert snapshot is store.get(URI)
    assert snapshot.version == 3
    assert snapshot.language is not None
    fresh = parse(snapshot.language, snapshot.text)
    assert snapshot.tree is not None
    assert fresh is not None
    assert snapshot.tree.sexp() == fresh.sexp()
    assert snapshot.tree.outline() == fresh.outline()


async def test_a_document_closed_during_its_parse_is_not_handed_out() -> None:
    gate = Gate()
    store = DocumentStore(offload=gate)
    store.open(URI, "python", 1, large_text())
    waiting = asyncio.ensure_future(store.parsed(URI))
    await gate.asked.wait()
    store.close(URI)
    gate.open.set()
    with pytest.raises(DocumentNotOpen):
        await waiting


async def test_a_failed_parse_is_told_to_who_waits_and_tried_again_for_the_next() -> None:
    failures = [RuntimeError("no thread")]

    async def offload(work: Callable[[], T], /) -> T:
        if failures:
            raise failures.pop()
        return work()

    store = DocumentStore(offload=offload)
    store.open(URI, "python", 1, large_text())
    with pytest.raises(RuntimeError, match="no thread"):
        await store.parsed(URI)
    assert (await store.parsed(URI)).is_parsed

"""What may be shown to a model, also when that changes while work is under way."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from nexo_lsp.errors import DisabledError
from nexo_lsp.pipeline.review import ReviewProgress
from nexo_lsp.settings import Layer
from tests.unit.pipeline.conftest import Desk, MakeDesk

CODE = "def mean(values):\n    return helper(values)\n\n\ndef half(value):\n    return value / 2\n"
HELPER = "def helper(values):\n    return sum(values)\n"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    # Two writes within one tick of the file system's clock would look the same.
    stamp = path.stat().st_mtime_ns + 1_000_000_000
    os.utime(path, ns=(stamp, stamp))


def open_at(desk: Desk, path: Path, text: str, language: str = "python") -> str:
    snapshot = desk.app.documents.open(path.as_uri(), language, 1, text)
    desk.app.opened(snapshot)
    return snapshot.uri


@pytest.mark.parametrize(
    "uri",
    [
        'git:/project/.env?{"path":"/project/.env","ref":"~"}',
        "git:/project/.env?%7B%22path%22%3A%22/project/.env%22%2C%22ref%22%3A%22%22%7D",
        "vscode-notebook-cell:/project/secrets.ipynb#W0sZmlsZQ%3D%3D",
        "untitled:/home/me/.ssh/id_ed25519",
        "gitlens://4f2a/project/id_rsa?{}",
    ],
)
async def test_a_secret_stays_one_under_any_scheme(make_desk: MakeDesk, uri: str) -> None:
    desk = await make_desk()
    snapshot = desk.app.documents.open(uri, "python", 1, CODE)
    assert desk.app.permitted(snapshot) is not None


async def test_ignore_files_and_globs_count_for_views_of_a_file_too(
    make_desk: MakeDesk, tmp_path: Path
) -> None:
    desk = await make_desk(NEXO_DISABLED_GLOBS="gen/*")
    root = tmp_path / "project"
    write(root / ".nexoignore", "private/\n")
    desk.app.set_workspace([root], trusted=False)
    for place in ("private/nb.ipynb", "gen/nb.ipynb"):
        uri = f"vscode-notebook-cell:{(root / place).as_posix()}#W0"
        assert desk.app.permitted(desk.app.documents.open(uri, "python", 1, CODE)) is not None


async def test_an_ignore_file_that_is_edited_later_counts(make_desk: MakeDesk, tmp_path: Path) -> None:
    desk = await make_desk({"answer": "1"}, NEXO_COMPLETION_DEBOUNCE_MS="0")
    root = tmp_path / "project"
    root.mkdir()
    desk.app.set_workspace([root], trusted=False)
    uri = open_at(desk, root / "a.py", CODE)
    await desk.app.reviews.review(uri)
    asked = len(desk.events())
    write(root / ".nexoignore", "*.py\n")
    assert await desk.app.completions.complete(uri, len(CODE), explicit=True) is None
    with pytest.raises(DisabledError):
        await desk.app.reviews.review(uri)
    assert len(desk.events()) == asked
    write(root / ".nexoignore", "\n")
    assert (await desk.app.reviews.review(uri)).complete


async def test_what_git_ignores_is_no_context_for_others(make_desk: MakeDesk, tmp_path: Path) -> None:
    desk = await make_desk(NEXO_HOVER_EXPLAIN="false")
    root = tmp_path / "project"
    write(root / ".gitignore", "build/\n")
    desk.app.set_workspace([root], trusted=False)
    open_at(desk, root / "build" / "made.py", HELPER)
    uri = open_at(desk, root / "a.py", CODE)
    await desk.app.reviews.review(uri)
    assert all("def helper" not in event["prompt"].rpartition("user:")[2] for event in desk.events())
    assert await desk.app.hovers.hover(uri, CODE.index("helper")) is None


async def test_what_is_tracked_is_context_for_others(make_desk: MakeDesk, tmp_path: Path) -> None:
    desk = await make_desk()
    root = tmp_path / "project"
    desk.app.set_workspace([root], trusted=False)
    open_at(desk, root / "lib.py", HELPER)
    await desk.app.reviews.review(open_at(desk, root / "a.py", CODE))
    assert "def helper" in desk.events()[0]["prompt"].rpartition("user:")[2]


@pytest.mark.parametrize(
    "change",
    [
        {"disabledLanguages": ["python"]},
        {"disabledGlobs": ["*.py"]},
        {"review": {"enabled": False}},
    ],
)
async def test_a_switch_ends_the_review_that_is_under_way(
    make_desk: MakeDesk, change: dict[str, object]
) -> None:
    first = {"findings": [
        {"quote": "return helper(values)", "message": "m", "category": "bug", "severity": "warning",
         "suggestion": ""}]}  # fmt: skip
    desk = await make_desk({"match": r"return helper\(values\)\n```", "json": first}, {"hang": True})
    snapshot = desk.open(CODE)
    desk.app.set_workspace([Path("/project")], trusted=False)
    shown = asyncio.Event()
    desk.app.reviews.on_findings = lambda _of, _found: shown.set()
    task = asyncio.create_task(desk.app.reviews.review(snapshot.uri))
    await desk.asked(2)
    await shown.wait()
    assert desk.app.reviews.findings(snapshot.uri) != ()
    assert desk.app.configure([Layer("test", change)]) == ()
    report = await task
    assert (report.complete, report.findings) == (False, ())
    assert len(desk.events("cancel")) == 1
    assert len(desk.events()) == 2


async def test_a_file_that_gets_ignored_ends_what_is_at_work_for_it(
    make_desk: MakeDesk, tmp_path: Path
) -> None:
    desk = await make_desk({"hang": True})
    root = tmp_path / "project"
    root.mkdir()
    desk.app.set_workspace([root], trusted=False)
    code = "".join(f"def f{n}(value):\n    return value / {n}\n\n\n" for n in range(4))
    uri = open_at(desk, root / "a.py", code)

    def progress(update: ReviewProgress) -> None:
        if update.symbol == "f3":
            write(root / ".nexoignore", "*.py\n")

    with pytest.raises(DisabledError):
        await desk.app.reviews.review(uri, progress=progress)
    await desk.idle()
    assert desk.events("finish") == []
    assert 1 <= len(desk.events()) <= 3, "the first three had begun"

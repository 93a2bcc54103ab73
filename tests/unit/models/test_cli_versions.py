"""`nexo-lsp models versions, update, pin, unpin, rollback, prune`, through their command line."""

from __future__ import annotations

import _thread
import hashlib
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from nexo_lsp.cli import models as cli
from nexo_lsp.cli import models_prune, models_versions
from nexo_lsp.models.announcing import Announced
from nexo_lsp.models.catalog import CatalogEntry
from nexo_lsp.models.store import ModelStore
from nexo_lsp.models.transfer import Report, SourceFailed, append, check
from nexo_lsp.models.versions import short

MakeEntry = Callable[..., CatalogEntry]
OLD, NEW, HUBS = b"old weights" * 50, b"new weights!" * 50, b"what only the Hub has" * 50
RUN = CliRunner()


def _id(data: bytes) -> str:
    return short(hashlib.sha256(data).hexdigest())


class Delivers:
    name = "delivers"

    def __init__(self) -> None:
        self.interrupt = False

    def fetch(self, entry: CatalogEntry, target: Path, progress: Report, cancel: threading.Event) -> None:
        if self.interrupt:
            _thread.interrupt_main()
            assert cancel.wait(30)
            check(cancel)
        data = {len(one): one for one in (OLD, NEW, HUBS)}[entry.size]
        append(target, [data], entry.size, progress, cancel)


class Program:
    """The command line of one user, whose catalogue may move on."""

    def __init__(self, folder: Path, make_entry: MakeEntry, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder = folder
        self._make = make_entry
        self.source = Delivers()
        self.hub: bytes | None = None
        self.app = typer.Typer()
        models_versions.add_to(self.app)
        models_prune.add_to(self.app)
        self.catalogue(OLD)
        monkeypatch.setattr(cli, "open_store", lambda: self.store)
        monkeypatch.setattr(models_versions, "_announcer", lambda: self._announce)

    def catalogue(self, data: bytes) -> None:
        self.store = ModelStore(self._folder, {}, [self.source], (self._make(data),))

    def __call__(self, *words: str) -> Any:
        return RUN.invoke(self.app, words)

    def json(self, *words: str) -> Any:
        return json.loads(self(*words, "--json").stdout)

    @property
    def in_use(self) -> bytes:
        return self.store.locate("tiny-coder").read_bytes()

    def _announce(self, _: CatalogEntry, _cancel: threading.Event) -> Announced:
        if self.hub is None:
            raise SourceFailed("the [cable] is out")
        return Announced(len(self.hub), hashlib.sha256(self.hub).hexdigest())


@pytest.fixture
def program(tmp_path: Path, make_entry: MakeEntry, monkeypatch: pytest.MonkeyPatch) -> Program:
    made = Program(tmp_path / "models", make_entry, monkeypatch)
    made.store.pull("tiny-coder")
    return made


def test_update_shows_asks_and_does(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    program.catalogue(NEW)
    checked = program("update", "--check")
    assert checked.exit_code == 1
    assert _id(NEW) in checked.stdout
    assert "600 bytes" in checked.stdout
    assert "the [cable] is out; compared with the catalogue only" in checked.stderr
    assert program.in_use == OLD
    # Where nobody can be asked, nothing is done.
    nobody = program("update")
    assert nobody.exit_code == 2
    assert "say --yes" in nobody.stderr
    assert program.in_use == OLD
    done = program("update", "tiny-coder", "--yes")
    assert done.exit_code == 0
    assert f"is at {_id(NEW)} now" in done.stdout
    assert program.in_use == NEW
    again = program("update", "--check")
    assert again.exit_code == 0
    assert f"nothing is newer than {_id(NEW)}" in again.stdout


@pytest.mark.parametrize(("answer", "after"), [("y", NEW), ("n", OLD)])
def test_the_answer_counts(
    program: Program, monkeypatch: pytest.MonkeyPatch, answer: str, after: bytes
) -> None:
    program.catalogue(NEW)
    asked: list[str] = []

    def confirm(question: str) -> bool:
        asked.append(question)
        return answer == "y"

    monkeypatch.setattr(models_versions, "agreed", confirm)
    assert program("update").exit_code == 0
    assert asked == ["Fetch 600 bytes and use it?"]
    assert program.in_use == after


def test_what_only_the_hub_has_is_shown_and_taken_when_wanted(program: Program) -> None:
    program.hub = HUBS
    shown = program("update", "--yes")
    assert "Hugging Face" in shown.stdout
    assert "with --hub" in shown.stdout
    assert program.in_use == OLD
    assert program("update", "--hub", "--yes").exit_code == 0
    assert program.in_use == HUBS


def test_a_version_in_the_name_is_the_one_that_is_pinned(program: Program) -> None:
    program.catalogue(NEW)
    assert program("update", "--yes").exit_code == 0
    old, new = f"tiny-coder@{_id(OLD)}", f"tiny-coder@{_id(NEW)}"
    both = program("pin", old, _id(NEW))
    assert (both.exit_code, "another version" in both.stderr) == (2, True)
    assert program.store.versions.choices() == {}
    assert program("pin", old).exit_code == 0
    assert program.in_use == OLD
    for command in ("unpin", "rollback"):
        refused = program(command, new)
        assert (refused.exit_code, "names one version" in refused.stderr) == (2, True)
    assert program.store.versions.choice("tiny-coder").version == _id(OLD)


def test_update_for_machines(program: Program) -> None:
    program.catalogue(NEW)
    (row,) = program.json("update")
    (offer,) = row["offers"]
    assert (row["in_use"], offer["version"], offer["fetch"], offer["taken"]) == (
        _id(OLD),
        _id(NEW),
        600,
        False,
    )
    (row,) = program.json("update", "--yes")
    assert row["offers"][0]["taken"] is True
    assert program.in_use == NEW


def test_ctrl_c_ends_an_update_and_the_old_version_stays(program: Program) -> None:
    program.catalogue(NEW)
    program.source.interrupt = True
    ended = program("update", "--yes")
    assert ended.exit_code == 130
    assert "kept" in ended.stderr
    assert program.in_use == OLD


def test_pin_update_unpin(program: Program) -> None:
    assert f"pinned to {_id(OLD)}" in program("pin", "tiny-coder").stdout
    program.catalogue(NEW)
    shown = program("update", "--yes")
    assert shown.exit_code == 0
    assert "pinned" in shown.stdout
    assert program.in_use == OLD
    freed = program("unpin", "tiny-coder")
    assert "follows the catalogue" in freed.stdout
    assert program("update", "--yes").exit_code == 0
    assert program.in_use == NEW
    assert program.json("pin", "tiny-coder", _id(OLD)) == {"name": "tiny-coder", "version": _id(OLD)}
    assert program.in_use == OLD
    assert program("pin", "tiny-coder", "00000000").exit_code == 3
    assert program("pin", "tiny-codr").exit_code == 2


def test_rollback_and_forward_and_what_versions_shows(program: Program) -> None:
    program.catalogue(NEW)
    program("update", "--yes")
    assert program("rollback", "tiny-coder").exit_code == 0
    assert program.in_use == OLD
    rows = program.json("versions")
    assert [(row["version"], row["in_use"], row["newest"]) for row in rows] == [
        (_id(OLD), True, False),
        (_id(NEW), False, True),
    ]
    assert "in use" in program("versions", "tiny-coder").stdout
    assert program("rollback", "tiny-coder", "--forward").exit_code == 0
    assert program.in_use == NEW
    assert program("rollback", "tiny-coder", "--forward").exit_code == 3


def test_prune_shows_asks_and_does(program: Program) -> None:
    program.catalogue(NEW)
    program("update", "--yes")
    (program.store.folder / "[odd].gguf.partial").write_bytes(b"12345")
    dry = program("prune", "--dry-run")
    assert dry.exit_code == 0
    assert "old version" in dry.stdout
    assert "[odd].gguf.partial" in dry.stdout
    assert "555 bytes in all" in dry.stdout
    assert program("prune").exit_code == 2
    assert len(program.store.versions.of(program.store.catalog[0])) == 2
    with program.store.in_use(program.store.folder / "tiny-coder.gguf"):
        assert program.json("prune", "--yes")["freed"] == 5
    done = program("prune", "--yes")
    assert done.exit_code == 0
    assert "550 bytes are free again" in done.stdout
    assert program.in_use == NEW
    assert "nothing in" in program("prune").stdout


def test_nothing_here_is_said(program: Program) -> None:
    program.store.remove("tiny-coder")
    for words in (["versions"], ["update"]):
        said = program(*words)
        assert said.exit_code == 0
        assert "no model on this machine" in said.stdout


def test_the_program_has_these_commands() -> None:
    from nexo_lsp.cli.program import build

    said = RUN.invoke(build(["models"]), ["models", "--help"])
    for command in ("versions", "update", "pin", "unpin", "rollback", "prune", "pull"):
        assert f" {command} " in said.stdout

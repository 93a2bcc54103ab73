"""`nexo-lsp models`, through its own command line."""

from __future__ import annotations

import _thread
import io
import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from nexo_lsp.cli import models as cli
from nexo_lsp.cli import models_shown
from nexo_lsp.errors import ModelDownloadCancelled
from nexo_lsp.models.catalog import CatalogEntry
from nexo_lsp.models.store import ModelStore
from nexo_lsp.models.transfer import Report, SourceFailed, append, check

models_shown.add_to(cli.app)

MakeEntry = Callable[..., CatalogEntry]
Open = Callable[..., ModelStore]


class Delivers:
    name = "delivers"

    def __init__(self, data: bytes) -> None:
        self._data = data

    def fetch(self, entry: CatalogEntry, target: Path, progress: Report, cancel: threading.Event) -> None:
        append(target, [self._data], len(self._data), progress, cancel)


class Fails:
    name = "fails"

    def fetch(self, entry: CatalogEntry, target: Path, progress: Report, cancel: threading.Event) -> None:
        raise SourceFailed("the [cable] is out")


class UserPressesCtrlC:
    """In the middle of its work, the main thread is interrupted."""

    name = "slow"

    def fetch(self, entry: CatalogEntry, target: Path, progress: Report, cancel: threading.Event) -> None:
        target.write_bytes(b"some")
        progress(4, "")
        _thread.interrupt_main()
        assert cancel.wait(30)
        check(cancel)


@pytest.fixture
def open_store(tmp_path: Path, make_entry: MakeEntry, monkeypatch: pytest.MonkeyPatch) -> Open:
    def make(*sources: object) -> ModelStore:
        store = ModelStore(tmp_path / "models", {}, sources, (make_entry(),))  # pyright: ignore[reportArgumentType]
        monkeypatch.setattr(cli, "open_store", lambda: store)
        return store

    return make


def test_pull_list_verify_remove(open_store: Open, payload: bytes) -> None:
    store = open_store(Delivers(payload))
    run = CliRunner()
    pulled = run.invoke(cli.app, ["pull", "tiny-coder"])
    assert pulled.exit_code == 0
    assert "tiny-coder is ready" in pulled.stdout
    assert "Fetching tiny-coder (1.3 MB)" in pulled.stderr
    listed = run.invoke(cli.app, ["list"])
    assert "tiny-coder" in listed.stdout
    assert "verified" in listed.stdout
    verified = run.invoke(cli.app, ["verify"])
    assert verified.exit_code == 0
    assert "tiny-coder is right" in verified.stdout
    removed = run.invoke(cli.app, ["remove", "tiny-coder"])
    assert removed.exit_code == 0
    assert store.installed() == ()


def test_json_for_machines(open_store: Open, payload: bytes) -> None:
    store = open_store(Delivers(payload))
    run = CliRunner()
    pulled = run.invoke(cli.app, ["pull", "tiny-coder", "--json"])
    assert json.loads(pulled.stdout)["path"] == str(store.locate("tiny-coder"))
    (row,) = json.loads(run.invoke(cli.app, ["list", "--json"]).stdout)
    assert (row["name"], row["installed"], row["verified"]) == ("tiny-coder", True, True)
    (verdict,) = json.loads(run.invoke(cli.app, ["verify", "--json"]).stdout)
    assert verdict["ok"] is True
    assert json.loads(run.invoke(cli.app, ["remove", "tiny-coder", "--json"]).stdout)["freed"] == len(payload)
    missing = run.invoke(cli.app, ["verify", "tiny-coder", "--json"])
    assert missing.exit_code == 3
    assert json.loads(missing.stdout)["error"] == "model-missing"


def test_a_damaged_file_makes_verify_fail_and_names_the_cure(open_store: Open, payload: bytes) -> None:
    store = open_store(Delivers(payload))
    store.pull("tiny-coder").write_bytes(payload[::-1])
    result = CliRunner().invoke(cli.app, ["verify"])
    assert result.exit_code == 1
    assert "nexo-lsp models pull tiny-coder" in result.stdout
    assert "damaged" in CliRunner().invoke(cli.app, ["list"]).stdout
    assert CliRunner().invoke(cli.app, ["pull", "tiny-coder"]).exit_code == 0
    assert CliRunner().invoke(cli.app, ["verify", "tiny-coder"]).exit_code == 0


def test_failures_and_unknown_names_have_their_exit_codes(open_store: Open) -> None:
    open_store(Fails())
    failed = CliRunner().invoke(cli.app, ["pull", "tiny-coder"])
    assert failed.exit_code == 3
    assert "fails: the [cable] is out" in failed.stderr
    unknown = CliRunner().invoke(cli.app, ["pull", "tiny-cod"])
    assert unknown.exit_code == 2
    assert "did you mean tiny-coder" in unknown.stderr


def test_nothing_here_is_said(open_store: Open) -> None:
    open_store()
    result = CliRunner().invoke(cli.app, ["verify"])
    assert result.exit_code == 0
    assert "no model on this machine" in result.stdout
    assert "no " in CliRunner().invoke(cli.app, ["list"]).stdout


def test_ctrl_c_ends_a_pull_and_keeps_what_came(open_store: Open) -> None:
    store = open_store(UserPressesCtrlC())
    result = CliRunner().invoke(cli.app, ["pull", "tiny-coder"])
    assert result.exit_code == 130
    assert "what came so far is kept" in result.stderr
    assert (store.folder / "tiny-coder.gguf.partial").read_bytes() == b"some"


def test_ctrl_c_before_the_work_has_begun_ends_it_too(
    open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that pulls is being started when the interrupt comes."""
    store = open_store(Delivers(b""))
    started = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        _thread.interrupt_main()
        started(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(ModelDownloadCancelled):
        cli.pull_with_progress_bar(store, "tiny-coder", Console(file=io.StringIO()))


def test_the_bar_shows_size_and_source_on_a_terminal(open_store: Open, payload: bytes) -> None:
    store = open_store(Fails(), Delivers(payload))
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120)
    path = cli.pull_with_progress_bar(store, "tiny-coder", console)
    assert path.read_bytes() == payload
    assert "fails: the [cable] is out" in out.getvalue()
    assert "1.3/1.3 MB" in out.getvalue()


def test_the_bar_lets_a_cancelled_pull_through(open_store: Open) -> None:
    store = open_store(UserPressesCtrlC())
    with pytest.raises(ModelDownloadCancelled):
        cli.pull_with_progress_bar(store, "tiny-coder", Console(file=io.StringIO()))

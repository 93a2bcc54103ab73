"""The models folder: what is there, and how a pull ends whatever goes wrong."""

from __future__ import annotations

import errno
import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import filelock
import pytest

from nexo_lsp.errors import (
    DiskFull,
    ModelCorrupt,
    ModelDownloadCancelled,
    ModelDownloadFailed,
    ModelError,
    ModelMissing,
    ModelUnknown,
)
from nexo_lsp.folders import UNPACKED
from nexo_lsp.models.catalog import CatalogEntry
from nexo_lsp.models.files import CHUNK
from nexo_lsp.models.progress import PullProgress
from nexo_lsp.models.sources import HuggingFaceSource, UrlSource
from nexo_lsp.models.store import ModelStore
from nexo_lsp.models.transfer import Report, SourceFailed

if TYPE_CHECKING:
    from conftest import WebServer

MakeEntry = Callable[..., CatalogEntry]


class Source:
    """Delivers `data`, or raises."""

    def __init__(self, name: str, data: bytes = b"", error: Exception | None = None) -> None:
        self.name = name
        self.calls = 0
        self._data = data
        self._error = error

    def fetch(self, entry: CatalogEntry, target: Path, progress: Report, cancel: threading.Event) -> None:
        self.calls += 1
        have = target.stat().st_size if target.exists() else 0
        with target.open("ab") as out:
            out.write(self._data[have:])
        progress(len(self._data), "")
        if self._error is not None:
            raise self._error


@pytest.fixture
def entry(make_entry: MakeEntry) -> CatalogEntry:
    return make_entry()


@pytest.fixture
def store(tmp_path: Path, environ: dict[str, str], entry: CatalogEntry) -> ModelStore:
    return ModelStore(tmp_path / "models", environ, catalog=(entry,))


def _store(tmp_path: Path, entry: CatalogEntry, *sources: Source) -> ModelStore:
    return ModelStore(tmp_path / "models", {}, sources, (entry,))


def _nothing_under_its_name(store: ModelStore) -> bool:
    return list(store.folder.glob("*.gguf")) == []


# What is there


def test_a_name_that_is_not_known_gets_the_closest_one(store: ModelStore) -> None:
    with pytest.raises(ModelUnknown, match="did you mean tiny-coder"):
        store.locate("tiny-codr")
    with pytest.raises(ModelUnknown, match="there are: tiny-coder"):
        store.pull("something else entirely")


def test_a_missing_model_names_the_command_that_fetches_it(store: ModelStore) -> None:
    with pytest.raises(ModelMissing, match="nexo-lsp models pull tiny-coder"):
        store.locate("tiny-coder")


def test_paths_and_files_of_the_folder_are_located(store: ModelStore, tmp_path: Path) -> None:
    own = tmp_path / "own.gguf"
    own.write_bytes(b"x")
    store.folder.mkdir()
    variant = store.folder / "variant.gguf"
    variant.write_bytes(b"y")
    assert store.locate(str(own)) == own
    assert store.locate("variant.gguf") == variant
    with pytest.raises(ModelUnknown, match="no model file at"):
        store.locate(str(tmp_path / "none.gguf"))
    with pytest.raises(ModelUnknown, match="no model file at ~nobody-of-this-name"):
        store.locate("~nobody-of-this-name/none.gguf")
    with pytest.raises(ModelMissing):
        store.locate("tiny-coder.gguf")


def test_auto_is_the_default_model(tmp_path: Path) -> None:
    store = ModelStore(tmp_path, {})
    with pytest.raises(ModelMissing, match=r"qwen2\.5-coder-0\.5b-instruct-q4_k_m \(491 MB\)"):
        store.locate("auto")
    known = store.entry_for("auto")
    assert known is not None
    assert store.entry_for(f"/elsewhere/{known.file}") is known
    assert store.entry_for("/elsewhere/own.gguf") is None


def test_a_file_of_the_wrong_size_is_seen_at_once_and_fetched_again(
    store: ModelStore, entry: CatalogEntry, hub: WebServer, hub_path: str, payload: bytes
) -> None:
    hub.files[hub_path] = payload
    store.folder.mkdir()
    (store.folder / entry.file).write_bytes(payload[:-1])
    with pytest.raises(ModelCorrupt, match="models pull tiny-coder"):
        store.locate("tiny-coder")
    assert "instead of" in store.installed()[0].problem
    assert store.verify("tiny-coder").ok is False
    assert store.pull("tiny-coder").read_bytes() == payload
    assert [model.name for model in store.installed() if model.verified] == ["tiny-coder"]


def test_a_damaged_file_is_found_by_verify_and_fetched_again(
    store: ModelStore, entry: CatalogEntry, hub: WebServer, hub_path: str, payload: bytes
) -> None:
    hub.files[hub_path] = payload
    path = store.pull("tiny-coder")
    assert store.verify("tiny-coder").ok
    path.write_bytes(b"\0" + payload[1:])
    # The cheap look still takes the file for right, since only reading it shows the damage …
    assert store.installed()[0].verified is False
    verdict = store.verify("tiny-coder")
    assert not verdict.ok
    assert verdict.sha256 != entry.sha256
    # … and from then on everybody knows.
    with pytest.raises(ModelCorrupt):
        store.locate("tiny-coder")
    assert store.pull("tiny-coder").read_bytes() == payload
    assert store.locate("tiny-coder") == path
    assert len(hub.requests) == 2


def test_a_file_that_was_put_there_by_hand_is_checked_and_kept(
    store: ModelStore, entry: CatalogEntry, hub: WebServer, payload: bytes
) -> None:
    store.folder.mkdir()
    (store.folder / entry.file).write_bytes(payload)
    seen: list[PullProgress] = []
    store.pull("tiny-coder", seen.append)
    assert {at.phase for at in seen} == {"verify"}
    assert hub.requests == []
    seen.clear()
    store.pull("tiny-coder", seen.append)
    assert seen == []


def test_remove_frees_the_file_and_what_lies_beside_it(
    store: ModelStore, entry: CatalogEntry, hub: WebServer, hub_path: str, payload: bytes
) -> None:
    hub.files[hub_path] = payload
    path = store.pull("tiny-coder")
    path.with_name(entry.file + ".partial").write_bytes(b"123")
    (store.folder / "own.gguf").write_bytes(b"1")
    copies = store.folder / UNPACKED
    copies.mkdir()
    for name in (f"{path.stem}.{16 * '0'}.gguf", f"own.{16 * 'a'}.gguf", f"own.v2.{16 * 'a'}.gguf"):
        (copies / name).write_bytes(b"12345")
    assert store.remove("tiny-coder") == entry.size + 3 + 5
    assert store.remove("own.gguf") == 1 + 5
    assert [copy.name for copy in copies.iterdir()] == [f"own.v2.{16 * 'a'}.gguf"]
    assert store.installed() == ()
    assert not any(file.suffix in {".partial", ".checked"} for file in store.folder.iterdir())
    with pytest.raises(ModelMissing):
        store.remove("tiny-coder")
    with pytest.raises(ModelUnknown):
        store.remove("../models/own.gguf")


def test_nothing_is_removed_while_it_is_fetched(store: ModelStore, entry: CatalogEntry) -> None:
    store.folder.mkdir()
    path = store.folder / entry.file
    path.write_bytes(b"1")
    with (
        filelock.FileLock(path.with_name(entry.file + ".lock")),
        pytest.raises(ModelError, match="another process"),
    ):
        store.remove("tiny-coder")
    assert path.exists()


# Pulling


def test_a_pull_reports_its_source_and_comes_to_the_end(
    store: ModelStore, entry: CatalogEntry, hub: WebServer, hub_path: str, payload: bytes
) -> None:
    hub.files[hub_path] = payload
    seen: list[PullProgress] = []
    path = store.pull("tiny-coder", seen.append)
    assert path.read_bytes() == payload
    assert {at.source for at in seen} == {"Hugging Face"}
    last = {at.phase: at.done_bytes for at in seen}
    assert last == {"download": entry.size, "verify": entry.size}
    assert {at.total_bytes for at in seen} == {entry.size}


def test_sources_are_tried_in_order_and_the_message_says_why_each_failed(
    tmp_path: Path, entry: CatalogEntry, payload: bytes
) -> None:
    first = Source("first", error=SourceFailed("it is closed"))
    wrong = Source("second", data=payload[::-1])
    short = Source("third", data=payload[:10])
    store = _store(tmp_path, entry, first, wrong, short)
    with pytest.raises(ModelDownloadFailed) as failure:
        store.pull("tiny-coder")
    message = str(failure.value)
    assert "first: it is closed; second: what it delivers has another SHA-256" in message
    assert "third: it delivered 10 of" in message
    assert "NEXO_MODEL_DIR" in message
    assert _nothing_under_its_name(store)


def test_wrong_bytes_are_thrown_away_and_the_next_source_begins_anew(
    tmp_path: Path, entry: CatalogEntry, payload: bytes
) -> None:
    notes: list[str] = []
    wrong, right = Source("wrong", payload[::-1]), Source("right", payload)
    store = _store(tmp_path, entry, wrong, right)
    path = store.pull("tiny-coder", lambda at: notes.append(at.note))
    assert path.read_bytes() == payload
    assert any(note.startswith("wrong: what it delivers") for note in notes)
    assert (wrong.calls, right.calls) == (1, 1)


def test_a_source_is_not_blamed_for_the_bytes_of_another(
    tmp_path: Path, entry: CatalogEntry, payload: bytes
) -> None:
    cut = Source("cut", b"\0" * 1000, SourceFailed("it broke off"))
    right = Source("right", payload)
    path = _store(tmp_path, entry, cut, right).pull("tiny-coder")
    assert path.read_bytes() == payload
    assert right.calls == 2


def test_a_pull_that_was_ended_in_its_last_check_needs_no_network(
    tmp_path: Path, entry: CatalogEntry, payload: bytes
) -> None:
    source = Source("never", error=SourceFailed("asked"))
    store = _store(tmp_path, entry, source)
    store.folder.mkdir()
    (store.folder / f"{entry.file}.partial").write_bytes(payload)
    assert store.pull("tiny-coder").read_bytes() == payload
    assert source.calls == 0


def test_force_fetches_again_and_keeps_the_old_file_until_then(
    tmp_path: Path, entry: CatalogEntry, payload: bytes
) -> None:
    path = _store(tmp_path, entry, Source("good", payload)).pull("tiny-coder")
    with pytest.raises(ModelDownloadFailed):
        _store(tmp_path, entry, Source("bad", payload[::-1])).pull("tiny-coder", force=True)
    assert path.read_bytes() == payload
    again = Source("good", payload)
    _store(tmp_path, entry, again).pull("tiny-coder", force=True)
    assert again.calls == 1


def test_too_little_room_is_said_before_anything_is_asked_for(
    tmp_path: Path, environ: dict[str, str], entry: CatalogEntry, hub: WebServer
) -> None:
    store = ModelStore(tmp_path / "models", environ, catalog=(entry,), disk_free=lambda _: entry.size - 1)
    with pytest.raises(DiskFull, match="NEXO_HOME"):
        store.pull("tiny-coder")
    assert hub.requests == []


def test_a_disk_that_fills_up_ends_the_pull_at_once(tmp_path: Path, entry: CatalogEntry) -> None:
    full = Source("full", b"12", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    other = Source("other")
    store = _store(tmp_path, entry, full, other)
    with pytest.raises(DiskFull, match="kept"):
        store.pull("tiny-coder")
    assert other.calls == 0
    assert _nothing_under_its_name(store)


def test_a_folder_that_cannot_be_used_is_one_sentence(tmp_path: Path, entry: CatalogEntry) -> None:
    (tmp_path / "models").write_text("a file where the folder should be")
    with pytest.raises(ModelError, match="cannot be used"):
        _store(tmp_path, entry, Source("any")).pull("tiny-coder")


def test_cancelling_keeps_what_came_and_the_next_pull_goes_on_from_there(
    store: ModelStore, entry: CatalogEntry, hub: WebServer, hub_path: str, payload: bytes
) -> None:
    hub.files[hub_path] = payload
    hub.hold_after = 2 * CHUNK
    cancel = threading.Event()

    def stop(at: PullProgress) -> None:
        if at.done_bytes:
            cancel.set()

    with pytest.raises(ModelDownloadCancelled):
        store.pull("tiny-coder", stop, cancel)
    assert _nothing_under_its_name(store)
    kept = (store.folder / f"{entry.file}.partial").stat().st_size
    assert 0 < kept < entry.size
    hub.hold_after = None
    assert store.pull("tiny-coder").read_bytes() == payload
    assert hub.ranges_asked == [None, f"bytes={kept}-"]


def test_cancelling_reaches_a_pull_that_waits_for_a_silent_server(store: ModelStore, hub: WebServer) -> None:
    hub.silent = True
    cancel = threading.Event()
    ended: list[BaseException] = []

    def pull() -> None:
        try:
            store.pull("tiny-coder", cancel=cancel)
        except ModelDownloadCancelled as error:
            ended.append(error)

    thread = threading.Thread(target=pull)
    thread.start()
    assert hub.started.wait(30)
    cancel.set()
    thread.join(30)
    assert len(ended) == 1


# Several processes


def test_two_processes_share_one_download(
    store: ModelStore,
    entry: CatalogEntry,
    hub: WebServer,
    hub_path: str,
    payload: bytes,
    pulling_process: Callable[[Path, CatalogEntry], subprocess.Popen[str]],
) -> None:
    hub.files[hub_path] = payload
    hub.hold_after = CHUNK
    other = pulling_process(store.folder, entry)
    assert hub.started.wait(60)
    notes: set[str] = set()

    def watch(at: PullProgress) -> None:
        notes.add(at.note)
        if at.note == "another process is fetching it":
            hub.gate.set()

    path = store.pull("tiny-coder", watch)
    output, _ = other.communicate(timeout=60)
    assert path.read_bytes() == payload
    assert output.splitlines()[-1] == str(path)
    assert "another process is fetching it" in notes
    assert len(hub.requests) == 1


def test_waiting_for_another_process_can_be_cancelled(store: ModelStore, entry: CatalogEntry) -> None:
    store.folder.mkdir()
    cancel = threading.Event()
    with (
        filelock.FileLock(store.folder / f"{entry.file}.lock"),
        pytest.raises(ModelDownloadCancelled),
    ):
        store.pull("tiny-coder", lambda _: cancel.set(), cancel)


def test_a_killed_process_leaves_a_pull_that_can_be_continued(
    store: ModelStore,
    entry: CatalogEntry,
    hub: WebServer,
    hub_path: str,
    payload: bytes,
    pulling_process: Callable[[Path, CatalogEntry], subprocess.Popen[str]],
) -> None:
    hub.files[hub_path] = payload
    hub.hold_after = 2 * CHUNK
    other = pulling_process(store.folder, entry)
    assert other.stdout is not None
    for line in other.stdout:
        if int(line.split()[0]) >= CHUNK:
            break
    other.kill()
    other.wait()
    hub.hold_after = None
    assert _nothing_under_its_name(store)
    assert store.pull("tiny-coder").read_bytes() == payload
    assert hub.ranges_asked[-1] is not None


def test_a_real_chain_falls_from_the_hub_to_a_plain_url(
    tmp_path: Path,
    environ: dict[str, str],
    make_entry: MakeEntry,
    hub: WebServer,
    web: WebServer,
    payload: bytes,
    caplog: pytest.LogCaptureFixture,
) -> None:
    web.files["/m.gguf"] = payload
    entry = make_entry(urls=(f"{web.url}/m.gguf",))
    sources = (HuggingFaceSource(environ), UrlSource("plain URL"))
    with caplog.at_level("INFO", "nexo_lsp.models"):
        ModelStore(tmp_path / "models", environ, sources, (entry,)).pull("tiny-coder")
    said = " | ".join(caplog.messages)
    assert "Hugging Face could not deliver tiny-coder: 127.0.0.1 answers 404 Not Found" in said
    assert "tiny-coder came from plain URL" in said
    assert len(hub.requests) == 1

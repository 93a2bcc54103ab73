"""What the store must not do: lose or use a file that is not the model, or go where it may not."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nexo_lsp.errors import ModelDownloadFailed, ModelMissing, ModelUnknown
from nexo_lsp.models.catalog import CatalogEntry
from nexo_lsp.models.store import ModelStore
from nexo_lsp.models.transfer import Report, SourceFailed
from nexo_lsp.settings import Settings

if TYPE_CHECKING:
    from conftest import WebServer

MakeEntry = Callable[..., CatalogEntry]


class Source:
    """Delivers `data`, or nothing."""

    name = "source"

    def __init__(self, data: bytes = b"") -> None:
        self._data = data

    def fetch(self, entry: CatalogEntry, target: Path, progress: Report, cancel: threading.Event) -> None:
        if not self._data:
            raise SourceFailed("no network")
        target.write_bytes(self._data)


@pytest.fixture
def entry(make_entry: MakeEntry) -> CatalogEntry:
    return make_entry()


def _store(tmp_path: Path, entry: CatalogEntry, source: Source) -> ModelStore:
    return ModelStore(tmp_path / "models", {}, [source], (entry,))


def test_a_bare_name_is_one_of_the_models_folder(
    tmp_path: Path, entry: CatalogEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = _store(tmp_path, entry, Source())
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name in ("own.gguf", "tiny-coder.gguf"):
        Path(name).write_bytes(b"of whoever made this folder")
    with pytest.raises(ModelUnknown, match=r"\./own\.gguf"):
        store.locate("own.gguf")
    with pytest.raises(ModelMissing):
        store.locate("tiny-coder.gguf")
    assert store.locate("./own.gguf").samefile("own.gguf")
    store.folder.mkdir()
    (store.folder / "own.gguf").write_bytes(b"the user's")
    assert store.locate("own.gguf").read_bytes() == b"the user's"


def test_a_file_that_is_not_the_published_one_stays_when_the_network_fails(
    tmp_path: Path, entry: CatalogEntry, payload: bytes
) -> None:
    store = _store(tmp_path, entry, Source())
    store.folder.mkdir()
    own = store.folder / entry.file
    own.write_bytes(b"the user's own")
    with pytest.raises(ModelDownloadFailed):
        store.pull("tiny-coder")
    assert own.read_bytes() == b"the user's own"
    # When the published one is there, the other one makes room for it.
    assert _store(tmp_path, entry, Source(payload)).pull("tiny-coder").read_bytes() == payload
    assert (store.folder / "tiny-coder.before.gguf").read_bytes() == b"the user's own"


def test_a_version_that_was_touched_stays_beside_the_next_one_of_the_same_size(
    tmp_path: Path, make_entry: MakeEntry, payload: bytes
) -> None:
    old = _store(tmp_path, make_entry(), Source(payload)).pull("tiny-coder")
    os.utime(old, (1, 1))
    newer = make_entry(payload[::-1])
    new = _store(tmp_path, newer, Source(payload[::-1])).pull("tiny-coder")
    assert new.read_bytes() == payload[::-1]
    assert old.read_bytes() == payload


def test_offline_nothing_is_fetched_from_any_network_but_what_is_here(
    tmp_path: Path,
    environ: dict[str, str],
    entry: CatalogEntry,
    hub: WebServer,
    hub_path: str,
    payload: bytes,
) -> None:
    hub.files = {hub_path: payload, f"/own/{entry.file}": payload}
    urls = {**environ, "NEXO_MODEL_URL": f"{hub.url}/own"}
    store = ModelStore(tmp_path / "models", urls, catalog=(entry,))
    store.follow(Settings(offline=True))
    with pytest.raises(
        ModelDownloadFailed, match=r"NEXO_MODEL_URL: nexo\.offline is set; .*Hugging Face: nexo"
    ):
        store.pull("tiny-coder")
    assert (hub.requests, hub.heads) == ([], [])
    (tmp_path / entry.file).write_bytes(payload)
    local = ModelStore(tmp_path / "models", {**urls, "NEXO_MODEL_DIR": str(tmp_path)}, catalog=(entry,))
    local.follow(Settings(offline=True))
    assert local.pull("tiny-coder").read_bytes() == payload
    store.follow(Settings())
    assert store.pull("tiny-coder", force=True).read_bytes() == payload
    assert len(hub.requests) == 1

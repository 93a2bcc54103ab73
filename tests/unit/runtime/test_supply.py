"""What engines are given for a name."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import pytest

from nexo_lsp.errors import ModelMissing, ModelUnknown
from nexo_lsp.models.catalog import CatalogEntry
from nexo_lsp.models.store import ModelStore
from nexo_lsp.models.transfer import Report
from nexo_lsp.models.versions import short
from nexo_lsp.offload import inline
from nexo_lsp.runtime.supply import Fetch, ModelSupply
from nexo_lsp.settings import Settings

OLD, NEW = b"old!!", b"newer!"


class Host:
    """Says what a user says, and delivers what there is now."""

    name = "source"

    def __init__(self, *, agrees: bool) -> None:
        self.asked = 0
        self._agrees = agrees

    def fetch(self, entry: CatalogEntry, target: Path, progress: Report, cancel: threading.Event) -> None:
        target.write_bytes(NEW if entry.size == len(NEW) else OLD)

    async def confirm_download(self, model: str, size_bytes: int) -> bool:
        self.asked += 1
        return self._agrees

    async def download(self, model: str, size_bytes: int, fetch: Fetch) -> Path:
        return fetch(lambda _: None, threading.Event())


def _entry(data: bytes) -> CatalogEntry:
    return CatalogEntry("tiny", "tiny.gguf", len(data), hashlib.sha256(data).hexdigest())


def _supply(store: ModelStore, host: Host) -> ModelSupply:
    settings = Settings.model_validate({"models": {"auto_download": "ask"}})
    return ModelSupply(lambda: store, host, inline, lambda: settings, lambda: True)


async def test_no_other_version_is_fetched_than_the_one_that_is_named(tmp_path: Path) -> None:
    host = Host(agrees=False)
    store = ModelStore(tmp_path, {}, [host], [_entry(NEW)])
    supply = _supply(store, host)
    with pytest.raises(ModelMissing, match="0123abcd"):
        await supply.file("tiny@0123abcd")
    assert host.asked == 0
    with pytest.raises(ModelMissing):
        await supply.file(f"tiny@{short(_entry(NEW).sha256)}")
    assert host.asked == 1
    await supply.close()


async def test_the_newest_is_fetched_by_its_name_also_while_an_older_one_is_chosen(tmp_path: Path) -> None:
    host = Host(agrees=True)
    before = ModelStore(tmp_path, {}, [host], [_entry(OLD)])
    before.pull("tiny")
    before.versions.pin(_entry(OLD))
    supply = _supply(ModelStore(tmp_path, {}, [host], [_entry(NEW)]), host)
    assert (await supply.file(f"tiny@{short(_entry(NEW).sha256)}")).read_bytes() == NEW
    assert (await supply.file("tiny")).read_bytes() == OLD
    await supply.close()


async def test_a_file_of_a_workspace_that_is_not_trusted_is_given_to_no_engine(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "models", {}, ())
    own, project = tmp_path / "own", tmp_path / "project"
    for folder in (own, project):
        folder.mkdir()
        (folder / "m.gguf").write_bytes(b"GGUF")
    (own / "link.gguf").symlink_to(project / "m.gguf")
    supply = ModelSupply(lambda: store, Host(agrees=True), inline, Settings, lambda: False)
    supply.closed_folders = (project,)
    for path in (project / "m.gguf", own / "link.gguf"):
        with pytest.raises(ModelUnknown, match="not trusted"):
            await supply.file(str(path))
    with pytest.raises(ModelUnknown, match="another machine"):
        await supply.file("//host/share/m.gguf")
    assert await supply.file(str(own / "m.gguf")) == own / "m.gguf"
    supply.closed_folders = ()
    assert await supply.file(str(project / "m.gguf")) == project / "m.gguf"

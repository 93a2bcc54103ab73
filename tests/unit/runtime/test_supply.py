"""What engines are given for a name."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from nexo_lsp.errors import ModelMissing
from nexo_lsp.models.catalog import CatalogEntry
from nexo_lsp.models.store import ModelStore
from nexo_lsp.models.transfer import Report
from nexo_lsp.offload import inline
from nexo_lsp.runtime.supply import Fetch, ModelSupply
from nexo_lsp.settings import Settings


class Asked:
    """A source and a host that count."""

    name = "asked"
    count = 0

    def fetch(self, entry: CatalogEntry, target: Path, progress: Report, cancel: threading.Event) -> None:
        raise AssertionError("nothing is to be fetched")

    async def confirm_download(self, model: str, size_bytes: int) -> bool:
        self.count += 1
        return False

    async def download(self, model: str, size_bytes: int, fetch: Fetch) -> Path:
        raise AssertionError("nothing is to be fetched")


async def test_no_other_version_is_fetched_than_the_one_that_is_named(tmp_path: Path) -> None:
    asked = Asked()
    store = ModelStore(tmp_path, {}, [asked], [CatalogEntry("tiny", "tiny.gguf", 5, 64 * "a")])
    settings = Settings.model_validate({"models": {"auto_download": "ask"}})
    supply = ModelSupply(lambda: store, asked, inline, lambda: settings, lambda: True)
    with pytest.raises(ModelMissing, match="0123abcd"):
        await supply.file("tiny@0123abcd")
    assert asked.count == 0
    with pytest.raises(ModelMissing):
        await supply.file("tiny@aaaaaaaa")
    assert asked.count == 1
    await supply.close()

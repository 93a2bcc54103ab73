"""Which model file the engine gets while the settings change."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from nexo_lsp.app import create_app
from nexo_lsp.models.catalog import CATALOG
from nexo_lsp.settings import Layer
from tests.unit.pipeline.conftest import QuietHost


class SlowHost(QuietHost):
    """Downloads nothing, and says so once it may go on."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.go_on = asyncio.Event()

    async def download(self, model: str, size_bytes: int, fetch: Any) -> Path:
        self.asked.append(model)
        await self.go_on.wait()
        return Path(model)


async def test_another_model_is_not_answered_with_the_one_that_is_being_fetched(tmp_path: Path) -> None:
    host = SlowHost()
    app = create_app({"NEXO_HOME": str(tmp_path), "NEXO_MODELS_AUTO_DOWNLOAD": "always"}, host)
    names = [entry.name for entry in CATALOG][:2]
    waiting: list[asyncio.Task[Path]] = []
    for name in names:
        app.configure([Layer("test", {"model": name})])
        waiting.append(asyncio.create_task(app.room.model_file()))
        await asyncio.sleep(0)  # the model is the one of the moment when it is asked for
    while len(host.asked) < 2:  # noqa: ASYNC110 - the host has no event for it
        await asyncio.sleep(0)
    host.go_on.set()
    assert [path.name for path in await asyncio.gather(*waiting)] == names
    assert sorted(host.asked) == sorted(names)
    await app.close()

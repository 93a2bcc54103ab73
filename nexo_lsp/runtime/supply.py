"""Model files for engines: what is here at once, what is not here after asking and fetching."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from nexo_lsp.errors import ModelCorrupt, ModelDownloadCancelled, ModelMissing, ModelUnknown
from nexo_lsp.models.references import is_reference
from nexo_lsp.offload import Offload
from nexo_lsp.settings import Settings

if TYPE_CHECKING:
    # The store brings an HTTP library along; a server that already has its model never needs it at start.
    from nexo_lsp.models.catalog import CatalogEntry
    from nexo_lsp.models.progress import PullProgress
    from nexo_lsp.models.store import ModelStore

_log = logging.getLogger(__name__)

Fetch = Callable[[Callable[["PullProgress"], None], threading.Event], Path]
"""Runs a download in this thread: told where to report, and what ends it."""


class Asks(Protocol):
    """Who asks the user, and shows them a download."""

    async def confirm_download(self, model: str, size_bytes: int) -> bool:
        """Ask the user whether a model may be fetched; a size of 0 is not known."""
        ...

    async def download(self, model: str, size_bytes: int, fetch: Fetch) -> Path:
        """Run `fetch(progress, cancel)` away from the loop, showing progress; `cancel` is set to end it."""
        ...


class ModelSupply:
    """One place through which every engine gets its model: equal wishes share one download."""

    def __init__(
        self,
        store: Callable[[], ModelStore],
        host: Asks,
        offload: Offload,
        settings: Callable[[], Settings],
        trusted: Callable[[], bool],
    ) -> None:
        """`trusted`: whether the user trusts the workspace, whose settings may have named the model."""
        self.closed_folders: tuple[Path, ...] = ()
        """Folders that the user does not trust: nothing in them is given to an engine to be read."""
        self._trusted = trusted
        self._store = store
        self._host = host
        self._offload = offload
        self._settings = settings
        self._fetching: dict[str, asyncio.Task[Path]] = {}
        self._declined: set[str] = set()
        self._leases: dict[str, contextlib.ExitStack] = {}

    async def file(self, reference: str) -> Path:
        """The file of a model; fetched first if it is missing or damaged, and the user lets it be.

        Raises the kinds of `ModelError`.
        """
        try:
            return await self._offload(lambda: self._held(reference, self._located(reference)))
        except (ModelMissing, ModelCorrupt) as missing:
            entry = self._store().fetched_as(reference)
            if entry is None or not self.may_fetch(entry.name):
                raise
            path = await asyncio.shield(self._fetch(reference, entry, missing))
            return await self._offload(lambda: self._held(reference, path))

    def _located(self, reference: str) -> Path:
        """Where the model lies; raises `ModelUnknown` for a place that nobody said they trust."""
        if not self._trusted() and reference.startswith(("\\\\", "//")):
            raise ModelUnknown(f"{reference} is on another machine, and this workspace is not trusted.")
        path = self._store().locate(reference)
        real = path.resolve()
        if any(real.is_relative_to(folder.resolve()) for folder in self.closed_folders):
            raise ModelUnknown(
                f"The model {path} lies in a workspace that is not trusted; trust the workspace, or move the "
                "file elsewhere and name it in nexo.model."
            )
        return path

    def may_fetch(self, name: str) -> bool:
        """Whether a model may be fetched now, or the user asked."""
        settings = self._settings()
        allowed = settings.models.auto_download != "never" and not settings.offline
        return allowed and name not in self._declined

    async def fetch_ahead(self, reference: str, then: Callable[[], Awaitable[None]]) -> None:
        """Fetch a model that nobody waits for, and call `then`; what goes wrong is only logged."""
        try:
            await self.file(reference)
        except (ModelMissing, ModelCorrupt) as error:
            _log.info("%s is not fetched: %s", reference, error)
        else:
            await then()

    def ask_again(self) -> None:
        """The settings changed: what was declined may be asked for once more."""
        self._declined.clear()

    async def close(self) -> None:
        """End every download in good order; what came so far is kept."""
        fetching = set(self._fetching.values())
        for task in fetching:
            task.cancel()
        if fetching:
            # Waited for, so that what was being written is closed in good order.
            await asyncio.wait(fetching)
        await self._offload(self.release)

    def release(self, but: Collection[str] = ()) -> None:
        """Let go of the models that engines had, except those named `but` here."""
        for reference in [one for one in self._leases if one not in but]:
            self._leases.pop(reference).close()

    def _held(self, reference: str, path: Path) -> Path:
        """`path`, which from here on no process removes to make room."""
        if reference not in self._leases:
            lease = contextlib.ExitStack()
            lease.enter_context(self._store().in_use(path))
            self._leases[reference] = lease
        return path

    def _fetch(
        self, reference: str, entry: CatalogEntry, missing: ModelMissing | ModelCorrupt
    ) -> asyncio.Task[Path]:
        name = entry.name
        fetching = self._fetching.get(name)
        if fetching is None:
            loop = asyncio.get_running_loop()
            work = self._fetched(reference, entry, missing)
            fetching = loop.create_task(work, name="nexo:fetch-model")
            self._fetching[name] = fetching
            fetching.add_done_callback(lambda task: self._ended(name, task))
        return fetching

    async def _fetched(
        self, reference: str, entry: CatalogEntry, missing: ModelMissing | ModelCorrupt
    ) -> Path:
        name, size = entry.name, entry.size
        from nexo_lsp.models.versions import split_version

        # A file that lies elsewhere under an entry's name is fetched as that entry.
        version = split_version(reference)[1]
        wanted = reference if is_reference(reference) else f"{name}@{version}" if version else name
        # An address may be a workspace's idea: then the user is asked, whatever they said of models.
        foreign = is_reference(reference) and not self._trusted()
        asks = foreign or self._settings().models.auto_download == "ask"
        if asks and not await self._host.confirm_download(name, size):
            self._declined.add(name)
            raise missing

        def fetch(progress: Callable[[PullProgress], None], cancel: threading.Event) -> Path:
            return self._store().pull(wanted, progress, cancel)

        try:
            return await self._host.download(name, size, fetch)
        except ModelDownloadCancelled:
            # The next keystroke would begin it again; a change of the settings asks anew.
            self._declined.add(name)
            raise

    def _ended(self, name: str, task: asyncio.Task[Path]) -> None:
        del self._fetching[name]
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.warning("the model could not be fetched: %s", error)

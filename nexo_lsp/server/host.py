"""What the app needs from an editor: a question before a download, its progress, and messages."""

from __future__ import annotations

import asyncio
import logging
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from lsprotocol import types

from nexo_lsp.offload import in_thread
from nexo_lsp.server.progress import Progress

if TYPE_CHECKING:
    from nexo_lsp.app import Fetch
    from nexo_lsp.models.store import PullProgress
    from nexo_lsp.server.language_server import NexoServer

log = logging.getLogger(__name__)

_YES: Final = "Download"
_NO: Final = "Not now"
_LEVELS: Final = {
    "error": types.MessageType.Error,
    "warning": types.MessageType.Warning,
    "info": types.MessageType.Info,
}


def megabytes(size: int) -> str:
    """A size as people read it, in decimal megabytes as download pages give them."""
    return f"{size / 1_000_000:,.0f} MB"


def described(state: PullProgress) -> tuple[str, int]:
    """What a progress bar says of a download, and its percentage."""
    done, total = state.done_bytes, max(1, state.total_bytes)
    percentage = min(100, done * 100 // total)
    if state.phase == "verify":
        return f"verifying {megabytes(total)}", percentage
    message = f"{megabytes(done)} of {megabytes(total)}"
    if state.seconds_left is not None:
        left = round(state.seconds_left)
        message += f", {state.bytes_per_s / 1_000_000:.1f} MB/s, {left // 60}:{left % 60:02} left"
    return f"{message} ({state.note})" if state.note else message, percentage


class EditorHost:
    """The `Host` of an app inside an editor."""

    def __init__(self, server: NexoServer) -> None:
        self._server = server
        self._asked: dict[str, asyncio.Task[bool]] = {}
        self._running: set[threading.Event] = set()

    async def confirm_download(self, model: str, size_bytes: int) -> bool:
        """Ask the user once a session; who asks meanwhile, or later, gets the same answer."""
        task = self._asked.get(model)
        if task is None:
            task = self._server.spawn(self._ask(model, size_bytes), f"question about {model}")
            self._asked[model] = task
        return await asyncio.shield(task)

    async def _ask(self, model: str, size_bytes: int) -> bool:
        answer = await self._server.window_show_message_request_async(
            types.ShowMessageRequestParams(
                type=types.MessageType.Info,
                message=f"nexo-lsp needs the model {model} ({megabytes(size_bytes)}). It is downloaded once "
                "and then runs on this machine only. Download it now?",
                actions=[types.MessageActionItem(title=_YES), types.MessageActionItem(title=_NO)],
            )
        )
        agreed = answer is not None and answer.title == _YES
        log.info("download of %s (%s): %s", model, megabytes(size_bytes), "agreed" if agreed else "declined")
        return agreed

    async def download(self, model: str, size_bytes: int, fetch: Fetch) -> Path:
        """Run `fetch` in a thread under a progress bar; the bar's cancel, or our task's, stops it."""
        cancel = threading.Event()
        progress = Progress(self._server, f"Downloading {model}", cancel.set, percentage=0)
        progress.report(f"0 of {megabytes(size_bytes)}", 0)
        loop = asyncio.get_running_loop()

        def reported(state: PullProgress) -> None:
            loop.call_soon_threadsafe(progress.report, *described(state))

        self._running.add(cancel)
        try:
            return await in_thread(lambda: fetch(reported, cancel))
        finally:
            cancel.set()
            self._running.discard(cancel)
            progress.end()

    def notice(self, message: str, level: Literal["error", "warning", "info"]) -> None:
        """One message to the user."""
        self._server.failures.notice_once(message, _LEVELS[level])

    def close(self) -> None:
        """Stop downloads, so that their threads end."""
        for cancel in self._running:
            cancel.set()

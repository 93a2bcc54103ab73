"""The terminal as the app's surroundings: text that is safe to print, a live status line, downloads."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from rich.console import Console
from rich.live import Live
from rich.text import Text

from nexo_lsp.cli.models import pull_bar
from nexo_lsp.models.progress import ProgressReport
from nexo_lsp.offload import Offload, in_thread

# Control characters move the cursor or change the screen, and direction marks make code look like other code:
# both are shown by name, whoever wrote them. Tabs and line ends are the caller's.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")

_FRAMES, _PLAIN_FRAMES, _FRAMES_PER_S = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏", "-\\|/", 8

Level = Literal["error", "warning", "info"]

_LEVEL_STYLES = {"error": "bold red", "warning": "yellow", "info": ""}


class Fetch(Protocol):
    """A download that waits to be run where it may block."""

    def __call__(self, progress: ProgressReport, cancel: threading.Event, /) -> Path:
        """Have the file here, telling how far it is; `cancel` ends it in good order."""
        ...


def visible(text: str) -> str:
    """`text` with everything that a terminal would obey, or that hides, written out (`<U+001B>`)."""
    return _UNPRINTABLE.sub(lambda match: f"<U+{ord(match.group()):04X}>", text)


@dataclass(frozen=True, slots=True)
class Screen:
    """Where results and messages go. They share one console if both go to the same terminal."""

    results: Console
    messages: Console

    @staticmethod
    def standard() -> Screen:
        """The process's own stdout and stderr."""
        results = Console(highlight=False)
        messages = Console(stderr=True, highlight=False)
        # Lines that come while the status line is live must pass through the console that draws it.
        return Screen(results, results if results.is_terminal and messages.is_terminal else messages)

    def tell(self, message: str, level: Level = "info") -> None:
        """One message to the user."""
        text = Text.assemble(("nexo-lsp: ", "dim"), (visible(message), _LEVEL_STYLES[level]))
        self.messages.print(text, soft_wrap=True)


class StatusLine:
    """One line that is drawn over and over below the results, and leaves nothing behind.

    Nothing at all is drawn where messages do not go to a terminal.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._text = ""

    def show(self, text: str) -> None:
        """Say this from now on."""
        self._text = text
        if self._live is None and self._console.is_terminal:
            # The spinner's own clock redraws; `show` may be called for every token.
            self._live = Live(
                get_renderable=self._render,
                console=self._console,
                transient=True,
                refresh_per_second=_FRAMES_PER_S,
            )
            self._live.start()

    def hide(self) -> None:
        """Take the line away until the next `show`."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _render(self) -> Text:
        frames = _FRAMES if self._console.encoding.startswith("utf") else _PLAIN_FRAMES
        frame = frames[int(self._console.get_time() * _FRAMES_PER_S) % len(frames)]
        line = Text(no_wrap=True, overflow="ellipsis")
        return line.append(frame, "cyan").append(f" {visible(self._text)}")


class TerminalHost:
    """The app's `Host` on the command line: it fetches without asking, since the user is watching."""

    def __init__(self, screen: Screen, status: StatusLine, offload: Offload = in_thread) -> None:
        self._screen = screen
        self._status = status
        self._offload = offload

    async def confirm_download(self, model: str, size_bytes: int) -> bool:
        """Yes: a bar shows what goes on, and Ctrl-C ends it."""
        return True

    async def download(self, model: str, size_bytes: int, fetch: Fetch) -> Path:
        """Run `fetch` with a progress bar. Being cancelled ends it in good order and keeps what came."""
        cancel = threading.Event()
        self._status.hide()
        with pull_bar(self._screen.messages, model) as report:
            running = asyncio.ensure_future(self._offload(lambda: fetch(report, cancel)))
            with _cancelling(cancel.set):
                try:
                    return await asyncio.shield(running)
                except asyncio.CancelledError:
                    cancel.set()
                    await asyncio.wait([running])
                    if not running.cancelled() and (error := running.exception()) is not None:
                        self._screen.tell(str(error), "warning")
                    raise

    def notice(self, message: str, level: Level) -> None:
        """Print one message."""
        self._screen.tell(message, level)


@contextmanager
def _cancelling(cancel: Callable[[], None]) -> Generator[None]:
    try:
        yield
    except BaseException:
        cancel()
        raise

"""How errors reach the user: as the answer of a request, as one message, or as a line in the log."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from lsprotocol import types

from nexo_lsp.errors import DisabledError, DocumentError, EngineClosed, NexoError

log = logging.getLogger(__name__)


class Failures:
    """Maps errors to what a client may see; remembers which messages were shown."""

    def __init__(self, show: Callable[[str, types.MessageType], None], log_file: Path | None) -> None:
        self._show = show
        self._log_file = log_file
        self._shown: set[str] = set()

    def message(self, error: BaseException) -> str:
        """What the user reads. The details of an error that nobody foresaw go to the log only."""
        if isinstance(error, NexoError):
            return str(error)
        log.error("unexpected error", exc_info=error)
        where = f"; the details are in {self._log_file}" if self._log_file else ""
        return f"Something went wrong inside nexo-lsp ({type(error).__name__}){where}"

    def response(self, error: BaseException) -> types.ResponseError:
        """The error answer of a request."""
        message = self.message(error)
        if isinstance(error, NexoError):
            log.info("request failed: %s", message)
            return types.ResponseError(
                code=types.LSPErrorCodes.RequestFailed.value, message=message, data={"code": error.code}
            )
        return types.ResponseError(code=types.ErrorCodes.InternalError.value, message=message)

    def tell(self, error: BaseException) -> None:
        """Show an error that somebody waits for."""
        message = self.message(error)
        log.info("told the user: %s", message)
        self._show(message, types.MessageType.Error)

    def tell_once(self, error: BaseException) -> None:
        """Show an error of background work: once, not at every keystroke or save.

        Nothing is shown of work that the user ended: by a switch, by closing the document, or by settings
        that ask for another engine.
        """
        message = self.message(error)
        if isinstance(error, DisabledError | DocumentError | EngineClosed):
            log.debug("not answered: %s", message)
            return
        log.warning("background work failed: %s", message)
        self.notice_once(message, types.MessageType.Error)

    def notice_once(self, message: str, level: types.MessageType) -> None:
        """Show a message unless the same one was shown before."""
        if message not in self._shown:
            self._shown.add(message)
            self._show(message, level)

    def forget(self) -> None:
        """Show everything anew: the settings changed, so old errors may be mended or have new causes."""
        self._shown.clear()

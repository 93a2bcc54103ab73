"""Jobs: work that a command starts and that lives on after the command was answered."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from lsprotocol import types

from nexo_lsp.errors import UsageError
from nexo_lsp.server.progress import Progress

if TYPE_CHECKING:
    from nexo_lsp.server.language_server import NexoServer

log = logging.getLogger(__name__)


class Job:
    """One job, with its progress bar and its cancel."""

    def __init__(self, identity: str, title: str) -> None:
        self.id = identity
        self.title = title
        self.progress: Progress | None = None
        self._task: asyncio.Task[None] | None = None

    def attach(self, task: asyncio.Task[None]) -> None:
        """The task that does the work."""
        self._task = task

    def report(self, message: str, percentage: int | None = None) -> None:
        """Show how far the work is."""
        if self.progress is not None:
            self.progress.report(message, percentage)

    def cancel(self) -> None:
        """Stop the work; the engine stops with it."""
        if self._task is not None:
            self._task.cancel()


class Jobs:
    """The jobs of one server that are running."""

    def __init__(self, server: NexoServer) -> None:
        self._server = server
        self._numbers = itertools.count(1)
        self._jobs: dict[str, Job] = {}

    def start(
        self,
        title: str,
        work: Callable[[Job], Awaitable[None]],
        client_token: types.ProgressToken | None = None,
        percentage: int | None = None,
    ) -> Job:
        """Start `work`. Its errors are shown to the user, who waits for it.

        `percentage` is 0 for work whose reports have one, None for the rest.
        """
        job = Job(f"job-{next(self._numbers)}", title)
        self._jobs[job.id] = job
        job.progress = Progress(self._server, title, job.cancel, client_token, percentage)
        job.attach(self._server.spawn(self._run(job, work), title))
        return job

    async def _run(self, job: Job, work: Callable[[Job], Awaitable[None]]) -> None:
        log.info("%s started: %s", job.id, job.title)
        ending = "stopped"
        try:
            await work(job)
            ending = "done"
        except asyncio.CancelledError:
            log.info("%s was stopped", job.id)
            raise
        except Exception as error:  # noqa: BLE001 - whatever happens, the user hears of it and the bar goes
            ending = "failed"
            self._server.failures.tell(error)
        finally:
            self._jobs.pop(job.id, None)
            if job.progress is not None:
                job.progress.end(ending)
            log.info("%s ended: %s", job.id, ending)

    def stop(self, identity: str) -> None:
        """Stop one job. Raises `UsageError` when there is none of that name (it may have ended)."""
        job = self._jobs.get(identity)
        if job is None:
            raise UsageError(f"There is no running job {identity!r}")
        job.cancel()

    def stop_all(self) -> None:
        """Stop every job."""
        for job in list(self._jobs.values()):
            job.cancel()

"""Review as diagnostics: when a review starts, and how its findings are shown.

Findings are pushed, and no `diagnosticProvider` is announced: clients show both what is pushed and what they
pull, and some pull only when a document is opened or changed, so that what comes later would stay hidden.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from lsprotocol import types

from nexo_lsp.errors import NexoError, UsageError
from nexo_lsp.generation import Priority
from nexo_lsp.server.convert import to_diagnostic
from nexo_lsp.server.custom_messages import ReviewParams, ReviewResult

if TYPE_CHECKING:
    from nexo_lsp.documents import Snapshot
    from nexo_lsp.pipeline.findings import Finding
    from nexo_lsp.pipeline.review import ReviewProgress
    from nexo_lsp.server.jobs import Job
    from nexo_lsp.server.language_server import NexoServer

log = logging.getLogger(__name__)


class ReviewTriggers:
    """Starts the reviews that the setting `review.trigger` asks for, and publishes all findings."""

    def __init__(self, server: NexoServer) -> None:
        self._server = server
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._published: set[str] = set()
        self.last_active: str | None = None
        server.app.reviews.on_findings = self._publish

    def opened(self, uri: str) -> None:
        """A document was opened."""
        self.last_active = uri
        self._server.spawn(self._when(uri, "onOpen"), f"review of {uri}")

    def saved(self, uri: str) -> None:
        """A document was saved."""
        self.last_active = uri
        self._server.spawn(self._when(uri, "onOpen", "onSave"), f"review of {uri}")

    def changed(self, uri: str) -> None:
        """A document was changed: wait for a pause."""
        self.last_active = uri
        self._stop_timer(uri)
        review = self._server.app.settings.review
        if review.trigger == "onType":
            self._timers[uri] = asyncio.get_running_loop().call_later(
                review.debounce_ms / 1000, self._paused, uri
            )

    def closed(self, uri: str) -> None:
        """A document was closed: nothing is shown for it any more."""
        self._stop_timer(uri)
        if self.last_active == uri:
            self.last_active = None
        if uri in self._published:
            self._published.discard(uri)
            self._server.text_document_publish_diagnostics(
                types.PublishDiagnosticsParams(uri=uri, diagnostics=[])
            )

    def close(self) -> None:
        """Start nothing more."""
        for uri in list(self._timers):
            self._stop_timer(uri)

    def _stop_timer(self, uri: str) -> None:
        timer = self._timers.pop(uri, None)
        if timer is not None:
            timer.cancel()

    def _paused(self, uri: str) -> None:
        self._timers.pop(uri, None)
        self._server.spawn(self._when(uri, "onType"), f"review of {uri}")

    async def _when(self, uri: str, *triggers: str) -> None:
        await self._server.settings.ready()
        app = self._server.app
        if app.settings.review.trigger not in triggers or app.documents.find(uri) is None:
            return
        try:
            report = await app.reviews.review(uri)
        except NexoError as error:
            self._server.failures.tell_once(error)
        else:
            log.info("reviewed version %d: %d findings", report.version, len(report.findings))

    def _publish(self, snapshot: Snapshot, findings: tuple[Finding, ...]) -> None:
        uri = snapshot.uri
        if not findings and uri not in self._published:
            return
        if findings:
            self._published.add(uri)
        else:
            self._published.discard(uri)
        encoding = self._server.encoding
        self._server.text_document_publish_diagnostics(
            types.PublishDiagnosticsParams(
                uri=uri,
                version=snapshot.version,
                diagnostics=[to_diagnostic(snapshot.lines, finding, encoding) for finding in findings],
            )
        )

    def command(self, uri: str | None, token: types.ProgressToken | None) -> Job:
        """Start the job behind the command `nexo.review`: one document, or the one that was used last."""
        uri = uri or self.last_active
        if uri is None:
            raise UsageError("There is no open document to review")

        async def work(job: Job) -> None:
            def progress(state: ReviewProgress) -> None:
                percentage = state.done * 100 // state.total if state.total else 0
                job.report(
                    f"{state.done} of {state.total}: {state.symbol} ({state.tokens} tokens)", percentage
                )

            await self._server.settings.ready()
            await self._server.app.reviews.review(uri, priority=Priority.FOREGROUND, progress=progress)

        return self._server.jobs.start("Review", work, token, percentage=0)


async def review(server: NexoServer, params: ReviewParams) -> ReviewResult:
    """`nexo/review`: answered when the review of the present version is complete."""
    await server.settings.ready()
    report = await server.app.reviews.review(params.text_document.uri, priority=Priority.FOREGROUND)
    return ReviewResult(findings=len(report.findings), version=report.version, complete=report.complete)

"""Files under review, several at the same time; what they give is shown in the order of the files."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from nexo_lsp.app import App
from nexo_lsp.cli.review_report import FileReview, Report
from nexo_lsp.cli.review_screen import ReviewScreen
from nexo_lsp.documents import Snapshot
from nexo_lsp.errors import (
    DisabledError,
    DocumentError,
    EngineError,
    EngineLoadFailed,
    EngineUnavailable,
    NexoError,
)
from nexo_lsp.generation import Operation, Priority
from nexo_lsp.offload import in_thread
from nexo_lsp.pipeline.findings import Finding
from nexo_lsp.syntax.languages import language_for

# A file with a NUL among its first bytes is binary: the rule of git and of grep.
_SNIFFED_BYTES = 8000


class FileReviews:
    """Reviews the files of a report: `jobs` functions at once, and no more files than that."""

    def __init__(self, app: App, report: Report, show: ReviewScreen, jobs: int) -> None:
        self._app = app
        self._report = report
        self._show = show
        self._jobs = jobs
        self._by_uri: dict[str, FileReview] = {}
        self._in_order = InOrder()
        self._places = {file.path: place for place, file in enumerate(report.files)}
        self._troubles = 0
        """How many files failed since one was reviewed to its end."""
        self._failed = 0
        self._failure: NexoError | None = None

    async def run(self) -> NexoError | None:
        """Review every file; gives the error that cost a file its review, if one did.

        One bad file does not cost the others theirs, but an engine that fails again, over a file that was
        begun after a failure, will not get better: then its error is raised. Being cancelled ends all; what
        was found stays, and is shown.
        """
        reviews = self._app.reviews
        reviews.side_by_side(self._jobs)
        reviews.on_findings = self._found
        running: set[asyncio.Task[None]] = set()
        try:
            for file in self._report.files:
                while len(running) >= self._jobs:
                    running = await _some_end(running)
                running.add(asyncio.get_running_loop().create_task(self._one(file), name="nexo:review-file"))
            while running:
                running = await _some_end(running)
        finally:
            for task in running:
                task.cancel()
            # What else failed is not worth a word beside the error that is raised.
            await asyncio.gather(*running, return_exceptions=True)
            reviews.on_findings = lambda _snapshot, _findings: None
            self._in_order.flush()
        return self._failure

    async def _one(self, file: FileReview) -> None:
        before = self._troubles
        self._show.begin(file, self._places[file.path], len(self._report.files))
        try:
            await self._review(file)
        except EngineError as error:
            again = before > 0 and self._troubles > 0
            hopeless = isinstance(error, (EngineUnavailable, EngineLoadFailed))
            if again or hopeless or len(self._report.files) == 1:
                raise
            self._note(file, error)
        else:
            self._troubles = 0
        finally:
            self._show.end(file)
            self._in_order.done(self._places[file.path])

    def _note(self, file: FileReview, error: EngineError) -> None:
        self._troubles += 1
        self._failed += 1
        self._failure = error
        self._report.problem = f"The engine failed over {self._failed} file{'s' if self._failed > 1 else ''}."
        self._leave_out(file, f"{file.name} was not reviewed to its end: {error}")

    async def _review(self, file: FileReview) -> None:
        try:
            file.text = await in_thread(lambda: _read(file.path))
        except (OSError, ValueError) as error:
            reason = (error.strerror or str(error)) if isinstance(error, OSError) else "it is not UTF-8 text"
            self._leave_out(file, f"{file.name} was left out: {reason}")
            return
        app, uri = self._app, file.path.as_uri()
        language = language_for("", file.path.name)
        snapshot = app.documents.open(uri, language.id if language else "plaintext", 1, file.text)
        self._by_uri[uri] = file
        try:
            app.opened(snapshot)
            report = await app.reviews.review(
                uri,
                priority=Priority.FOREGROUND,
                progress=lambda progress: self._show.progress(
                    file, progress, lambda: app.status(Operation.REVIEW).decode_tokens_per_s
                ),
            )
            file.complete = report.complete
        except (DisabledError, DocumentError) as error:
            self._leave_out(file, f"{file.name} was left out: {error}")
        finally:
            # Closing takes the findings away from an editor; here they stay.
            del self._by_uri[uri]
            app.documents.close(uri)
            app.closed(snapshot)

    def _found(self, of: Snapshot, findings: tuple[Finding, ...]) -> None:
        file = self._by_uri.get(of.uri)
        if file is None:
            return
        new = [finding for finding in findings if finding not in file.findings]
        file.findings = findings
        self._in_order.show(self._places[file.path], lambda: self._show.findings(file, new))

    def _leave_out(self, file: FileReview, problem: str) -> None:
        file.problem = problem
        self._in_order.show(self._places[file.path], lambda: self._show.left_out(file))


class InOrder:
    """Shows what comes for numbered places in their order.

    At once for the first place that is not done, for the others when those before them are.
    """

    def __init__(self) -> None:
        self._first = 0
        self._done: set[int] = set()
        self._held: dict[int, list[Callable[[], None]]] = {}

    def show(self, place: int, action: Callable[[], None]) -> None:
        """Call `action` when it is the turn of `place`."""
        if place <= self._first:
            action()
        else:
            self._held.setdefault(place, []).append(action)

    def done(self, place: int) -> None:
        """Nothing more comes for `place`."""
        self._done.add(place)
        while self._first in self._done:
            self._done.remove(self._first)
            self._first += 1
            self._release(self._first)

    def flush(self) -> None:
        """Show what is held back; nothing is waited for any more."""
        for place in sorted(self._held):
            self._release(place)

    def _release(self, place: int) -> None:
        for action in self._held.pop(place, ()):
            action()


async def _some_end(running: set[asyncio.Task[None]]) -> set[asyncio.Task[None]]:
    """Wait until a file is done; those that are not yet. Raises what ended the review of one."""
    done, left = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()
    return left


def _read(path: Path) -> str:
    data = path.read_bytes()
    if b"\0" in data[:_SNIFFED_BYTES]:
        raise ValueError("a NUL is in no text")
    return data.decode("utf-8-sig")

"""Review: findings of the model, function by function.

An answer is keyed by what the model saw, so only changed functions are asked about again. The work on one
function is shared by all who ask for it; it ends when its code changes, its file closes or the user stops it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

from nexo_lsp.documents import Snapshot
from nexo_lsp.errors import BadAnswer, DisabledError
from nexo_lsp.generation import Operation, Priority, Request
from nexo_lsp.memory.answers import answer_key
from nexo_lsp.pipeline.findings import Finding, Overlaps, capped, finding_id, located, moved
from nexo_lsp.pipeline.review_run import (
    AT_ONCE,
    Pass,
    Remark,
    ReviewProgress,
    ReviewReport,
    Run,
    parse_remarks,
)
from nexo_lsp.pipeline.step import Pool, SharedJobs, Workbench, first_of, infer, joined
from nexo_lsp.pipeline.units import Unit, review_units
from nexo_lsp.text import Edit, Span, shift_span

_log = logging.getLogger("nexo_lsp.review")

_CONTEXT_TOKENS = 300
# What one finding takes at the most, with some reserve for the brackets around all.
_FINDING_TOKENS, _BRACKET_TOKENS = 120, 40
# The usual answer, letter by letter as the schema's grammar has it written.
NOTHING_FOUND = '{"findings": []}'


class ReviewService:
    """Reviews open documents and keeps what was found in step with their edits."""

    def __init__(self, bench: Workbench) -> None:
        self._bench = bench
        self._jobs: SharedJobs[tuple[Remark, ...]] = SharedJobs()
        self._runs: dict[str, Run] = {}
        self._shown: dict[str, tuple[Finding, ...]] = {}
        self._dismissed: set[str] = set()
        self._at_once = AT_ONCE
        self._turns: asyncio.Semaphore | None = None
        self.on_findings: Callable[[Snapshot, tuple[Finding, ...]], None] = lambda _snapshot, _findings: None
        """Called on the loop whenever the findings of a document change or move."""

    def side_by_side(self, at_once: int) -> None:
        """Prepare for reviews of many documents at the same time: so many functions at once are asked about.

        From now on no document is shown beside another: no answer depends on what else is under way.
        """
        self._at_once, self._turns = at_once, asyncio.Semaphore(at_once)

    def findings(self, uri: str) -> tuple[Finding, ...]:
        """The findings that are shown for a document now."""
        return self._shown.get(uri, ())

    async def review(
        self,
        uri: str,
        *,
        priority: Priority = Priority.BACKGROUND,
        progress: Callable[[ReviewProgress], None] | None = None,
    ) -> ReviewReport:
        """Review the document as it is now; a review of the same version that is under way is joined.

        Being cancelled leaves the review running. Raises `NexoError` and its kinds.
        """
        bench = self._bench
        if self._turns is None:
            await bench.refresh(*bench.documents.all())
        snapshot = await bench.documents.parsed(uri)
        if self._turns is not None:
            await bench.refresh(snapshot)
        self._require(snapshot)
        run = self._runs.get(uri)
        if run is None or run.version != snapshot.version or run.task is None or run.task.done():
            if run is not None and run.task is not None:
                run.task.cancel()
            run = Run(snapshot.version, priority, held=dict(run.held) if run is not None else {})
            self._runs[uri] = run
            run.task = asyncio.get_running_loop().create_task(self._work(snapshot, run), name="nexo:review")
            # A failure is every asker's; if all of them have left, it has been logged by the job.
            run.task.add_done_callback(lambda task: task.cancelled() or task.exception())
        run.urge(priority)
        if progress is not None:
            run.listeners.append(progress)
        task = run.task
        try:
            return await joined(task)
        except asyncio.CancelledError:
            if not task.cancelled() or _cancelled_myself():
                raise
            return ReviewReport(snapshot.version, self.findings(uri), complete=False)
        finally:
            if progress is not None:
                run.listeners.remove(progress)

    def changed(self, snapshot: Snapshot, edits: Sequence[Edit]) -> None:
        """The document was edited: findings move or vanish, and work on changed code ends."""
        uri = snapshot.uri
        run = self._runs.get(uri)
        if run is not None:
            for key, span in list(run.held.items()):
                self._hold(run, key, shift_span(span, edits))
        shown = self._shown.get(uri)
        if shown:
            self._show(snapshot, moved(shown, edits, snapshot))

    def closed(self, uri: str, snapshot: Snapshot | None) -> None:
        """The document was closed: its review ends and its findings go."""
        self.stop(uri)
        if self._shown.pop(uri, None) and snapshot is not None:
            self.on_findings(snapshot, ())

    def stop(self, uri: str | None = None) -> None:
        """End the review of a document, or all reviews; what was found so far stays."""
        for key in [uri] if uri is not None else list(self._runs):
            run = self._runs.pop(key, None)
            if run is None:
                continue
            for held in run.held:
                self._jobs.cancel(held)
            if run.task is not None:
                run.task.cancel()

    def clear(self) -> None:
        """End all reviews and take away all findings (the server was switched off)."""
        self.stop()
        for uri in list(self._shown):
            snapshot = self._bench.documents.find(uri)
            if self._shown.pop(uri) and snapshot is not None:
                self.on_findings(snapshot, ())

    async def dismiss(self, uri: str, finding: str) -> None:
        """Never show this finding again, wherever the same code stands."""
        # A review that is under way must not bring it back.
        self._dismissed.add(finding)
        snapshot = self._bench.documents.find(uri)
        shown = self._shown.get(uri, ())
        if snapshot is not None:
            self._show(snapshot, tuple(item for item in shown if item.id != finding))
        await self._bench.answers.dismiss(finding)

    def _require(self, snapshot: Snapshot) -> None:
        self._bench.require(snapshot)
        if not self._bench.settings().review.enabled:
            raise DisabledError("Review is switched off (nexo.review.enabled).")

    def _hold(self, run: Run, key: str, place: Span | None) -> None:
        """Note where the code behind `key` stands now; work on code that was touched (None) ends."""
        if place is not None:
            run.held[key] = place
        elif run.held.pop(key, None) is not None:
            self._jobs.cancel(key)

    async def _work(self, snapshot: Snapshot, run: Run) -> ReviewReport:
        bench = self._bench
        units = (
            await bench.offload(lambda: review_units(snapshot))
            if snapshot.is_large
            else review_units(snapshot)
        )
        self._dismissed |= await bench.answers.dismissed()
        others = await self._others(snapshot)
        self._drop_strays(snapshot, units)
        self._drop_held(snapshot, run, units, others)
        work = Pass(snapshot, run, units, others, Pool(self._at_once))
        try:
            for index in range(len(units)):
                # Known answers would otherwise follow each other without a turn for anybody else.
                await asyncio.sleep(0)
                if work.asking.full:
                    await self._collect(work)
                    work.others = await self._others(snapshot)
                if work.asking.error is not None:
                    break
                await self._begin(work, index)
            while work.asking.busy:
                await self._collect(work)
        except DisabledError:
            # The document may not be shown any more, so what is at work for it ends too.
            for key in list(run.held):
                self._hold(run, key, None)
            raise
        finally:
            # The jobs themselves go on: whoever reviews the document next joins them or ends them.
            work.asking.cancel()
        self._merge(snapshot, units, work.found)
        if work.asking.error is not None:
            raise work.asking.error
        run.tell(ReviewProgress(len(units), len(units), ""))
        complete = work.complete and bench.documents.find(snapshot.uri) is snapshot
        return ReviewReport(snapshot.version, self.findings(snapshot.uri), complete)

    async def _begin(self, work: Pass, index: int) -> None:
        """Take the known answer for a unit, or have the engine asked. Raises `DisabledError`."""
        bench, snapshot, run, unit = self._bench, work.snapshot, work.run, work.units[index]
        if self._place_now(snapshot, unit.span) is None:
            work.complete = False
            return
        tell = work.teller(unit)
        tell("", 0)
        key, request = self._request(snapshot, unit, work.others, run.priority)
        if key in work.asked:
            # The same code stands twice in the file.
            work.asked[key].append(index)
            return
        remarks = await self._known(key)
        if remarks is not None:
            work.found[index] = self._findings(unit, remarks)
            return
        self._merge(snapshot, work.units, work.found)
        model = bench.model_key(Operation.REVIEW)
        await self._spare(work)
        if work.asking.error is not None:
            return
        if bench.model_key(Operation.REVIEW) != model:
            # It may have waited for hours, and another model answers now: its answer has another key.
            await self._begin(work, index)
            return
        await bench.refresh(snapshot)
        self._require(snapshot)
        place = self._place_now(snapshot, unit.span)
        if place is None:
            work.complete = False
            return
        run.held[key] = place
        work.asked[key] = [index]
        # Somebody may have asked for the review meanwhile.
        request = replace(request, priority=run.priority)
        work.asking.start(key, self._answer(run, key, self._ask(key, request, tell)))

    async def _spare(self, work: Pass) -> None:
        """What nobody asked for waits while the machine is spared; answers on their way are shown first."""
        care, wanted = self._bench.care, work.run.wanted
        if care is None or wanted.is_set() or not await care.paused():
            return
        while work.asking.busy:
            await self._collect(work)
        if work.asking.error is None:
            await first_of(care.until_allowed(), wanted.wait())

    async def _collect(self, work: Pass) -> None:
        """Wait for an answer, and show what it found."""
        for key, remarks in await work.asking.ended():
            for index in work.asked.pop(key):
                if remarks is None:
                    work.complete = False
                else:
                    work.found[index] = self._findings(work.units[index], remarks)
            self._merge(work.snapshot, work.units, work.found)

    async def _others(self, snapshot: Snapshot) -> Sequence[Snapshot]:
        return await self._bench.others(snapshot) if self._turns is None else ()

    def _drop_strays(self, snapshot: Snapshot, units: Sequence[Unit]) -> None:
        """Take away what stands in no function any more."""
        if self._bench.documents.find(snapshot.uri) is snapshot:
            places = Overlaps([unit.span for unit in units])
            kept = [finding for finding in self.findings(snapshot.uri) if places.with_span(finding.span)]
            self._show(snapshot, tuple(kept))

    def _drop_held(
        self, snapshot: Snapshot, run: Run, units: Sequence[Unit], others: Sequence[Snapshot]
    ) -> None:
        """End what a run before this one had begun, unless this one would ask the very same."""
        for key, place in list(run.held.items()):
            unit = next((unit for unit in units if self._place_now(snapshot, unit.span) == place), None)
            if unit is None or self._request(snapshot, unit, others, run.priority)[0] != key:
                self._hold(run, key, None)

    def _request(
        self, snapshot: Snapshot, unit: Unit, others: Sequence[Snapshot], priority: Priority
    ) -> tuple[str, Request]:
        bench, settings = self._bench, self._bench.settings().review
        around = bench.gatherer.surroundings(snapshot, unit.span, others, _CONTEXT_TOKENS)
        prompt = bench.prompts.review(snapshot.language, unit.code, around.related)
        request = Request(
            prompt=prompt,
            max_tokens=_BRACKET_TOKENS + _FINDING_TOKENS * settings.max_findings,
            session="review",
            json_schema=bench.prompts.review_schema(unit.code, settings.max_findings),
            logit_bias=bench.prompts.review_bias(unit.code, bench.parameters_of(Operation.REVIEW)),
            prediction=NOTHING_FOUND,
            priority=priority,
        )
        key = answer_key(
            "review", bench.model_key(Operation.REVIEW), bench.prompts.version, str(settings.max_findings),
            prompt.messages[-1].content,
        )  # fmt: skip
        return key, request

    async def _known(self, key: str) -> tuple[Remark, ...] | None:
        """The answer that was given before."""
        cached = await self._bench.answers.get(key)
        try:
            return None if cached is None else parse_remarks(cached)
        except BadAnswer as error:
            _log.warning("a stored answer is asked for again: %s", error)
            return None

    def _ask(
        self, key: str, request: Request, tell: Callable[[str, int], None]
    ) -> asyncio.Task[tuple[Remark, ...]]:
        """The work on an answer, which whoever asks the same joins."""

        async def ask() -> tuple[Remark, ...]:
            async with self._turns or contextlib.nullcontext():
                answer = await infer(self._bench.engine(Operation.REVIEW), request, tell)
            remarks = parse_remarks(answer.text)
            if not answer.stand_in:
                await self._bench.answers.put(key, "review", answer.text)
            return remarks

        return self._jobs.start(key, ask)

    async def _answer(
        self, run: Run, key: str, job: asyncio.Task[tuple[Remark, ...]]
    ) -> tuple[Remark, ...] | None:
        """The engine's answer; None if the code was touched before it came."""
        try:
            return await joined(job)
        except BadAnswer as error:
            _log.warning("%s", error)
            return ()
        except asyncio.CancelledError:
            if _cancelled_myself():
                raise
            return None
        finally:
            run.held.pop(key, None)

    def _findings(self, unit: Unit, remarks: Sequence[Remark]) -> tuple[Finding, ...]:
        """The remarks whose quote is in the unit's code; where exactly is found out when they are shown."""
        highest = self._bench.settings().review.max_severity
        findings: dict[str, Finding] = {}
        for remark in remarks:
            identity = finding_id(remark.quote, remark.category, unit.symbol)
            if not remark.quote.strip() or remark.quote not in unit.code:
                continue
            findings.setdefault(
                identity,
                Finding(
                    id=identity,
                    span=unit.span,
                    quote=remark.quote,
                    category=remark.category,
                    severity=capped(remark.severity, highest),
                    message=remark.message,
                    suggestion=remark.suggestion or None,
                    symbol=unit.symbol,
                ),
            )
        return tuple(findings.values())

    def _merge(
        self, snapshot: Snapshot, units: Sequence[Unit], found: dict[int, tuple[Finding, ...]]
    ) -> None:
        """Show what was found so far; functions without an answer keep what they had."""
        current = self._bench.documents.find(snapshot.uri)
        edits = self._bench.documents.edits_after(snapshot)
        if current is None or edits is None:
            return
        shown: list[Finding] = []
        answered: list[Span] = []
        for index, findings in sorted(found.items()):
            place = shift_span(units[index].span, edits)
            if place is None:
                continue
            answered.append(place)
            placed = (located(finding, current.text, place) for finding in findings)
            shown += [finding for finding in placed if finding and finding.id not in self._dismissed]
        places = Overlaps(answered)
        shown += [old for old in self.findings(snapshot.uri) if not places.with_span(old.span)]
        self._show(current, tuple(sorted(shown, key=lambda finding: finding.span)))

    def _show(self, snapshot: Snapshot, findings: tuple[Finding, ...]) -> None:
        if findings != self._shown.get(snapshot.uri, ()):
            self._shown[snapshot.uri] = findings
            self.on_findings(snapshot, findings)

    def _place_now(self, snapshot: Snapshot, span: Span) -> Span | None:
        """Where `span` of `snapshot` stands in the document now; None if it was touched or is closed."""
        edits = self._bench.documents.edits_after(snapshot)
        return None if edits is None else shift_span(span, edits)


def _cancelled_myself() -> bool:
    """Whether the current task itself was asked to cancel (and not a task that it was waiting for)."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0

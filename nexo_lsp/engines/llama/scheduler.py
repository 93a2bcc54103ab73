"""Who is served next, and together with whom.

A step evaluates one batch: the next token of every answer that is being written, guesses behind them where an
answer repeats a known text, and a chunk of one prompt. All of them are equally urgent: whoever is less urgent
waits, and keeps its sequence meanwhile. A step that is under way is given up when something more urgent comes
(`urgent`, asked by the thread that reads messages); between two steps anything may change.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from nexo_lsp.engines.llama.chunks import Chunks
from nexo_lsp.engines.llama.draft_model import DraftModel
from nexo_lsp.engines.llama.drafting import DraftLength, Source
from nexo_lsp.engines.llama.gauges import Gauges
from nexo_lsp.engines.llama.intake import Intake, Refused
from nexo_lsp.engines.llama.jobs import Job, Part
from nexo_lsp.engines.llama.messages import (
    BadMessage,
    Delta,
    Done,
    Failed,
    Failure,
    FromWorker,
    Stats,
    ToWorker,
)
from nexo_lsp.engines.llama.native import Context, Decoded, Model, NativeError
from nexo_lsp.engines.llama.overtaking import Overtaking
from nexo_lsp.engines.llama.prefix_cache import PrefixCache
from nexo_lsp.engines.llama.threads import ThreadTuner
from nexo_lsp.engines.llama.waiting import Crowd, Waiting
from nexo_lsp.generation import FinishReason, Priority, Request

TOGETHER = 4
"""So many answers are written at once: on two cores four take 2.5 times as long as one, eight 4 times."""
STARVING_S = 5.0
"""Whoever waited so long for more urgent ones gets one step in between."""
_TELLING = 16
"""The short rest of a prompt says little about the speed of full chunks."""
_STUCK = "llama.cpp could not go on with this request: {}."


class Scheduler:
    """Runs jobs on one context and says what comes of them through `send`."""

    def __init__(
        self,
        model: Model,
        context: Context,
        send: Callable[[FromWorker], None],
        clock: Callable[[], float] = time.monotonic,
        *,
        cache: PrefixCache | None = None,
        unread: Callable[[], bool] = lambda: False,
        waiting: Waiting | None = None,
        draft: DraftModel | None = None,
    ) -> None:
        """`unread` says whether a message has come that nobody has read yet."""
        self._model = model
        self._context = context
        self._send = send
        self._clock = clock
        self._unread = unread
        self._waiting = waiting or Waiting(None, Crowd(), context.threads)
        self._intake = Intake(model, context.tokens)
        self._cache = cache or PrefixCache(context, context.sequences)
        self._jobs: dict[int, Job] = {}
        self.gauges = Gauges()
        self._tuner = ThreadTuner(context.threads)
        self._lengths = DraftLength()
        self._draft = draft
        if draft is not None:
            draft.guess_for(self._lengths)
        self._served: dict[int, float] = {}
        self._turns: dict[int, int] = {}
        self._chunks = Chunks(context.batch_tokens)
        interrupts = [context.interrupt] if draft is None else [context.interrupt, draft.interrupt]
        self._overtaking = Overtaking(interrupts, harmless=model.can_forget)

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._jobs)

    def urgent(self, message: ToWorker | BadMessage) -> bool:
        """Whether the step under way is worth giving up for `message`; may be asked from any thread."""
        return self._overtaking.urgent(message)

    def interrupt(self) -> None:
        """Give up the step under way; may be called from any thread."""
        self._overtaking.interrupt()

    def add(self, job_id: int, request: Request, client: int = 0) -> None:
        """Take a request; one that cannot be served is answered with `Failed` at once."""
        if job_id in self._jobs:
            self._send(Failed(job_id, Failure.INTERNAL, f"Request {job_id} is running already."))
            return
        try:
            job = self._intake.job(job_id, request, client, self._clock())
        except Refused as refused:
            self._send(Failed(job_id, refused.failure, str(refused)))
            return
        self._jobs[job_id] = job
        self._served.setdefault(request.priority, self._clock())
        self._report()

    def cancel(self, job_id: int) -> None:
        """Drop a job; what it evaluated stays in the cache. Unknown ids are ignored."""
        job = self._jobs.get(job_id)
        if job is not None:
            self._leave(job)

    def close(self) -> None:
        """Drop every job without a word."""
        self._send = _unheard
        for job in list(self._jobs.values()):
            self._leave(job)
        self._intake.close()

    def prepare(self) -> None:
        """Begin in the background what the first completion would wait for."""
        self._intake.prepare()

    def shrink(self, by: int) -> None:
        """Give back about so many bytes of what is cached outside the context, which has its fixed size."""
        self._cache.shrink(self._context.tokens, swap_bytes=max(0, self._cache.swapped_bytes - by))

    def stats(self) -> Stats:
        """The present picture."""
        self._cache.observe(self._running())
        running = sum(job.sequence is not None for job in self._jobs.values())
        urgent = min((job.request.priority for job in self._jobs.values()), default=0)
        waiting = sum(
            job.started is not None and job.request.priority > urgent for job in self._jobs.values()
        )
        gauges = self.gauges
        return Stats(
            queued=len(self._jobs) - running,
            running=running,
            prompt_tokens_per_s=gauges.prompt_speed.value,
            decode_tokens_per_s=gauges.decode_speed.value,
            cached_sequences=self._cache.kept,
            metrics=replace(
                gauges.metrics(),
                waiting=waiting,
                cells=self._cache.cells,
                swapped_bytes=self._cache.swapped_bytes,
                threads=self._tuner.threads,
            ),
        )

    def step(self) -> None:
        """Advance the most urgent jobs by one step."""
        now = self._clock()
        for job in [job for job in self._jobs.values() if job.expired(now)]:
            self._finish(job, FinishReason.DEADLINE)
        if not self._jobs:
            return
        level = self._level(now)
        jobs = sorted(
            (job for job in self._jobs.values() if job.request.priority == level), key=lambda job: job.rank
        )
        parts = self._plan(jobs)
        if not parts:
            return
        try:
            self._evaluate(level, parts)
        except NativeError as error:
            for part in parts:
                self._fail(part.job, _STUCK.format(error))

    def _level(self, now: float) -> int:
        """How urgent the jobs are whose turn it is: the most urgent ones, but nobody starves."""
        present = sorted({job.request.priority for job in self._jobs.values()})
        for level in reversed(present[1:]):
            came = min(job.arrived for job in self._jobs.values() if job.request.priority == level)
            if now - max(came, self._served.get(level, came)) >= STARVING_S:
                return level
        return present[0]

    def _plan(self, jobs: Sequence[Job]) -> list[Part]:
        """The next batch of equally urgent `jobs`."""
        self._seat(jobs)
        writing = [job for job in jobs if job.writes]
        reading = min(
            (job for job in jobs if job.reads), key=lambda job: (self._turn(job), job.order), default=None
        )
        parts: list[Part] = []
        row = 0
        spare = self._context.outputs - len(writing) - 1
        for job in writing:
            guesses, source = self._guesses(job, max(0, spare // len(writing))), Source.PREDICTION
            if not guesses and len(writing) == 1 and reading is None:
                guesses, source = self._drafted(job, spare), Source.MODEL
            parts.append(Part(job, job.tokens[job.evaluated :], guesses, row, at_end=True, source=source))
            row += 1 + len(guesses)
        if reading is not None:
            level = reading.request.priority
            overtaking = any(job.request.priority < level for job in self._jobs.values())
            watched = overtaking or not self._waiting.sure or (bool(writing) and level < Priority.BACKGROUND)
            size = self._chunks.size(self.gauges.prompt_speed.value, row, watched=watched)
            chunk = reading.tokens[reading.evaluated : reading.evaluated + size]
            at_end = len(chunk) == reading.pending
            guesses: Sequence[int] = ()
            if at_end and not writing:
                guesses = self._guesses(reading, min(spare, self._context.batch_tokens - len(chunk)))
            parts.append(Part(reading, chunk, guesses, row, at_end))
        return parts

    def _seat(self, jobs: Sequence[Job]) -> None:
        """Give sequences to jobs that have none: one prompt of each client is read at a time.

        A prompt that waits for its turn can share what the ones before it have evaluated by then.
        """
        while True:
            seated = [job for job in jobs if job.sequence is not None]
            reading = {job.client for job in seated if job.reads}
            room = self._context.tokens - sum(job.room for job in seated)
            waiting = [job for job in jobs if job.sequence is None and job.client not in reading]
            if len(seated) >= TOGETHER:
                # But who has none of them does not wait for all of another's answers.
                waiting = [job for job in waiting if job.client not in {other.client for other in seated}]
            if not waiting:
                return
            job = min(waiting, key=lambda job: (self._turn(job), job.order))
            # Equals do not take each other's sequences; but one of them always goes on.
            above = job.request.priority if seated else -1
            if (seated and job.room > room) or not self._acquire(job, above):
                return

    def _acquire(self, job: Job, above: int) -> bool:
        lease = self._cache.acquire(job.tokens, job.session, self._running())
        if lease is None:
            return self._preempt([job], above) and self._acquire(job, above)
        job.sequence, job.evaluated = lease.sequence, lease.cached
        if job.started is None:
            job.started = self._clock()
            job.cached = lease.cached
            self.gauges.begun(job.prompt_tokens, lease.cached)
        self._report()
        return True

    def _running(self) -> list[tuple[int, Sequence[int]]]:
        """The sequences of unfinished jobs, and what is evaluated in them."""
        return [
            (job.sequence, job.tokens[: job.evaluated])
            for job in self._jobs.values()
            if job.sequence is not None
        ]

    def _preempt(self, but: Sequence[Job], above: int = -1) -> bool:
        """Give the least urgent other job's sequence to the cache; False if no priority's number is above."""
        others = (job for job in self._jobs.values() if job not in but and job.request.priority > above)
        victim = max(
            (job for job in others if job.sequence is not None), key=lambda job: job.rank, default=None
        )
        if victim is None or victim.sequence is None:
            return False
        self._cache.release(victim.sequence, victim.tokens[: victim.evaluated], victim.session)
        victim.sequence, victim.evaluated = None, 0
        return True

    def _guesses(self, job: Job, most: int) -> Sequence[int]:
        if job.lookup is None:
            return ()
        most = min(most, job.request.max_tokens - job.made - 1, self._context.tokens - len(job.tokens))
        return job.lookup.guess(self._lengths.best(job.lookup.source, job.lookup.run, max(0, most)))

    def _drafted(self, job: Job, most: int) -> Sequence[int]:
        """What the draft model guesses; for several answers at once a step is well used without it."""
        if self._draft is None:
            return ()
        self._overtaking.begin(job.request.priority, [job.id])
        if self._unread():
            return ()
        left = job.request.max_tokens - job.made
        most = min(most, left - 1, self._context.tokens - len(job.tokens))
        return self._draft.guess(job.id, job.tokens, most, left, self._tuner.threads)

    def _evaluate(self, level: int, parts: Sequence[Part]) -> None:
        context = self._context
        single = len(parts) == 1 and parts[0].at_end and len(parts[0].tokens) == 1
        threads = self._tuner.threads if single else context.threads
        context.decode_with(threads)
        self._waiting.adapt(threads)
        self._overtaking.begin(level, [part.job.id for part in parts])
        if self._unread():
            # It came after the loop had read what there was: it goes first, and may change everything.
            self._overtaking.end()
            return
        began = self._clock()
        outcome = context.evaluate([part.slice() for part in parts])
        self._overtaking.end()
        self._waiting.worked()
        if outcome is Decoded.FULL:
            self._make_room([part.job for part in parts])
        elif outcome is Decoded.INTERRUPTED:
            self.gauges.overtaken += 1
            self._chunks.interrupted(self.gauges.prompt_speed.value)
        else:
            self._chunks.passed()
            self._served[level] = self._clock()
            self._take_step(parts, began)

    def _make_room(self, jobs: Sequence[Job]) -> None:
        """The cache is full: something has to go before these can go on."""
        if self._cache.evict() or self._preempt(jobs):
            return
        if len(jobs) == 1:
            self._fail(jobs[0], "The engine's memory is full.")
        else:
            self._preempt(jobs[:1])

    def _take_step(self, parts: Sequence[Part], began: float) -> None:
        """What was evaluated becomes part of the jobs, and tokens are sampled."""
        made: list[tuple[Part, list[tuple[int, bytes]]]] = []
        for part in parts:
            try:
                made.append((part, self._verify(part)))
            except NativeError as error:
                # The others' tokens are good.
                self._fail(part.job, _STUCK.format(error))
        if not made:
            return
        seconds = self._clock() - began
        self._account([part for part, _ in made], [len(tokens) for _, tokens in made], seconds)
        for part, tokens in made:
            if len(part.tokens) > 1:
                self._turns[part.job.client] = max(self._turns.values(), default=0) + 1
            if tokens:
                self._write(part.job, tokens)

    def _verify(self, part: Part) -> list[tuple[int, bytes]]:
        """The tokens that the model goes on with; guesses that it does not share are forgotten."""
        job = part.job
        job.evaluated += len(part.tokens)
        if not part.at_end:
            return []
        row = part.row + len(part.tokens) - 1
        taken: list[tuple[int, bytes]] = []
        for index in range(len(part.guesses) + 1):
            token, text = job.sampler.sample(self._context, row + index)
            taken.append((token, text))
            if job.lookup is not None:
                source, run = job.lookup.source, job.lookup.run
                right = job.lookup.take(token)
                if right is not None:
                    self._lengths.judged(source, run, right)
            if self._ends(job, token) or index == len(part.guesses) or token != part.guesses[index]:
                break
        if self._draft is not None and part.source is Source.MODEL:
            self._draft.judge(job.id, part.guesses, [token for token, _ in taken])
        kept = len(taken) - 1
        job.evaluated += kept
        self.gauges.drafted += len(part.guesses)
        self.gauges.accepted += kept
        if kept < len(part.guesses) and job.sequence is not None:
            self._context.truncate(job.sequence, job.evaluated)
        return taken

    def _ends(self, job: Job, token: int) -> bool:
        return token in job.end_tokens or self._model.is_end(token)

    def _account(self, parts: Sequence[Part], made: Sequence[int], seconds: float) -> None:
        """Whose time the step was, and what it says about speeds."""
        first = parts[0]
        guesses = sum(len(part.guesses) for part in parts)
        read = sum(len(part.tokens) for part in parts if len(part.tokens) > 1)
        all_s = seconds + (self._draft.spent_s() if self._draft is not None else 0.0)
        for part in parts:
            if part.job.made == 0:
                part.job.prompt_s += all_s
            else:
                part.job.decode_s += all_s
        if read and len(parts) == 1 and not guesses:
            if read >= _TELLING or self.gauges.prompt_speed.value is None:
                self.gauges.prompt_speed.add(read / max(seconds, 1e-6))
        elif not read:
            self.gauges.fill.add(len(parts))
            self.gauges.decode_speed.add(sum(made) / max(all_s, 1e-6))
            if len(parts) == 1 and guesses:
                self._lengths.costs.several(1 + guesses, seconds)
            elif len(parts) == 1:
                self._lengths.costs.single(seconds)
                self._tuner.observe(seconds)
            if first.job.made == 1:
                # The first measured token: whoever watches sees that the answer is being written.
                self._report()

    def _write(self, job: Job, tokens: Sequence[tuple[int, bytes]]) -> None:
        text, reason = "", None
        for token, added in tokens:
            if self._ends(job, token):
                reason = FinishReason.STOP
                break
            # What only writes the prompt's end again is no part of the answer.
            job.made += bool(added) or not self._model.piece(token)
            job.tokens.append(token)
            new = job.text.feed(added)
            text += new
            if job.text.stopped or job.completes(new):
                reason = FinishReason.STOP
            elif job.made >= job.request.max_tokens:
                reason = FinishReason.LENGTH
            if reason is not None:
                break
        if reason is not None:
            self._finish(job, reason, text)
        else:
            self._send(Delta(job.id, text, job.made))

    def _finish(self, job: Job, reason: FinishReason, text: str = "") -> None:
        usage = job.usage(self._clock())
        text += job.text.finish()
        self._leave(job)
        self._send(Done(job.id, text, job.made, reason, usage))

    def _fail(self, job: Job, message: str) -> None:
        if job.sequence is not None:
            self._cache.drop(job.sequence)
            job.sequence = None
        self._leave(job)
        self._send(Failed(job.id, Failure.INTERNAL, message))

    def _leave(self, job: Job) -> None:
        del self._jobs[job.id]
        job.sampler.close()
        if self._draft is not None:
            self._draft.forget(job.id)
        if job.sequence is not None:
            known = min(job.evaluated, len(job.tokens))
            self._context.truncate(job.sequence, known)
            self._cache.release(job.sequence, job.tokens[:known], job.session, static=job.static_tokens)
        self._report()

    def _turn(self, job: Job) -> int:
        return self._turns.get(job.client, 0)

    def _report(self) -> None:
        self._send(self.stats())


def _unheard(_message: FromWorker) -> None:
    """Where nobody listens any more."""

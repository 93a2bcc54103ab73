"""Who is served next. Every job is a state machine that advances by one step at a time.

A step evaluates one chunk of a prompt, or one made token, and then samples where the end is reached. Between
steps anything may change: a more urgent job overtakes, a cancelled one leaves. A job that waits keeps its
sequence, so it goes on where it stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from nexo_lsp.engines.llama.messages import Delta, Done, Failed, Failure, FromWorker, Stats
from nexo_lsp.engines.llama.native import Context, Decoded, Model, NativeError
from nexo_lsp.engines.llama.prefix_cache import PrefixCache
from nexo_lsp.engines.llama.prompts import PromptError, Prompts
from nexo_lsp.engines.llama.sampling import GrammarError, Sampler
from nexo_lsp.engines.llama.text_stream import TextStream
from nexo_lsp.engines.llama.threads import ThreadTuner
from nexo_lsp.generation import FinishReason, Request, Usage

# How long one prompt chunk should take: it is what a cancel or a more urgent job waits for. Smaller chunks
# use the weights worse (each chunk reads all of them once).
_CHUNK_S = 0.1
_CHUNK_MIN = 16
_AVERAGE = 0.3
"""The weight of the newest measurement in a moving average."""


class Speed:
    """Tokens a second, as a moving average."""

    def __init__(self) -> None:
        self.value: float | None = None

    def add(self, tokens: int, seconds: float) -> None:
        """One more measurement."""
        now = tokens / max(seconds, 1e-6)
        self.value = now if self.value is None else self.value + _AVERAGE * (now - self.value)


@dataclass(slots=True)
class _Job:
    id: int
    request: Request
    tokens: list[int]
    prompt_tokens: int
    end_tokens: frozenset[int]
    sampler: Sampler
    text: TextStream
    arrived: float
    order: int
    sequence: int | None = None
    evaluated: int = 0
    cached: int = 0
    made: int = 0
    started: float | None = None
    prompt_s: float = 0.0
    decode_s: float = 0.0
    rank: tuple[int, int] = field(init=False)

    def __post_init__(self) -> None:
        self.rank = (self.request.priority, self.order)

    def expired(self, now: float) -> bool:
        limit = self.request.deadline_s
        return limit is not None and now - self.arrived >= limit


class Scheduler:
    """Runs jobs on one context and says what comes of them through `send`."""

    def __init__(
        self,
        model: Model,
        context: Context,
        send: Callable[[FromWorker], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._model = model
        self._context = context
        self._send = send
        self._clock = clock
        self._prompts = Prompts(model)
        self._cache = PrefixCache(context, context.sequences)
        self._jobs: dict[int, _Job] = {}
        self._arrivals = 0
        self._prompt_speed = Speed()
        self._decode_speed = Speed()
        self._tuner = ThreadTuner(context.threads)

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._jobs)

    def add(self, job_id: int, request: Request) -> None:
        """Take a request; one that cannot be served is answered with `Failed` at once."""
        if job_id in self._jobs:
            self._send(Failed(job_id, Failure.INTERNAL, f"Request {job_id} is running already."))
            return
        try:
            tokens = self._prompts.tokens(request.prompt)
            if not tokens:
                raise PromptError("An empty prompt cannot be answered.")
            ends = self._prompts.end_tokens(request.prompt)
            if len(tokens) + request.max_tokens > self._context.tokens:
                self._send(Failed(job_id, Failure.PROMPT_TOO_LONG, self._too_long(len(tokens), request)))
                return
            sampler = Sampler(self._model, request)
        except (PromptError, GrammarError) as error:
            self._send(Failed(job_id, Failure.BAD_REQUEST, str(error)))
            return
        self._arrivals += 1
        self._jobs[job_id] = _Job(
            id=job_id,
            request=request,
            tokens=tokens,
            prompt_tokens=len(tokens),
            end_tokens=ends,
            sampler=sampler,
            text=TextStream(request.stop),
            arrived=self._clock(),
            order=self._arrivals,
        )
        self._report()

    def _too_long(self, tokens: int, request: Request) -> str:
        return (
            f"The prompt ({tokens} tokens) and the answer (up to {request.max_tokens}) do not fit into the "
            f"engine's context of {self._context.tokens} tokens; nexo.engine.contextTokens sets it."
        )

    def cancel(self, job_id: int) -> None:
        """Drop a job; what it evaluated stays in the cache. Unknown ids are ignored."""
        job = self._jobs.get(job_id)
        if job is not None:
            self._leave(job)

    def close(self) -> None:
        """Drop every job without a word."""
        for job in list(self._jobs.values()):
            self._leave(job)

    def stats(self) -> Stats:
        """The present picture."""
        running = sum(job.sequence is not None for job in self._jobs.values())
        return Stats(
            queued=len(self._jobs) - running,
            running=running,
            prompt_tokens_per_s=self._prompt_speed.value,
            decode_tokens_per_s=self._decode_speed.value,
            cached_sequences=self._cache.kept,
        )

    def step(self) -> None:
        """Advance the most urgent job by one step."""
        now = self._clock()
        for job in [job for job in self._jobs.values() if job.expired(now)]:
            self._finish(job, FinishReason.DEADLINE)
        if not self._jobs:
            return
        job = min(self._jobs.values(), key=lambda job: job.rank)
        try:
            self._advance(job)
        except NativeError as error:
            self._fail(job, f"llama.cpp could not go on with this request: {error}.")

    def _advance(self, job: _Job) -> None:
        if job.started is None:
            job.started = self._clock()
        if job.sequence is None and not self._seat(job):
            self._preempt(job)
            return
        assert job.sequence is not None  # noqa: S101 -- `_seat` just gave it one
        chunk = job.tokens[job.evaluated : job.evaluated + self._chunk_size()]
        at_end = job.evaluated + len(chunk) == len(job.tokens)
        self._context.decode_with(self._tuner.threads)
        began = self._clock()
        if self._context.evaluate(chunk, job.evaluated, job.sequence, logits=at_end) is Decoded.FULL:
            if not self._cache.evict() and not self._preempt(job):
                self._fail(job, "The engine's memory is full.")
            return
        job.evaluated += len(chunk)
        token = job.sampler.sample(self._context) if at_end else None
        self._account(job, len(chunk), self._clock() - began)
        if token is not None:
            self._take(job, token)

    def _seat(self, job: _Job) -> bool:
        running = (
            (other.sequence, other.tokens[: other.evaluated])
            for other in self._jobs.values()
            if other.sequence is not None
        )
        lease = self._cache.acquire(job.tokens, job.request.session, running)
        if lease is None:
            return False
        job.sequence, job.evaluated = lease.sequence, lease.cached
        if job.made == 0:
            job.cached = lease.cached
        self._report()
        return True

    def _preempt(self, urgent: _Job) -> bool:
        """Take the sequence of the least urgent other job, which will evaluate its tokens again."""
        others = [job for job in self._jobs.values() if job is not urgent and job.sequence is not None]
        if not others:
            return False
        victim = max(others, key=lambda job: job.rank)
        if victim.sequence is not None:
            self._cache.drop(victim.sequence)
        victim.sequence, victim.evaluated = None, 0
        return True

    def _chunk_size(self) -> int:
        speed = self._prompt_speed.value
        wanted = _CHUNK_MIN if speed is None else int(speed * _CHUNK_S)
        return max(_CHUNK_MIN, min(wanted, self._context.batch_tokens))

    def _account(self, job: _Job, tokens: int, seconds: float) -> None:
        if job.made == 0:
            job.prompt_s += seconds
            # The short rest of a prompt says little about the speed of full chunks.
            if tokens >= _CHUNK_MIN or self._prompt_speed.value is None:
                self._prompt_speed.add(tokens, seconds)
        else:
            job.decode_s += seconds
            if tokens == 1:
                self._decode_speed.add(1, seconds)
                self._tuner.observe(seconds)
                if job.made == 1:
                    # The first measured token: whoever watches sees that the answer is being written.
                    self._report()

    def _take(self, job: _Job, token: int) -> None:
        if token in job.end_tokens or self._model.is_end(token):
            self._finish(job, FinishReason.STOP)
            return
        job.made += 1
        job.tokens.append(token)
        text = job.text.feed(self._model.piece(token))
        if job.text.stopped or job.made >= job.request.max_tokens:
            self._finish(job, FinishReason.STOP if job.text.stopped else FinishReason.LENGTH, text)
        else:
            self._send(Delta(job.id, text, job.made))

    def _finish(self, job: _Job, reason: FinishReason, text: str = "") -> None:
        usage = Usage(
            prompt_tokens=job.prompt_tokens,
            cached_tokens=job.cached,
            completion_tokens=job.made,
            queue_s=(self._clock() if job.started is None else job.started) - job.arrived,
            prompt_s=job.prompt_s,
            decode_s=job.decode_s,
        )
        text += job.text.finish()
        self._leave(job)
        self._send(Done(job.id, text, job.made, reason, usage))

    def _fail(self, job: _Job, message: str) -> None:
        if job.sequence is not None:
            self._cache.drop(job.sequence)
            job.sequence = None
        self._leave(job)
        self._send(Failed(job.id, Failure.INTERNAL, message))

    def _leave(self, job: _Job) -> None:
        del self._jobs[job.id]
        job.sampler.close()
        if job.sequence is not None:
            self._cache.release(job.sequence, job.tokens[: job.evaluated], job.request.session)
        self._report()

    def _report(self) -> None:
        self._send(self.stats())

"""A second, smaller model that guesses what the first one will write; verifying is the scheduler's.

It keeps in step with what a job's answer really is: the tokens that both have in common stay evaluated, the
rest is forgotten and read again. A long prompt is read in chunks, one before each step, so that nobody waits
for it; until then there are no guesses.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from nexo_lsp.engines.llama.drafting import DraftLength, Source
from nexo_lsp.engines.llama.loading import LoadedModel, LoadError, Machine, load, resident_bytes
from nexo_lsp.engines.llama.messages import Load
from nexo_lsp.engines.llama.native import Context, Decoded, Interrupt, Library, Model, NativeError, Slice

CONTEXT_TOKENS = 4096
"""What the second model sees of all jobs together: 48 MB with the 0.5B."""
SEQUENCES = 4
_CHUNK = 64
_MOST = 15
_ANSWERED = 0.5
"""Answers take about this share of what they may take."""
_WARM_STEPS = 4
_WARM_SIZES = (1, 2, 4, 8, 16)
_LESSONS = 20
"""Averages move slowly: what was measured at the start is told so often."""


@dataclass(frozen=True, slots=True)
class Times:
    """What was measured when the models were loaded, in seconds."""

    guess_s: float
    """One guess of the second model."""
    steps: tuple[tuple[int, float], ...] = ()
    """Steps of the first model: for how many tokens at once, and how long."""


@dataclass(slots=True)
class _Track:
    """A sequence of the second model: for which job, and what is evaluated in it."""

    sequence: int
    job: int | None = None
    held: list[int] = field(default_factory=list[int])
    used: int = 0
    run: int = 0
    """How many guesses in a row were right."""


class DraftModel:
    """Guesses for jobs, each with a sequence of its own in a small context."""

    def __init__(
        self,
        model: Model,
        context: Context,
        times: Times,
        stop: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`stop` says whether there is something more urgent to do."""
        self._model = model
        self._context = context
        self._stop = stop
        self._clock = clock
        self._tracks = [_Track(sequence) for sequence in range(context.sequences)]
        self._uses = 0
        self._times = times
        self._read_s = times.guess_s / 4
        self._lengths = DraftLength()
        self._spent = 0.0
        self._broken = False

    @property
    def interrupt(self) -> Interrupt:
        """Ends what is being guessed, or read for it, from any thread; it is cleared by whoever sets it."""
        return self._context.interrupt

    def guess_for(self, lengths: DraftLength) -> None:
        """Count with, and teach, what is known of the first model's steps."""
        self._lengths = lengths
        lengths.guess_s = self._times.guess_s
        for tokens, seconds in _LESSONS * self._times.steps:
            if tokens == 1:
                lengths.costs.single(seconds)
            else:
                lengths.costs.several(tokens, seconds)

    def guess(self, job: int, tokens: Sequence[int], most: int, left: int, threads: int) -> Sequence[int]:
        """At most so many tokens that may follow `tokens`; none where that does not pay, or not yet.

        `left`: how many tokens the answer may still get.
        """
        most = min(most, _MOST, self._context.tokens - len(tokens) - 1)
        if self._broken or most < 1:
            return ()
        began = self._clock()
        try:
            return self._guess(self._track(job, tokens), tokens, most, left, threads)
        except NativeError as error:
            self._broken = True
            sys.stderr.write(f"The second model no longer guesses: {error}\n")
            return ()
        finally:
            self._spent += self._clock() - began

    def judge(self, job: int, guesses: Sequence[int], taken: Sequence[int]) -> None:
        """What became of `guesses`: the first model wrote `taken`."""
        track = next((track for track in self._tracks if track.job == job), None)
        if track is None:
            return
        for guess, token in zip(guesses, taken, strict=False):
            right = guess == token
            self._lengths.judged(Source.MODEL, track.run, right)
            track.run = track.run + 1 if right else 0

    def forget(self, job: int) -> None:
        """The job has ended; what was read for it may serve another one."""
        for track in self._tracks:
            if track.job == job:
                track.job = None
                track.run = 0

    def spent_s(self) -> float:
        """How long guessing has taken since this was last asked."""
        spent, self._spent = self._spent, 0.0
        return spent

    def _guess(
        self, track: _Track, tokens: Sequence[int], most: int, left: int, threads: int
    ) -> Sequence[int]:
        count = self._lengths.best(Source.MODEL, track.run, most)
        # The last token is evaluated again where all are known: what follows it is wanted.
        common = min(_common(track.held, tokens), len(tokens) - 1)
        behind = len(tokens) - common
        saved = self._lengths.saved_s(Source.MODEL, track.run, most) * left * _ANSWERED
        if not count or (behind > _CHUNK and behind * self._read_s > saved):
            return ()
        self._context.decode_with(threads)
        self._context.truncate(track.sequence, common)
        del track.held[common:]
        began = self._clock()
        if not self._evaluate(track, tokens[common : common + _CHUNK]):
            return ()
        if behind > _CHUNK:
            self._read_s += 0.3 * ((self._clock() - began) / _CHUNK - self._read_s)
            return ()
        guesses: list[int] = []
        row = behind - 1
        while True:
            token = int(np.argmax(self._context.logits(row)))
            if self._model.is_end(token):
                break
            guesses.append(token)
            if len(guesses) == count or self._stop() or not self._evaluate(track, [token]):
                break
            row = 0
        if guesses and behind <= _MOST:
            self._lengths.guessed(len(guesses), self._clock() - began)
        return guesses

    def _evaluate(self, track: _Track, tokens: Sequence[int]) -> bool:
        """Evaluate behind what `track` holds; False if there is no room, which takes that of others."""
        while True:
            part = Slice(track.sequence, len(track.held), tokens, 1)
            outcome = self._context.evaluate([part])
            if outcome is Decoded.DONE:
                track.held += tokens
                return True
            others = [other for other in self._tracks if other is not track and other.held]
            if outcome is not Decoded.FULL or not others:
                return False
            self._clear(min(others, key=lambda other: (other.job is not None, other.used)))

    def _track(self, job: int, tokens: Sequence[int]) -> _Track:
        """The job's sequence. A new job gets the free one that knows most of it, else the longest unused."""
        self._uses += 1
        track = next((track for track in self._tracks if track.job == job), None)
        if track is None:
            # Each answer is a new chance.
            self._lengths.hope(Source.MODEL)
            free = [track for track in self._tracks if track.job is None]
            if free:
                track = max(free, key=lambda track: (_common(track.held, tokens), -track.used))
            else:
                track = min(self._tracks, key=lambda track: track.used)
            track.job, track.run = job, 0
        track.used = self._uses
        return track

    def _clear(self, track: _Track) -> None:
        self._context.truncate(track.sequence, 0)
        track.held.clear()


@dataclass(frozen=True, slots=True)
class Draft:
    """What came of loading a second model."""

    note: str
    """For people: that it guesses, or why not."""
    model: DraftModel | None = None
    loaded: LoadedModel | None = None

    def close(self) -> None:
        """Free its memory."""
        if self.loaded is not None:
            self.loaded.close()


def load_draft(library: Library, wish: Load, first: LoadedModel, stop: Callable[[], bool]) -> Draft:
    """The second model that `wish` names; for `stop` see `DraftModel`.

    A file that is missing, does not fit into memory, or has another vocabulary costs only the guesses.
    """
    name = Path(wish.draft_path).stem
    small = replace(
        wish,
        path=wish.draft_path,
        draft_path="",
        prefix_folder="",
        unpack_folder="",
        context_tokens=min(CONTEXT_TOKENS, first.context.tokens),
        sequences=SEQUENCES,
        threads=first.context.threads,
    )
    # The first model's cache takes its memory as it fills.
    machine = Machine(resident=lambda: max(resident_bytes(), first.plan.total_bytes))
    try:
        if not first.model.can_forget:
            raise NativeError("this kind of model cannot take guesses back")
        loaded = load(library, small, lambda _share: True, machine)
    except (LoadError, NativeError) as error:
        return Draft(f"{name} does not guess: {error}")
    try:
        _check(first.model, loaded.model)
        steps = tuple((size, _step_s(first, size)) for size in _WARM_SIZES)
        model = DraftModel(loaded.model, loaded.context, Times(_step_s(loaded, 1), steps), stop)
    except NativeError as error:
        loaded.close()
        return Draft(f"{name} does not guess: {error}")
    return Draft(f"{name} guesses what comes next", model, loaded)


def _check(first: Model, second: Model) -> None:
    """Raise `NativeError` if the second model cannot guess for the first one."""
    if not second.can_forget:
        raise NativeError("that kind of model cannot take guesses back")
    same = first.vocab_size == second.vocab_size and all(
        first.token_text(token) == second.token_text(token) for token in range(first.vocab_size)
    )
    if not same:
        raise NativeError("its vocabulary is another one")


def _step_s(loaded: LoadedModel, size: int) -> float:
    """How long a step for so many tokens takes, tried a few times. Raises `NativeError`."""
    context = loaded.context
    token = (loaded.model.tokenize("x", special=False) or [0])[0]
    times: list[float] = []
    for _ in range(_WARM_STEPS):
        began = time.perf_counter()
        if context.evaluate([Slice(0, 0, [token] * size, size)]) is not Decoded.DONE:
            raise NativeError("a first step failed")
        np.argmax(context.logits(size - 1))
        times.append(time.perf_counter() - began)
        context.truncate(0, 0)
    return min(times)


def _common(held: Sequence[int], tokens: Sequence[int]) -> int:
    """How many tokens both begin with."""
    length = min(len(held), len(tokens))
    if list(held[:length]) == list(tokens[:length]):
        return length
    low, high = 0, length
    while low < high:
        middle = (low + high + 1) // 2
        if list(held[low:middle]) == list(tokens[low:middle]):
            low = middle
        else:
            high = middle - 1
    return low

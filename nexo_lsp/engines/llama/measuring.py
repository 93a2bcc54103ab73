"""What steps and prompts cost on this machine, told as lines of JSON: the process behind `tuning.measure`.

Its argument is a `Load` message. Each line says how far it is; the last one has the figures, or the reason
why there are none.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import psutil

from nexo_lsp.engines.llama.hosting import claim_stdout, ignore_interrupts
from nexo_lsp.engines.llama.loading import LoadedModel, LoadError, load
from nexo_lsp.engines.llama.messages import Load, decode_to_worker
from nexo_lsp.engines.llama.native import Context, Decoded, Library, Model, NativeError, Slice
from nexo_lsp.engines.llama.tuning import (
    BATCHES,
    BatchTime,
    Figures,
    PromptSpeed,
    StepTime,
    best_threads,
    thread_counts,
)
from nexo_lsp.engines.llama.waiting import Crowd, Patience, find_patience, prepare_openmp, processors

_CHUNK, _CHUNKS = 64, 4
_CONTEXT = 512
_FILLED = _CHUNK * _CHUNKS
"""Tokens before those whose steps are measured."""
_ROUNDS = 2
"""Every setting is measured so often, in turns: what the machine does besides then hits all of them."""
_STEPS, _STEPS_S = 24, 1.0
"""Steps of one measurement: so many, or so long."""
_REPEATS = 4
_ENOUGH_S = 25.0
"""After so long what has been measured once is not measured again."""
# Any text does: what it says makes no difference to the time.
_TEXT = "def area(width, height):\n    return width * height  # in square metres\n\n"

Tell = Callable[[int, int, str], None]
"""Steps done, of how many, and what comes next."""


@dataclass(frozen=True, slots=True)
class _Setting:
    threads: int
    patient: bool | None

    def __str__(self) -> str:
        waiting = {None: "", True: ", asleep while waiting", False: ", spinning while waiting"}[self.patient]
        return f"{self.threads} thread{'s' if self.threads > 1 else ''}{waiting}"


class Measurement:
    """Measures one loaded model."""

    def __init__(
        self,
        loaded: LoadedModel,
        counts: Sequence[int],
        patience: Patience | None,
        tell: Tell,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._model = loaded.model
        self._counts = counts
        self._patience = patience
        self._tell = tell
        self._clock = clock
        self._began = clock()
        self._tokens = _tokens(loaded.model)
        self._kv_type = loaded.info.kv_type
        self._flash_attention = loaded.context.flash_attention
        self._contexts: dict[int, Context] = {}
        self._settings = [
            _Setting(count, patient)
            for count in counts
            # A single thread never waits for another one.
            for patient in ((False, True) if patience is not None and count > 1 else (None,))
        ]
        # One part for each thread count's prompt, each setting in each round, the batches, and a draft.
        self._parts = len(counts) + _ROUNDS * len(self._settings) + 2
        self._done = 0

    def run(self, crowd: Crowd, draft: Callable[[int], tuple[float | None, str]]) -> Figures:
        """Measure; `draft` gives the time of a second model's guess with so many threads, or why not.

        Raises `NativeError`, also if there is no memory for the small contexts that this needs.
        """
        prompts = [PromptSpeed(count, self._prompt_speed(count)) for count in self._counts]
        steps = self._steps()
        soon = Figures(processors(), steps, tuple(prompts), (), 0.0)
        threads = best_threads(soon)
        batches = self._batches(next(s for s in self._fastest(steps) if s.threads == threads))
        self._next("a second model")
        draft_s, note = draft(threads)
        others = crowd.look() or 0.0
        self._tell(self._parts, self._parts, "done")
        return Figures(processors(), steps, tuple(prompts), batches, others, draft_s, note)

    def close(self) -> None:
        """Free what was made."""
        for context in self._contexts.values():
            context.close()
        self._contexts.clear()

    def _next(self, doing: str) -> None:
        self._tell(self._done, self._parts, doing)
        self._done += 1

    def _wait(self, patient: bool | None) -> None:
        if self._patience is not None:
            self._patience.set(bool(patient))

    def _prompt_speed(self, threads: int) -> float:
        self._next(f"a prompt with {threads} thread{'s' if threads > 1 else ''}")
        self._wait(patient=True)
        context = self._contexts[threads] = Context(
            self._model, _CONTEXT, 1, threads, self._kv_type, flash_attention=self._flash_attention
        )
        times = [
            self._evaluate(context, at, self._tokens[at : at + _CHUNK], logits=0)
            for at in range(0, _FILLED, _CHUNK)
        ]
        # The first one pays for pages that are touched for the first time.
        return _CHUNK / statistics.median(times[1:])

    def _steps(self) -> tuple[StepTime, ...]:
        times: dict[_Setting, list[float]] = defaultdict(list)
        for round_ in range(_ROUNDS):
            # There and back, so that none is always the first.
            for setting in self._settings if round_ % 2 == 0 else reversed(self._settings):
                self._next(f"single tokens, {setting}")
                if not times[setting] or not self._late():
                    times[setting] += self._single_steps(setting)
        return tuple(
            StepTime(setting.threads, setting.patient, statistics.median(times[setting]))
            for setting in self._settings
        )

    def _single_steps(self, setting: _Setting) -> list[float]:
        context = self._contexts[setting.threads]
        self._wait(setting.patient)
        self._step(context)
        times: list[float] = []
        while len(times) < _STEPS and sum(times) < _STEPS_S:
            times.append(self._step(context))
        return times

    def _step(self, context: Context) -> float:
        seconds = self._evaluate(context, _FILLED, self._tokens[_FILLED : _FILLED + 1], logits=1)
        context.truncate(0, _FILLED)
        return seconds

    def _batches(self, fastest: StepTime) -> tuple[BatchTime, ...]:
        self._next("several tokens in a step")
        context = self._contexts[fastest.threads]
        self._wait(fastest.patient)
        times: dict[int, list[float]] = {count: [] for count in BATCHES}
        for _ in range(_REPEATS):
            for count in BATCHES:
                if not times[count] or not self._late():
                    tokens = self._tokens[_FILLED : _FILLED + count]
                    times[count].append(self._evaluate(context, _FILLED, tokens, logits=count))
                    context.truncate(0, _FILLED)
        return tuple(BatchTime(count, statistics.median(times[count])) for count in BATCHES)

    def _fastest(self, steps: Sequence[StepTime]) -> list[StepTime]:
        return sorted(steps, key=lambda step: step.seconds)

    def _late(self) -> bool:
        return self._clock() - self._began > _ENOUGH_S

    def _evaluate(self, context: Context, position: int, tokens: Sequence[int], logits: int) -> float:
        began = self._clock()
        _evaluate(context, position, tokens, logits)
        return self._clock() - began


def guess_s(model: Model, threads: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """How long `model` takes to guess one token, greedily. Raises `NativeError`."""
    context = Context(model, _CONTEXT, 1, threads)
    try:
        tokens = _tokens(model)
        for at in range(0, _FILLED, _CHUNK):
            _evaluate(context, at, tokens[at : at + _CHUNK], logits=0)
        times: list[float] = []
        token = tokens[_FILLED]
        for position in range(_FILLED, _FILLED + _STEPS):
            began = clock()
            _evaluate(context, position, [token], logits=1)
            token = int(np.argmax(context.logits(0)))
            times.append(clock() - began)
        return statistics.median(times[1:])
    finally:
        context.close()


def _evaluate(context: Context, position: int, tokens: Sequence[int], logits: int) -> None:
    if context.evaluate([Slice(0, position, tokens, logits)]) is not Decoded.DONE:
        raise NativeError("a step of the measurement could not be evaluated")


def _tokens(model: Model) -> list[int]:
    some = model.tokenize(_TEXT, special=False)
    needed = _FILLED + max(BATCHES)
    return (some * (1 + needed // max(1, len(some))))[:needed]


def measure_models(library: Library, wish: Load, tell: Tell) -> Figures:
    """Load what `wish` names, and measure it. Raises `LoadError` and `NativeError`."""
    physical = psutil.cpu_count(logical=False) or processors()
    counts = (wish.threads,) if wish.threads else thread_counts(min(physical, processors()), processors())
    small = replace(
        wish, context_tokens=_CONTEXT, threads=counts[-1], sequences=1, prefix_folder="", draft_path=""
    )
    tell(0, 1, f"loading {Path(wish.path).name}")
    loaded = load(library, small, lambda _share: True)
    patience = find_patience()
    measurement = Measurement(loaded, counts, patience, tell)
    try:
        return measurement.run(Crowd(), lambda threads: _draft(library, wish, loaded.model, threads))
    finally:
        if patience is not None:
            patience.set(patient=False)
        measurement.close()
        loaded.close()


def _draft(library: Library, wish: Load, model: Model, threads: int) -> tuple[float | None, str]:
    if not wish.draft_path:
        return None, ""
    small = replace(
        wish,
        path=wish.draft_path,
        context_tokens=_CONTEXT,
        threads=threads,
        sequences=1,
        draft_path="",
        unpack_folder="",
    )
    try:
        draft = load(library, small, lambda _share: True)
    except LoadError as error:
        return None, str(error)
    try:
        return guess_s(draft.model, threads), ""
    except NativeError as error:
        return None, str(error)
    finally:
        draft.close()


def main() -> None:
    """Measure what the `Load` message in the first argument names."""
    # Ctrl-C reaches the whole group; whoever started this ends it.
    ignore_interrupts()
    channel = claim_stdout()
    prepare_openmp(os.environ)
    wish = decode_to_worker(sys.argv[1].encode())
    if not isinstance(wish, Load):
        raise SystemExit("a load message is needed")

    def say(said: object) -> None:
        channel.write(json.dumps(said).encode("ascii") + b"\n")
        channel.flush()

    def tell(done: int, of: int, doing: str) -> None:
        say({"done": done, "of": of, "doing": doing})

    try:
        figures = measure_models(Library(), wish, tell)
    except (LoadError, NativeError) as error:
        say({"error": str(error)})
    else:
        say({"figures": asdict(figures)})


if __name__ == "__main__":
    main()

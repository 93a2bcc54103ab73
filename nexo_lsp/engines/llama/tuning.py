"""What `nexo-lsp doctor --tune` measures on this machine, and what follows from the figures.

The measuring itself (`measuring.py`) runs in a process of its own: a crash of native code takes nothing
along, and OpenMP has the settings there that it has in a worker. Here are its figures, the decisions, and the
call that has it done; `tuning_file.py` remembers.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from nexo_lsp.engines.llama.messages import Load, encode
from nexo_lsp.engines.llama.process import ROOT, python_command
from nexo_lsp.errors import EngineCrashed, EngineLoadFailed

BATCHES = (1, 4, 8, 16)
"""The numbers of tokens whose verification in one step is measured."""
_ACCEPTANCE = 0.7
"""What share of a second model's guesses is taken to be right: rather too few.

About 0.85 was measured (`benchmarks/results/drafting.md`), on easy prompts."""
_PAYS = 1.15
"""A second model costs memory all the time, so it has to bring this much."""
_PROMPT, _ANSWER = 64, 16
"""What a suggestion while typing takes, in tokens: thread counts are compared by it."""
_NEARLY = 0.95
"""More threads than needed are taken only if they leave less than this share of the time."""
_BUSY = 0.25
"""The share of the processors that others may use; beyond it figures say more about them than about ours."""
_TIMEOUT_S = 240.0


@dataclass(frozen=True, slots=True)
class StepTime:
    """How long the step of a single token takes with so many threads: the median."""

    threads: int
    patient: bool | None
    """Whether waiting threads slept soon (True) or spun; None: one thread, or nothing here can change it."""
    seconds: float


@dataclass(frozen=True, slots=True)
class PromptSpeed:
    """How fast a prompt is evaluated with so many threads, in chunks of 64 tokens: the median."""

    threads: int
    tokens_per_s: float


@dataclass(frozen=True, slots=True)
class BatchTime:
    """How long a step takes that evaluates so many tokens of one sequence, with logits for all of them."""

    tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Figures:
    """What was measured of one model."""

    processors: int
    steps: tuple[StepTime, ...]
    prompts: tuple[PromptSpeed, ...]
    batches: tuple[BatchTime, ...]
    others: float
    """Cores that other programs used meanwhile, on average."""
    draft_s: float | None = None
    """How long a second model takes for one guess; None if there was none."""
    draft_note: str = ""
    """Why a second model could not be measured, if one was named."""

    def step_s(self, threads: int) -> float:
        """The step's time with so many threads, waiting as is best."""
        return min(step.seconds for step in self.steps if step.threads == threads)

    def prompt_speed(self, threads: int) -> float:
        """The prompt's tokens per second with so many threads."""
        return next(prompt.tokens_per_s for prompt in self.prompts if prompt.threads == threads)

    def batch_s(self, tokens: int) -> float:
        """The time of a step of so many tokens, between those that were measured on a straight line."""
        below, *rest = self.batches
        for above in rest:
            if tokens <= above.tokens:
                share = (tokens - below.tokens) / (above.tokens - below.tokens)
                return below.seconds + share * (above.seconds - below.seconds)
            below = above
        return below.seconds * tokens / below.tokens


@dataclass(frozen=True, slots=True)
class Drafting:
    """What a second model is expected to bring: tokens per second with it, divided by those without."""

    guesses: int
    """How many in a step are best; 0 if none at all is."""
    gain: float

    @property
    def pays(self) -> bool:
        """Whether it is worth its memory."""
        return self.gain > _PAYS


def thread_counts(physical: int, logical: int) -> tuple[int, ...]:
    """The thread counts that are worth a measurement, ascending."""
    return tuple(sorted({min(count, logical) for count in (1, max(1, physical // 2), physical, logical)}))


def suggestion_s(figures: Figures, threads: int) -> float:
    """How long a typical suggestion takes with so many threads."""
    return _PROMPT / figures.prompt_speed(threads) + _ANSWER * figures.step_s(threads)


def best_threads(figures: Figures) -> int:
    """The thread count with the quickest suggestion; of nearly equal ones the smallest."""
    best, *more = sorted({step.threads for step in figures.steps})
    for threads in more:
        if suggestion_s(figures, threads) < _NEARLY * suggestion_s(figures, best):
            best = threads
    return best


def too_busy(figures: Figures) -> bool:
    """Whether others used so much of the machine that the figures are not worth remembering."""
    return figures.others > _BUSY * figures.processors


def drafting(figures: Figures, acceptance: float = _ACCEPTANCE) -> Drafting | None:
    """What guesses of the second model bring; None if it was not measured.

    With a share p of right guesses, k of them give 1 + p + … + p^k tokens on average, because the first wrong
    one ends them, for k steps of the second model and one of k + 1 tokens of the first.
    """
    if figures.draft_s is None:
        return None
    alone = figures.batch_s(1)
    best = Drafting(0, 1.0)
    expected, chance = 1.0, 1.0
    for guesses in range(1, BATCHES[-1]):
        chance *= acceptance
        expected += chance
        gain = expected * alone / (figures.batch_s(guesses + 1) + guesses * figures.draft_s)
        if gain > best.gain:
            best = Drafting(guesses, gain)
    return best


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the measuring is."""

    done: int
    of: int
    doing: str


def measure(
    wish: Load,
    on_progress: Callable[[Progress], None],
    command: list[str] | None = None,
    timeout_s: float = _TIMEOUT_S,
) -> Figures:
    """Measure the models of `wish` in another process; blocks for some ten seconds up to `timeout_s`.

    Whatever ends this call (Ctrl-C too) ends that process. Raises `EngineLoadFailed` with the reason if a
    model cannot be loaded, `EngineCrashed` if the process ends without a result.
    """
    said: Mapping[str, Any] = {}
    words: list[str] = []
    process = subprocess.Popen(
        command or python_command("nexo_lsp.engines.llama.measuring", encode(wish).decode("ascii").strip()),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )
    log = threading.Thread(target=lambda: words.extend(process.stderr or ()), daemon=True)
    log.start()
    timer = threading.Timer(timeout_s, process.kill)
    timer.start()
    try:
        for line in process.stdout or ():
            said = _said(line)
            if "done" in said:
                on_progress(Progress(said["done"], said["of"], said["doing"]))
        process.wait()
    finally:
        timer.cancel()
        process.kill()
        process.wait()
        log.join()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
    if "error" in said:
        raise EngineLoadFailed(str(said["error"]))
    try:
        return figures_type().validate_python(said.get("figures"))
    except ValidationError:
        why = (words or [f"exit code {process.returncode}"])[-1].strip()
        raise EngineCrashed(f"Measuring ended without a result: {why}") from None


@cache
def figures_type() -> TypeAdapter[Figures]:
    """What checks figures that come from elsewhere."""
    return TypeAdapter(Figures)


def _said(line: str) -> Mapping[str, Any]:
    try:
        said = json.loads(line)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}  # pyright: ignore[reportUnknownVariableType]

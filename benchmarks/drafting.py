"""Does a small model that guesses for a larger one pay on this machine? `python -m benchmarks.drafting`

Three ways in turns, on the same prompts, greedy: the large model alone; with guesses where they are expected
to pay (what the engine does); and with three guesses always, which shows how often they are right.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from benchmarks.engine.machine import describe
from nexo_lsp.engines.llama.draft_model import Draft, Times, load_draft
from nexo_lsp.engines.llama.drafting import DraftLength, Source
from nexo_lsp.engines.llama.loading import LoadedModel, load
from nexo_lsp.engines.llama.messages import Done, FromWorker, Load
from nexo_lsp.engines.llama.native import Library
from nexo_lsp.engines.llama.scheduler import Scheduler
from nexo_lsp.engines.llama.waiting import Crowd, Waiting, find_patience, prepare_openmp, processors
from nexo_lsp.folders import folders
from nexo_lsp.generation import ChatPrompt, Message, Request, Role
from nexo_lsp.models.catalog import CATALOG

PROMPTS = {
    "write": "Write a Python function that merges two sorted lists into one sorted list, with a docstring.",
    "explain": "Explain in a few sentences what a mutex is and when it is needed.",
    "rewrite": "Rewrite as a list comprehension, and show the whole function:\n```python\n"
    "def squares(values):\n    result = []\n    for value in values:\n        if value > 0:\n"
    "            result.append(value ** 2)\n    return result\n```",
}
ALWAYS = 3
WAYS = ("alone", "chosen", f"always {ALWAYS}")


class OnlyModel(DraftLength):
    """No guesses from texts: only the second model is looked at. `always` guesses without regard to costs."""

    def __init__(self, always: int) -> None:
        super().__init__()
        self.always = always

    def best(self, source: Source, run: int, most: int) -> int:
        if source is not Source.MODEL:
            return 0
        return min(self.always, most) if self.always else super().best(source, run, most)

    def saved_s(self, source: Source, run: int, most: int) -> float:
        return 1.0 if self.always else super().saved_s(source, run, most)


@dataclass
class Run:
    tokens: int
    seconds: float
    accepted: int
    drafted: int
    others: float
    text: str


def run(first: LoadedModel, draft: Draft, waiting: Waiting, way: str, prompt: str, tokens: int) -> Run:
    said: list[FromWorker] = []
    second = None if way == "alone" else draft.model
    scheduler = Scheduler(first.model, first.context, said.append, waiting=waiting, draft=second)
    scheduler._lengths = OnlyModel(ALWAYS if way.startswith("always") else 0)
    if second is not None:
        second.guess_for(scheduler._lengths)
    crowd = Crowd()
    scheduler.add(1, Request(ChatPrompt((Message(Role.USER, prompt),)), max_tokens=tokens))
    while scheduler.busy:
        scheduler.step()
    done = next(message for message in said if isinstance(message, Done))
    text = "".join(getattr(message, "text", "") for message in said)
    metrics = scheduler.stats().metrics
    others = crowd.look() or 0.0
    scheduler.close()
    return Run(
        done.tokens, done.usage.decode_s, metrics.accepted_tokens, metrics.drafted_tokens, others, text
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=80)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument(
        "--write", type=Path, help="where the page goes, for example benchmarks/results/drafting.md"
    )
    options = parser.parse_args()
    prepare_openmp(os.environ)
    small, large = CATALOG[:2]
    where = folders(os.environ).models
    wish = Load(str(where / large.file), 2048, sequences=4, draft_path=str(where / small.file))
    library = Library()
    first = load(library, wish, lambda _share: True)
    # Threads that spin beside other programs would make what is measured at the start worthless.
    waiting = Waiting(find_patience(), Crowd(), processors())
    draft = load_draft(library, wish, first, lambda: False)
    if draft.model is None:
        raise SystemExit(draft.note)
    runs: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for _ in range(options.rounds):
        for name, prompt in PROMPTS.items():
            for way in WAYS:
                began = time.monotonic()
                made = run(first, draft, waiting, way, prompt, options.tokens)
                runs[name, way].append(made)
                took = time.monotonic() - began
                print(
                    f"{name}, {way}: {made.tokens / made.seconds:.1f} tokens/s, {took:.0f} s", file=sys.stderr
                )
    page = report(runs, small.name, large.name, draft.model._times)
    waiting.close()
    draft.close()
    first.close()
    if options.write:
        options.write.write_text(page, encoding="utf-8")
    print(page)


def report(runs: dict[tuple[str, str], list[Run]], small: str, large: str, times: Times) -> str:
    everything = [run for several in runs.values() for run in several]
    others = [run.others for run in everything]
    steps = ", ".join(f"{size}: {1000 * seconds:.0f}" for size, seconds in times.steps)
    guess = 1000 * times.guess_s
    lines = [
        "# A second model that guesses",
        "",
        f"{date.today().isoformat()}, {describe()}; meanwhile other programs used {min(others):.1f} to "
        f"{max(others):.1f} of {processors()} processors. Made by `python -m benchmarks.drafting`.",
        "",
        f"{large} writes, {small} guesses. Measured at the start: a guess takes {guess:.0f} ms; steps of the "
        f"large model take, in ms by tokens evaluated at once: {steps}.",
        "",
        "| prompt | way | tokens/s | guesses | of them right | same answer | others' cores |",
        "|---|---|---:|---:|---:|---|---|",
    ]
    for (name, way), several in runs.items():
        tokens, seconds = sum(run.tokens for run in several), sum(run.seconds for run in several)
        drafted, accepted = sum(run.drafted for run in several), sum(run.accepted for run in several)
        share = f"{accepted / drafted:.0%}" if drafted else ""
        same = all(run.text == runs[name, "alone"][0].text for run in several)
        busy = ", ".join(f"{run.others:.1f}" for run in several)
        lines.append(
            f"| {name} | {way} | {tokens / seconds:.1f} | {drafted} | {share} | {'yes' if same else 'no'} "
            f"| {busy} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

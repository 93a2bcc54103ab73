"""How well gaps in real code are filled: the order of the prompt's parts, and token healing.

    python -m benchmarks.infill [--model FILE] [--each 8] [--seconds N] [--state FILE] [--json]

Every case is filled three ways: in the usual order (prefix, suffix, middle), in ours (suffix first, the
prefix behind the middle token), and in ours with token healing. Greedy, to the end of as many lines as were
cut out. Goal: not below the usual order. It takes about half an hour on two cores; answers are kept in
`--state`, and `--seconds` stops in between, so that it can be done in parts.

It talks to llama.cpp itself, without the engine: what is measured is the prompt, not the scheduling.
"""

from __future__ import annotations

import argparse
import ctypes
import difflib
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import psutil

from benchmarks.infill_cases import MASKS, SEED, SOURCES, Case, cases
from nexo_lsp.context.prompts import Prompts as Templates
from nexo_lsp.engines.llama.healing import Healing, HealingState
from nexo_lsp.engines.llama.prompts import Prompts
from nexo_lsp.folders import folders
from nexo_lsp.generation import InfillPrompt
from nexo_lsp.pipeline.closers import closers_behind, until_closed
from nexo_lsp.pipeline.code import without_repetition

VARIANTS = ("usual", "ours", "healed", "closers hidden")
"""The last is healed too; only for what stands between brackets, since nothing else differs."""
USUAL = ("<|fim_prefix|>", "{prefix}", "<|fim_suffix|>", "{suffix}", "<|fim_middle|>")
LINE_TOKENS, BLOCK_TOKENS = 48, 120

Answers = dict[str, dict[str, Any]]


class Runner:
    """The model, one sequence, greedy. Its vocabulary is what `Prompts` and `Healing` ask for."""

    bos = None
    bos_text = eos_text = ""
    chat_template = None

    def __init__(self, path: Path) -> None:
        self._llama = llama_cpp.Llama(str(path), n_ctx=2048, n_batch=512, verbose=False)
        self._vocab = llama_cpp.llama_model_get_vocab(self._llama.model)
        self.vocab_size = self._llama.n_vocab()
        self._evaluated: list[int] = []

    def tokenize(self, text: str, *, special: bool) -> list[int]:
        return self._llama.tokenize(text.encode(), add_bos=False, special=special)

    def special(self, text: str) -> int | None:
        tokens = self.tokenize(text, special=True)
        return tokens[0] if len(tokens) == 1 else None

    def piece(self, token: int) -> bytes:
        buffer = ctypes.create_string_buffer(256)
        count = llama_cpp.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, False)
        return buffer.raw[: max(0, count)]

    def answer(
        self, tokens: Sequence[int], state: HealingState, ends: frozenset[int], most: int, lines: int
    ) -> str:
        """The first `lines` lines of what the model writes after `tokens`, `most` tokens at the most."""
        self._evaluate(tokens)
        text = b""
        for _ in range(most):
            token = self._best(state)
            if token in ends or llama_cpp.llama_vocab_is_eog(self._vocab, token):
                break
            text += state.advance(self.piece(token))
            if text.count(b"\n") >= lines:
                break
            self._evaluate([*self._evaluated, token])
        return "\n".join(text.decode("utf-8", "replace").split("\n")[:lines])

    def _best(self, state: HealingState) -> int:
        pointer = llama_cpp.llama_get_logits_ith(self._llama.ctx, -1)
        logits = np.ctypeslib.as_array(pointer, shape=(self.vocab_size,))
        if not state:
            return int(np.argmax(logits))
        ids = state.allowed()
        return int(ids[np.argmax(logits[ids])])

    def _evaluate(self, tokens: Sequence[int]) -> None:
        common = 0
        while (
            common < min(len(tokens) - 1, len(self._evaluated)) and tokens[common] == self._evaluated[common]
        ):
            common += 1
        self._llama.n_tokens = common
        self._llama.eval(tokens[common:])
        self._evaluated = list(tokens)


def prompt(case: Case, variant: str) -> InfillPrompt:
    suffix = case.suffix_without_closers if variant == "closers hidden" else case.suffix
    made = Templates().infill("qwen2.5-coder", case.prefix, suffix)
    parts = USUAL if variant == "usual" else made.template.parts
    return replace(made, template=replace(made.template, parts=parts, heal=variant not in {"usual", "ours"}))


def variants(case: Case) -> tuple[str, ...]:
    return VARIANTS if case.mask == "brackets" else VARIANTS[:-1]


def fitted(case: Case, variant: str, answer: str) -> str:
    """What the pipeline makes of an answer that has something behind it in its line."""
    if variant == "closers hidden":
        answer = until_closed(answer, closers_behind(case.after))
    return without_repetition(answer, case.after) if case.mask == "brackets" else answer


def run(runner: Runner, todo: list[Case], answers: Answers, keep: Callable[[], None], until: float) -> bool:
    """Fill the cases that `answers` lacks; False if the time was over before all were done."""
    prompts, healing = Prompts(runner), Healing(runner)
    for number, case in enumerate(todo, start=1):
        if case.id in answers:
            continue
        if time.monotonic() > until:
            return False
        most = BLOCK_TOKENS if case.mask == "block" else LINE_TOKENS
        found: dict[str, Any] = {"inside": _inside_a_token(runner, case)}
        for variant in variants(case):
            asked = prompt(case, variant)
            tokens, rest = prompts.healed(asked, healing)
            state = HealingState(healing, rest)
            found[variant] = runner.answer(tokens, state, prompts.end_tokens(asked), most, case.lines)
        answers[case.id] = found
        keep()
        print(f"{number}/{len(todo)} {case.id}", file=sys.stderr)
    return True


def _inside_a_token(runner: Runner, case: Case) -> bool:
    """Whether the true text goes on inside the token that the prefix ends in."""
    before = runner.tokenize(case.prefix, special=False)
    return runner.tokenize(case.prefix + case.truth, special=False)[: len(before)] != before


def measure(case: Case, answer: str) -> tuple[bool, bool, float]:
    """Whether it is exactly what stood there, whether the file still parses, and how alike they are."""
    own, truth = _trimmed(answer), _trimmed(case.truth)
    return own == truth, case.parses(own), difflib.SequenceMatcher(None, own, truth, autojunk=False).ratio()


def _trimmed(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.split("\n")).rstrip()


def table(done: list[Case], answers: Answers) -> list[dict[str, Any]]:
    """A row for every language and mask, then for every mask, for cuts inside a token, and for all."""
    groups = [
        (
            f"{source.language}, {mask}",
            [c for c in done if (c.language.id, c.mask) == (source.language, mask)],
        )
        for source in SOURCES
        for mask in MASKS
    ]
    groups += [(f"all, {mask}", [c for c in done if c.mask == mask]) for mask in MASKS]
    groups += [
        (f"all, {mask}, cut inside a token", [c for c in done if c.mask == mask and answers[c.id]["inside"]])
        for mask in MASKS
    ]
    groups.append(("all", done))
    rows: list[dict[str, Any]] = []
    for name, members in groups:
        row: dict[str, Any] = {"group": name, "cases": len(members)}
        for variant in VARIANTS:
            figures = [
                measure(case, fitted(case, variant, answers[case.id][variant]))
                for case in members
                if variant in answers[case.id]
            ]
            if len(figures) == len(members):
                row[variant] = [sum(figure[part] for figure in figures) for part in range(3)]
        rows.append(row)
    return rows


def differences(done: list[Case], answers: Answers, one: str, other: str) -> tuple[int, int]:
    """In how many cases only `one`, and only `other`, found the exact text."""
    exact = [
        [measure(case, fitted(case, name, answers[case.id][name]))[0] for name in (one, other)]
        for case in done
        if one in answers[case.id] and other in answers[case.id]
    ]
    return sum(a and not b for a, b in exact), sum(b and not a for a, b in exact)


def show(rows: list[dict[str, Any]]) -> None:
    print("| cases | n | " + " | ".join(f"{v}: exact, parses, alike" for v in VARIANTS) + " |")
    print("|---|---|" + "---|" * len(VARIANTS))
    for row in rows:
        count = row["cases"] or 1
        shares = [
            f"{row[v][0]}, {row[v][1]}, {100 * row[v][2] / count:.0f} %" if v in row else "" for v in VARIANTS
        ]
        print(f"| {row['group']} | {row['cases']} | " + " | ".join(shares) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--each", type=int, default=8, help="cases for every language and mask")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--state", type=Path, help="where answers are kept between two runs")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    kept = folders(os.environ)
    cache = kept.models.parent / "benchmarks"
    state: Path = options.state or cache / "infill.json"
    model: Path = options.model or kept.models / "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"
    todo = cases(cache, options.each)
    answers: Answers = json.loads(state.read_text()) if state.exists() else {}

    def keep() -> None:
        state.parent.mkdir(parents=True, exist_ok=True)
        state.write_text(json.dumps(answers))

    if any(case.id not in answers for case in todo):
        done = run(Runner(model), todo, answers, keep, time.monotonic() + options.seconds)
        if not done:
            print(f"{len(answers)} of {len(todo)} cases are done.", file=sys.stderr)
    finished = [case for case in todo if case.id in answers]
    rows = table(finished, answers)
    if options.json:
        print(json.dumps({"seed": SEED, "rows": rows}))
        return
    machine = platform.processor() or platform.machine()
    print(f"{model.name}, llama-cpp-python {version('llama-cpp-python')}, {machine}")
    print(
        f"{psutil.cpu_count()} cores, seed {SEED}; " + ", ".join(f"{s.language}: {s.title}" for s in SOURCES)
    )
    show(rows)
    for one, other in (("usual", "ours"), ("ours", "healed"), ("healed", "closers hidden")):
        first, second = differences(finished, answers, one, other)
        print(f"exact only with {one}: {first}; only with {other}: {second}")


if __name__ == "__main__":
    main()

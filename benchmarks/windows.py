"""How much of a completion's prompt has to be evaluated again while somebody types.

    python -m benchmarks.windows [--model FILE]

Types 40 lines into the middle of a file of this repository, one request for every two characters, and counts
the tokens behind the first that differs from an earlier prompt (any of the last eight, as a cache would keep
them). Compared: windows of a fixed size, and windows that stay. Only the vocabulary is used.
"""

from __future__ import annotations

import argparse
import os
from collections import deque
from collections.abc import Callable
from pathlib import Path

import llama_cpp

from benchmarks.infill_cases import REPOSITORY
from nexo_lsp.context.budget import first_lines, last_lines
from nexo_lsp.context.window import Window, Windows
from nexo_lsp.folders import folders

BEFORE, AFTER = 700, 250
KEPT = 8

Policy = Callable[[str, str], Window]


def fixed(before: str, after: str) -> Window:
    return Window(last_lines(before, BEFORE), first_lines(after, AFTER))


def evaluated(llama: llama_cpp.Llama, policy: Policy, before: str, typed: str, after: str) -> list[int]:
    """Tokens to evaluate for every request, after the first one."""
    kept: deque[list[int]] = deque(maxlen=KEPT)
    costs: list[int] = []
    for end in range(0, len(typed) + 1, 2):
        window = policy(before + typed[:end], after)
        tokens = [
            token
            for text in (window.suffix, window.prefix)
            for token in (-1, *llama.tokenize(text.encode(), add_bos=False, special=False))
        ]
        shared = max((_common(tokens, old) for old in kept), default=0)
        if kept:
            costs.append(len(tokens) - min(shared, len(tokens) - 1))
        kept.appendleft(tokens)
    return costs


def _common(one: list[int], other: list[int]) -> int:
    return next(
        (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
        min(len(one), len(other)),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", type=Path)
    options = parser.parse_args()
    model = options.model or folders(os.environ).models / "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"
    llama = llama_cpp.Llama(str(model), vocab_only=True, verbose=False)
    text = (REPOSITORY / "nexo_lsp/text.py").read_text(encoding="utf-8")
    lines = text.split("\n")
    middle = next(
        row for row in range(len(lines) // 2, len(lines)) if lines[row].startswith(("def ", "class "))
    )
    before = "\n".join(lines[:middle]) + "\n"
    after = "\n" + "\n".join(lines[middle:])
    typed = "\n".join((REPOSITORY / "nexo_lsp/documents.py").read_text(encoding="utf-8").split("\n")[150:190])
    print("| windows | requests | tokens evaluated | a request, median | over 100 tokens | worst |")
    print("|---|---|---|---|---|---|")
    for name, policy in (("of a fixed size", fixed), ("that stay", Windows(BEFORE, AFTER).around)):
        costs = sorted(evaluated(llama, policy, before, typed, after))
        long = sum(cost > 100 for cost in costs)
        median = costs[len(costs) // 2]
        print(f"| {name} | {len(costs)} | {sum(costs)} | {median} | {long} requests | {costs[-1]} |")


if __name__ == "__main__":
    main()

"""How large a context the memory allows: pure arithmetic, and a watch over what is really taken.

Measured with llama-cpp-python 0.3.36 (CPU build, 512 tokens a batch, 8 sequences) on an AMD EPYC with two
cores, resident MiB, Qwen2.5-Coder Q4_K_M. "Weights" is after loading them, "context" after making it, "run"
after a prompt of 600 tokens (0.5B) or 520 (1.5B):

| model | file | cache | library, Python | weights | context | run |
|---|---|---|---|---|---|---|
| 0.5B | 468 | 1,024 f16: 12 | 54 | 593 | 606 | 646 |
| 0.5B | 468 | 8,192 f16: 96 | 54 | 592 | 690 | 731 (738 after 7,680 tokens) |
| 0.5B | 468 | 1,024 q8_0: 6 | 54 | 592 | 600 | 639 |
| 0.5B | 468 | 8,192 q8_0: 51 | 54 | 593 | 646 | 687 |
| 1.5B | 1,065 | 1,024 f16: 28 | 54 | 1,758 | 1,788 | 1,859 |
| 1.5B | 1,065 | 8,192 f16: 224 | 54 | 1,758 | 1,984 | 2,057 |

These are with flash attention. Without it, in batches of 256, a step takes some 21 KB more for each token of
the 0.5B's context that is in use: 14 heads compare 256 tokens with each of them, and what comes of it is kept
as a float and copied in parts (795 MiB after 600 tokens, 825 after 2,048, 946 after 7,892; weights in whole
bytes).

So the cache is what the arithmetic says, and the rest hardly depends on the context. The weights of the 1.5B
took more than their file, which was mapped: llama.cpp keeps a second copy of some tensors in the order that
the processor likes. Such files are read by now (`gguf_head.is_rearranged`), so that 1,758 MiB are 1,170. The
plan is made from what is held once the weights are loaded.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

KvType = Literal["f16", "q8_0"]

MIB = 2**20
LEAST_TOKENS = 1024
"""A smaller context holds no useful prompt."""
VOCABULARY_BYTES = 80 * MIB
"""What loading the weights takes beside them; measured 70 MiB with 152,000 tokens."""

SWAP_BYTES = 128 * MIB
"""What prompts may take that were moved out of the context: about 10,000 tokens of the 0.5B model."""

_STEP_TOKENS = 256
"""llama.cpp rounds contexts to this."""
_TOKENS_A_SEQUENCE = 256
# A value of q8_0 takes 8.5 bits: 32 of them share a scale of 16 bits. One of f16 takes 16.
_Q8_NUMERATOR, _Q8_DENOMINATOR = 17, 32
Q8_BLOCK = 32
"""Heads whose size is no multiple of this cannot be kept as q8_0."""


class NoRoom(Exception):
    """Not even the smallest context fits."""

    def __init__(self, least_bytes: int) -> None:
        super().__init__(f"{least_bytes} bytes are needed at least")
        self.least_bytes = least_bytes
        """What the whole would take with the smallest context."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What of a model decides how much memory it takes."""

    file_bytes: int
    held_bytes: int
    """What the worker takes with the weights loaded and no context yet."""
    token_bytes: int
    """The cache of one token as f16 in this machine's memory, K and V of every layer."""
    trained_tokens: int = 0
    """How far the model was trained to look back; 0 if unknown."""
    head_size: int = Q8_BLOCK
    layers: int = 0
    step_bytes: int = 0
    """What a step takes beside that for each token of the context, where attention looks at all of it at once
    (without flash attention); 0 where it never does."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked for."""

    context_tokens: int
    sequences: int = 8
    kv_type: Literal["", "f16", "q8_0"] = ""
    """Empty: f16 if it fits."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is made of a wish."""

    context_tokens: int
    sequences: int
    kv_type: KvType
    cache_bytes: int
    total_bytes: int
    """What the worker is expected to take in all, at work."""
    reduced: tuple[str, ...] = ()
    """What is less than was asked for, each with its reason; for people."""
    flash_attention: bool = True
    """Slower on a processor (see `native.Context`), but steps take little memory, and V may be quantised."""


def compute_bytes(file_bytes: int) -> int:
    """What an evaluation takes beside weights and cache.

    Measured: 48 MiB with the 0.5B, 73 MiB with the 1.5B; 48 rows of logits for drafts add up to 28 MiB with
    a vocabulary of 152,000. It grows with the model's width, for which the file's size stands here, rather
    too high.
    """
    return 64 * MIB + file_bytes // 16


def cache_bytes(facts: ModelFacts, tokens: int, kv_type: KvType) -> int:
    """The memory of a cache of so many tokens."""
    full = facts.token_bytes * tokens
    return full if kv_type == "f16" else full * _Q8_NUMERATOR // _Q8_DENOMINATOR


def plan(facts: ModelFacts, wish: Wish, allowed_bytes: int, why: str) -> Plan:
    """What fits into `allowed_bytes`, which is what the worker may take in all.

    First the wished context as f16, then as q8_0, then fewer tokens. `why` says where the bound comes from,
    for the reasons. Raises `NoRoom`.
    """
    asked = wish.context_tokens
    tokens = whole = min(asked, facts.trained_tokens) if facts.trained_tokens else asked
    reduced: list[str] = []
    if whole < asked:
        reduced.append(f"{whole:,} tokens instead of {asked:,}: the model looks back no further")
    fixed = facts.held_bytes + compute_bytes(facts.file_bytes)
    kinds = _kinds(facts, wish)
    for kind in kinds:
        if fixed + cache_bytes(facts, tokens, kind) <= allowed_bytes:
            break
    else:
        kind = kinds[-1]
        # By whole steps, and never below the least.
        a_step = max(1, cache_bytes(facts, _STEP_TOKENS, kind))
        fitting = max(0, allowed_bytes - fixed) // a_step * _STEP_TOKENS
        least = min(LEAST_TOKENS, tokens)
        if fitting < least:
            raise NoRoom(fixed + cache_bytes(facts, least, kind))
        reduced.append(f"{fitting:,} tokens instead of {tokens:,}: {why}")
        tokens = fitting
    if wish.kv_type and kind != wish.kv_type:
        reduced.append(
            f"the cache is kept as {kind}: heads of {facts.head_size} values allow no {wish.kv_type}"
        )
    if kind != kinds[0]:
        reduced.append(f"the cache is kept as {kind} instead of {kinds[0]}: {why}")
    sequences = wish.sequences
    if tokens < whole:
        sequences = min(sequences, max(1, tokens // _TOKENS_A_SEQUENCE))
    cache = cache_bytes(facts, tokens, kind)
    whole_steps = facts.step_bytes * tokens
    # Without flash attention the context holds little, and what was evaluated before is swapped out.
    whole = fixed + cache + whole_steps + SWAP_BYTES
    flash = not whole_steps or kind != "f16" or whole > allowed_bytes
    total = fixed + cache if flash else whole
    return Plan(tokens, sequences, kind, cache, total, tuple(reduced), flash)


def _kinds(facts: ModelFacts, wish: Wish) -> tuple[KvType, ...]:
    """The types to be tried, the best first."""
    if facts.head_size % Q8_BLOCK:
        return ("f16",)
    return (wish.kv_type,) if wish.kv_type else ("f16", "q8_0")


class MemoryWatch:
    """Says by how much a process is over its limit; cheap enough to be asked at every step."""

    def __init__(
        self,
        limit_bytes: int,
        rss: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
        interval_s: float = 1.0,
    ) -> None:
        """`limit_bytes` 0: there is no limit. `rss` gives the resident size and is asked once an interval."""
        self._limit = limit_bytes
        self._rss = rss
        self._clock = clock
        self._interval = interval_s
        self._next = clock()

    def over(self) -> int:
        """Bytes above the limit, if this call had a look and found some; else 0.

        So an excess is told once, and again only if the next look finds that what was done was not enough.
        """
        if not self._limit or self._clock() < self._next:
            return 0
        self._next = self._clock() + self._interval
        return max(0, self._rss() - self._limit)

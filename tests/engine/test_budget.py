"""How much context a memory budget allows. The figures are those of Qwen2.5-Coder-0.5B."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nexo_lsp.engines.llama.budget import (
    MIB,
    MemoryWatch,
    ModelFacts,
    NoRoom,
    Wish,
    cache_bytes,
    compute_bytes,
    plan,
)

FACTS = ModelFacts(
    file_bytes=468 * MIB, held_bytes=592 * MIB, token_bytes=12_288, trained_tokens=32_768, head_size=64
)
FIXED = FACTS.held_bytes + compute_bytes(FACTS.file_bytes)
WISH = Wish(8192)


def with_cache(mib: int, wish: Wish = WISH, facts: ModelFacts = FACTS):
    """The plan where the cache may take `mib` MiB."""
    return plan(facts, wish, FIXED + mib * MIB, "memory is short")


def test_everything_fits() -> None:
    made = with_cache(96)
    assert (made.context_tokens, made.sequences, made.kv_type, made.reduced) == (8192, 8, "f16", ())
    assert made.cache_bytes == 96 * MIB
    assert made.total_bytes == FIXED + 96 * MIB


def test_the_cache_is_compressed_before_it_is_shortened() -> None:
    made = with_cache(95)
    assert (made.context_tokens, made.sequences, made.kv_type) == (8192, 8, "q8_0")
    assert made.flash_attention, "llama.cpp keeps no quantised V without it"
    assert made.cache_bytes == 51 * MIB
    assert made.reduced == ("the cache is kept as q8_0 instead of f16: memory is short",)


def test_attention_is_computed_as_a_whole_where_there_is_memory_for_it() -> None:
    # 14 heads, 256 tokens a step, 6 bytes: 168 MiB for 8,192 tokens; and 128 for what is swapped out.
    facts = replace(FACTS, step_bytes=14 * 256 * 6)
    roomy, tight = (with_cache(96 + more, facts=facts) for more in (296, 295))
    assert (roomy.flash_attention, roomy.total_bytes) == (False, FIXED + (96 + 296) * MIB)
    assert (tight.flash_attention, tight.total_bytes) == (True, FIXED + 96 * MIB)
    assert (tight.context_tokens, tight.kv_type, tight.reduced) == (8192, "f16", ())
    assert with_cache(1000, Wish(8192, kv_type="q8_0"), facts).flash_attention
    assert with_cache(1000).flash_attention, "on a GPU"


def test_a_shorter_context_fills_what_there_is() -> None:
    made = with_cache(20)
    assert made.kv_type == "q8_0"
    assert made.context_tokens % 256 == 0
    assert cache_bytes(FACTS, made.context_tokens, "q8_0") <= 20 * MIB
    assert cache_bytes(FACTS, made.context_tokens + 256, "q8_0") > 20 * MIB
    assert made.sequences == 8, "there is room for as many prompts"
    assert made.reduced == (
        "3,072 tokens instead of 8,192: memory is short",
        "the cache is kept as q8_0 instead of f16: memory is short",
    )


def test_the_shortest_context_holds_fewer_sequences() -> None:
    made = with_cache(7)
    assert (made.context_tokens, made.sequences) == (1024, 4)


def test_below_the_shortest_context_nothing_is_loaded() -> None:
    with pytest.raises(NoRoom) as caught:
        with_cache(6)
    assert caught.value.least_bytes == FIXED + cache_bytes(FACTS, 1024, "q8_0")
    assert plan(FACTS, WISH, caught.value.least_bytes, "").context_tokens == 1024, "what was named does"


def test_a_type_that_was_asked_for_stays() -> None:
    made = with_cache(95, Wish(8192, kv_type="f16"))
    assert (made.kv_type, made.context_tokens) == ("f16", 7936)
    made = with_cache(96, Wish(8192, kv_type="q8_0"))
    assert (made.kv_type, made.reduced) == ("q8_0", ())


def test_heads_of_an_odd_size_are_not_compressed() -> None:
    narrow = replace(FACTS, head_size=80)
    assert with_cache(95, facts=narrow).kv_type == "f16"
    (reason,) = with_cache(96, Wish(8192, kv_type="q8_0"), narrow).reduced
    assert "80" in reason


def test_a_model_looks_back_only_so_far() -> None:
    made = with_cache(96, facts=replace(FACTS, trained_tokens=2048))
    assert (made.context_tokens, made.sequences) == (2048, 8)
    assert made.reduced == ("2,048 tokens instead of 8,192: the model looks back no further",)
    assert with_cache(96, facts=replace(FACTS, trained_tokens=0)).context_tokens == 8192


def test_a_context_that_was_wished_small_may_be_small() -> None:
    made = with_cache(12, Wish(512), replace(FACTS, trained_tokens=512))
    assert (made.context_tokens, made.sequences, made.reduced) == (512, 8, ())


@pytest.mark.parametrize("mib", range(7, 120, 3))
@pytest.mark.parametrize("asked", [1024, 5000, 8192, 32_768])
def test_a_plan_keeps_its_budget_and_gives_no_more_than_was_asked(mib: int, asked: int) -> None:
    made = with_cache(mib, Wish(asked))
    assert made.total_bytes <= FIXED + mib * MIB
    assert made.context_tokens <= asked
    assert bool(made.reduced) == (made.context_tokens < asked or made.kv_type != "f16")


class Process:
    """A process whose size and clock a test sets."""

    def __init__(self) -> None:
        self.now, self.size, self.asked = 0.0, 0, 0

    def rss(self) -> int:
        self.asked += 1
        return self.size

    def clock(self) -> float:
        return self.now


def test_the_watch_looks_once_a_second_and_tells_once() -> None:
    process = Process()
    watch = MemoryWatch(100, process.rss, process.clock)
    process.size = 90
    assert [watch.over() for _ in range(5)] == [0] * 5
    assert process.asked == 1
    process.size = 130
    assert watch.over() == 0, "it is not time to look again"
    process.now = 1.0
    assert [watch.over(), watch.over()] == [30, 0]
    process.now, process.size = 2.0, 105
    assert watch.over() == 5, "what was done about it was not enough"
    process.now, process.size = 3.0, 100
    assert watch.over() == 0
    assert process.asked == 4


def test_without_a_limit_nobody_looks() -> None:
    process = Process()
    process.size = 10**12
    assert MemoryWatch(0, process.rss, process.clock).over() == 0
    assert process.asked == 0

"""What the prefix cache takes out of the context, what it brings back, and what it keeps on disk."""

from __future__ import annotations

from array import array
from pathlib import Path

import pytest

from nexo_lsp.engines.llama import radix
from nexo_lsp.engines.llama.leases import Lease
from nexo_lsp.engines.llama.prefix_store import PrefixStore
from nexo_lsp.engines.llama.swap import SwapSpace

from .fake_memory import CELL_BYTES, Bench, text


def test_what_is_over_the_bound_is_swapped_out_and_comes_back() -> None:
    bench = Bench(options={"live_cells": 1000, "swap_bytes": 1_000_000})
    for seed in range(5):
        bench.job(text(seed, 400))
        assert bench.cache.cells == bench.memory.used <= 1000
    assert bench.cache.kept == 2
    assert bench.cache.swapped_bytes == 3 * (400 * CELL_BYTES + 4)
    for seed in range(5):
        assert bench.job(text(seed, 400) + text(9, 5)) == 400
    assert bench.cache.swapped_bytes == 3 * (405 * CELL_BYTES + 4)


def test_swapped_sequences_keep_to_their_memory_least_recently_used_first() -> None:
    bench = Bench(options={"live_cells": 0, "swap_bytes": 3 * (400 * CELL_BYTES + 4)})
    for seed in range(5):
        bench.job(text(seed, 400))
        assert bench.cache.kept == 1
    assert bench.cache.swapped_bytes == 3 * (400 * CELL_BYTES + 4)
    assert bench.job([*text(0, 400), 7]) == 0
    assert bench.job([*text(2, 400), 7]) == 400


def test_without_memory_for_it_what_is_over_the_bound_is_forgotten() -> None:
    bench = Bench(options={"live_cells": 500})
    for seed in range(3):
        bench.job(text(seed, 400))
    assert bench.cache.kept == 1
    assert bench.memory.saves == bench.cache.swapped_bytes == 0


def test_a_state_that_is_too_large_is_not_even_saved_a_second_time() -> None:
    bench = Bench(options={"live_cells": 0, "swap_bytes": 1000})
    for seed in range(4):
        bench.job(text(seed, 400))
    assert bench.memory.saves == 1


def test_a_short_tail_is_not_worth_a_state() -> None:
    bench = Bench(options={"swap_bytes": 1_000_000})
    bench.job(text(1, 500) + text(2, 60), "a")
    bench.job(text(1, 250) + text(3, 15), "b")
    while bench.cache.evict():
        pass
    assert bench.cache.cells == 0
    assert bench.memory.saves == 1


def test_swapped_beginnings_of_swapped_sequences_are_not_kept_twice() -> None:
    bench = Bench(options={"swap_bytes": 1_000_000})
    bench.job(text(1, 300))
    bench.cache.evict()
    bench.job(text(1, 300) + text(2, 300), "other")
    bench.cache.evict()
    assert bench.cache.swapped_bytes == 600 * CELL_BYTES + 4


def test_a_longer_state_takes_the_place_of_its_beginnings() -> None:
    space = SwapSpace(1_000_000, None)
    assert space.keep(radix.pack(text(1, 100)), bytes(1000), "")
    assert space.keep(radix.pack(text(1, 50) + text(2, 50)), bytes(1000), "")
    assert space.keep(radix.pack(text(1, 200)), bytes(2000), "")
    assert space.keep(radix.pack(text(1, 200)), bytes(2000), "again")
    assert space.bytes == 3000


def test_the_shortest_state_that_will_do_is_brought_back() -> None:
    space = SwapSpace(1_000_000, None)
    for length in (900, 200, 500):
        space.keep(radix.pack(text(1, 100) + text(length, length - 100)), bytes(length), "")
    assert space.find(radix.pack(text(1, 100)))[:2] == (100, 200)


def test_what_was_brought_back_for_another_counts_as_used() -> None:
    bench = Bench(options={"swap_bytes": 2 * (700 * CELL_BYTES + 4)})
    for seed in (1, 2):
        bench.job(text(seed, 700))
        bench.cache.evict()
    assert bench.job(text(1, 200) + text(4, 500)) == 200
    bench.cache.evict()
    assert bench.job([*text(2, 700), 7]) == 0
    assert bench.job([*text(1, 700), 7]) == 700


def test_what_is_swapped_already_is_not_saved_again_but_counts_as_used() -> None:
    bench = Bench(options={"swap_bytes": 2 * (700 * CELL_BYTES + 4)})
    first = bench.acquire(text(1, 300))
    assert first is not None
    bench.evaluate(first.sequence, text(1, 300))
    for seed in (1, 2):
        bench.job(text(seed, 700))
        bench.cache.evict()
    bench.release(first.sequence)
    bench.cache.evict()
    assert bench.memory.saves == 2
    bench.job(text(3, 700))
    bench.cache.evict()
    assert bench.job([*text(2, 700), 7]) == 0
    assert bench.job([*text(1, 700), 7]) == 700


def test_a_little_more_is_evaluated_rather_than_brought_back() -> None:
    bench = Bench(options={"swap_bytes": 1_000_000})
    bench.job(text(1, 5000))
    bench.cache.evict()
    assert bench.job(text(1, 40) + text(2, 100)) == 0, "5,000 for 40"
    assert bench.job(text(1, 200) + text(2, 100)) == 200
    assert bench.job([*text(1, 5000), 7]) == 5000, "another's part of it was copied, not taken"


def test_room_is_made_for_what_comes_back_but_not_without_end() -> None:
    bench = Bench(capacity=1000, options={"swap_bytes": 1_000_000})
    bench.job(text(1, 700))
    bench.job(text(2, 700))
    bench.job(text(3, 200))
    assert bench.cache.cells == 900
    assert bench.job([*text(1, 700), 7]) == 700
    holder = bench.acquire(text(4, 900))
    assert holder is not None
    bench.evaluate(holder.sequence, text(4, 900))
    other = bench.acquire([*text(2, 700), 7])
    assert other == Lease(other.sequence, 0) if other else False, "a job holds the room"
    bench.release(holder.sequence)
    bench.release(other.sequence)
    assert bench.job([*text(2, 700), 7]) == 700, "it is there still"


def test_a_damaged_state_is_given_up() -> None:
    bench = Bench(options={"swap_bytes": 1_000_000})
    save = bench.memory.save
    bench.memory.save = lambda sequence: save(sequence)[:-1] + b"!"
    bench.job(text(1, 700))
    bench.cache.evict()
    assert bench.cache.swapped_bytes
    assert bench.job(text(1, 100)) == 0
    assert bench.cache.swapped_bytes == 0


def test_a_damaged_state_costs_the_others_at_most_a_way_out_and_back() -> None:
    bench = Bench(options={"swap_bytes": 1_000_000})
    save = bench.memory.save
    bench.memory.save = lambda sequence: save(sequence)[:-1] + b"!"
    bench.job(text(1, 700))
    bench.cache.evict()
    bench.memory.save = save
    bench.job(text(1, 5) + text(2, 700))
    bench.job(text(3, 800))
    bench.job(text(4, 100))
    assert bench.job(text(1, 600)) == 5
    assert bench.memory.restores == 0
    assert bench.cache.cells == 595 + 705 + 100, "no more made room than would have been enough"
    assert bench.job([*text(3, 800), 7]) == 800
    assert bench.job([*text(1, 5), *text(2, 700), 7]) == 705


def test_memory_that_cannot_be_had_for_a_state_is_no_failure() -> None:
    def save(_sequence: int) -> bytes:
        raise MemoryError

    bench = Bench(options={"swap_bytes": 1_000_000})
    bench.memory.save = save
    bench.job(text(1, 700))
    assert bench.cache.evict()
    assert bench.job(text(1, 700)) == 0


def test_a_sequence_stays_free_for_the_next_keystroke() -> None:
    bench = Bench(sequences=8, options={"swap_bytes": 10_000_000})
    for seed in range(12):
        bench.job(text(seed, 100))
        saves = bench.memory.saves
        assert bench.acquire(text(99, 10)) is not None
        assert bench.memory.saves == saves
        (sequence,) = bench.running
        bench.release(sequence)
    assert bench.cache.kept == 6


def test_nobody_who_types_is_pushed_out_by_a_burst_of_reviews() -> None:
    bench = Bench(options={"live_cells": 2000, "swap_bytes": 10_000_000})
    bench.job(text(1, 800), "infill")
    for seed in range(10, 20):
        bench.job(text(seed, 900), f"review {seed}")
    saves, restores = bench.memory.saves, bench.memory.restores
    assert bench.job([*text(1, 800), 7], "infill") == 800
    assert (bench.memory.saves, bench.memory.restores) == (saves, restores), "it never left"
    bench.now += 61
    bench.job(text(20, 900), "review 20")
    bench.job(text(21, 900), "review 21")
    bench.job([*text(1, 800), 7, 8], "infill")
    assert bench.memory.restores == restores + 1, "who stopped typing gives way like all others"


def test_evicting_takes_what_is_typed_in_last() -> None:
    bench = Bench()
    bench.job(text(1, 100), "infill")
    bench.job(text(2, 100), "review")
    bench.cache.evict()
    assert bench.job([*text(1, 100), 7], "infill") == 100


def test_what_others_share_counts_as_used() -> None:
    bench = Bench()
    for seed in (1, 2):
        bench.job(text(seed, 100))
    assert bench.job(text(1, 60) + text(3, 60)) == 60
    bench.cache.evict()
    assert bench.job([*text(2, 100), 7]) == 0
    assert bench.job([*text(1, 100), 7]) == 100


def test_a_sequence_counts_as_used_when_its_beginning_was() -> None:
    bench = Bench()
    first = bench.acquire(text(1, 20))
    assert first is not None
    bench.evaluate(first.sequence, text(1, 20))
    for seed in (1, 2):
        bench.job(text(seed, 100))
    bench.release(first.sequence)
    bench.cache.evict()
    assert bench.job([*text(2, 100), 7]) == 0
    assert bench.job([*text(1, 100), 7]) == 100


def test_typing_in_many_places_does_not_hold_the_context() -> None:
    bench = Bench(options={"live_cells": 1000, "swap_bytes": 10_000_000})
    for seed in range(6):
        bench.job(text(seed, 800), "infill")
    assert bench.cache.kept == 1


def test_evicting_frees_cells_or_says_that_it_cannot() -> None:
    bench = Bench()
    assert not bench.cache.evict()
    first = bench.acquire(text(1, 300))
    assert first is not None
    bench.evaluate(first.sequence, text(1, 300))
    second = bench.acquire(text(1, 200) + text(2, 100))
    assert second is not None
    bench.evaluate(second.sequence, text(2, 100))
    bench.memory.truncate(second.sequence, 200)
    bench.running[second.sequence] = text(1, 200)
    bench.release(second.sequence)
    assert not bench.cache.evict(), "an unfinished job uses all cells of the finished one"
    bench.release(first.sequence)
    assert bench.cache.evict()
    assert bench.cache.cells == bench.memory.used == 0


def test_shrinking() -> None:
    bench = Bench(options={"swap_bytes": 1_000_000})
    for seed in range(5):
        bench.job(text(seed, 100))
    bench.cache.shrink(250)
    assert bench.cache.cells == 200
    assert bench.cache.swapped_bytes == 3 * (100 * CELL_BYTES + 4)
    bench.cache.shrink(150, swap_bytes=2000)
    assert bench.cache.cells == 100
    assert bench.cache.swapped_bytes == 100 * CELL_BYTES + 4
    bench.cache.shrink(0, swap_bytes=0)
    assert bench.cache.cells == bench.cache.swapped_bytes == bench.cache.kept == 0


def test_dropping_twice_hands_a_sequence_out_once() -> None:
    bench = Bench(sequences=2)
    lease = bench.acquire(text(1, 10))
    assert lease is not None
    bench.cache.drop(lease.sequence)
    bench.cache.drop(lease.sequence)
    bench.running.clear()
    first, second = bench.acquire([1]), bench.acquire([2])
    assert first is not None
    assert second is not None
    assert first.sequence != second.sequence
    assert bench.acquire([3]) is None


# On disk


def stored(folder: Path, **options: object) -> Bench:
    return Bench(options={"store": PrefixStore(folder, "key", 10_000_000), **options})


def test_a_static_prefix_outlives_the_process_and_nothing_else_does(tmp_path: Path) -> None:
    static, code = text(1, 300), text(2, 200)
    bench = stored(tmp_path)
    assert bench.job(static + code, static=300) == 0
    assert bench.job(static + text(3, 200), static=300) == 300
    assert bench.memory.saves == 1
    again = stored(tmp_path)
    assert again.job(static + code, static=300) == 300
    assert again.memory.saves == 0
    assert again.cache.swapped_bytes == 0
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert array("i", [static[250]]).tobytes() in written
    assert array("i", [code[0]]).tobytes() not in written


def test_static_prefixes_on_disk_are_used_again_and_again(tmp_path: Path) -> None:
    stored(tmp_path).job(text(1, 300), static=300)
    bench = stored(tmp_path)
    for seed in range(3):
        assert bench.job(text(1, 300) + text(seed, 50), static=300) == 300
        bench.cache.shrink(0)
    assert bench.memory.restores == 3


def test_what_is_cut_short_or_hardly_anything_is_not_stored(tmp_path: Path) -> None:
    bench = stored(tmp_path)
    bench.job(text(1, 200), static=300)
    bench.job(text(2, 200), static=20)
    bench.job(text(3, 200))
    assert bench.memory.saves == 0


def test_a_prefix_that_cannot_be_written_is_tried_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("no folder")
    bench = stored(tmp_path / "file")
    for seed in range(3):
        bench.job(text(1, 300) + text(seed, 50), static=300)
    assert bench.memory.saves == 1
    assert capsys.readouterr().err.count("not kept") == 1


def test_a_stored_prefix_that_vanished_is_evaluated_and_stored_again(tmp_path: Path) -> None:
    stored(tmp_path).job(text(1, 300), static=300)
    bench = stored(tmp_path)
    (path,) = tmp_path.rglob("*.prefix")
    path.unlink()
    assert bench.job(text(1, 300), static=300) == 0
    assert path.exists()


def test_what_is_finished_leaves_when_a_job_begins() -> None:
    bench = Bench(options={"swap_bytes": 1_000_000, "alone": True})
    bench.job(text(1, 400))
    assert bench.cache.kept == 1
    lease = bench.acquire(text(2, 300))
    assert lease is not None
    assert (bench.cache.kept, bench.memory.used) == (0, 0)
    assert bench.evaluate(lease.sequence, text(2, 300))
    bench.release(lease.sequence)
    assert bench.job([*text(1, 400), 7]) == 400, "and comes back"
    assert bench.memory.used == 401


def test_what_a_job_shares_with_a_finished_one_stays_and_its_tail_goes() -> None:
    bench = Bench(options={"swap_bytes": 1_000_000, "alone": True})
    bench.job(text(1, 200) + text(2, 300), "a")
    lease = bench.acquire(text(1, 200) + text(3, 50), "b")
    assert lease is not None
    assert (lease.cached, bench.memory.used) == (200, 200)
    assert bench.memory.restores == 0
    assert bench.job(text(1, 200) + text(2, 300) + [7], "a") == 500


def test_nothing_is_lost_for_being_alone() -> None:
    bench = Bench(options={"swap_bytes": 200 * CELL_BYTES, "alone": True})
    bench.job(text(1, 100))
    bench.job(text(2, 400))
    # How large a token's state is is known from the first one: this one has no room in the swap.
    bench.job(text(3, 100))
    assert bench.job([*text(2, 400), 7]) == 400


def test_what_somebody_types_in_stays_in_the_swap() -> None:
    bench = Bench(options={"swap_bytes": 3 * (300 * CELL_BYTES + 4), "alone": True})
    bench.job(text(1, 300), "infill:a")
    for seed in range(2, 8):
        bench.job(text(seed, 300), "review")
        bench.now += 1
    assert bench.job([*text(1, 300), 7], "infill:a") == 300


def test_what_was_brought_back_behind_another_moves_to_the_front() -> None:
    bench = Bench(options={"swap_bytes": 1_000_000, "alone": True})
    bench.job(text(9, 5) + text(1, 300), "a")
    bench.job(text(9, 5) + text(2, 300), "b")
    clears = bench.memory.clears
    # The last one has the first five tokens too, so it stays until this one has been brought back.
    assert bench.job([*text(9, 5), *text(1, 300), 7], "a") == 305
    assert bench.memory.clears == clears + 1


def test_who_was_behind_others_moves_to_the_front_once_they_have_gone() -> None:
    bench = Bench(options={"swap_bytes": 1_000_000, "alone": True})
    first = bench.acquire(text(1, 300))
    assert first is not None
    assert bench.evaluate(first.sequence, text(1, 300))
    bench.job(text(2, 200), "b")
    bench.release(first.sequence)
    assert bench.memory.clears == 0
    assert bench.job([*text(2, 200), 7], "b") == 200
    assert bench.memory.clears == 1
    assert bench.job([*text(2, 200), 7, 8], "b") == 201
    assert bench.memory.clears == 1, "there was nobody in front of it any more"

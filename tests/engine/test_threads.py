"""How the number of decoding threads follows the machine."""

from __future__ import annotations

from collections.abc import Callable

from nexo_lsp.engines.llama.threads import ThreadTuner


def live(tuner: ThreadTuner, steps: int, cost: Callable[[int], float]) -> dict[int, int]:
    """Run so many steps where one with n threads takes `cost(n)`; how many used how many threads."""
    used: dict[int, int] = {}
    for _ in range(steps):
        used[tuner.threads] = used.get(tuner.threads, 0) + 1
        tuner.observe(cost(tuner.threads))
    return used


def quiet(threads: int) -> float:
    return 0.08 / threads


def crowded(threads: int) -> float:
    return 0.1 * threads


def test_on_a_quiet_machine_all_threads_are_used_nearly_always() -> None:
    used = live(ThreadTuner(4), 2000, quiet)
    assert used[4] > 0.95 * 2000


def test_on_a_crowded_machine_one_thread_wins_soon_and_gives_way_again() -> None:
    tuner = ThreadTuner(4)
    assert live(tuner, 200, crowded)[1] > 100
    live(tuner, 400, quiet)
    assert live(tuner, 1000, quiet)[4] > 900


def test_a_sudden_slowdown_is_answered_at_once() -> None:
    tuner = ThreadTuner(2)
    live(tuner, 1000, quiet)
    assert live(tuner, 30, crowded)[1] > 15


def test_a_single_thread_stays_alone() -> None:
    assert live(ThreadTuner(1), 100, crowded) == {1: 100}

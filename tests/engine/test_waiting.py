"""How threads wait: chosen from what others use of the machine."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from types import SimpleNamespace

import pytest

from nexo_lsp.engines.llama.waiting import Crowd, Waiting, find_patience, prepare_openmp


class Watched:
    """A patience that remembers what it was told."""

    def __init__(self) -> None:
        self.said: list[bool] = []

    def set(self, patient: bool) -> None:
        self.said.append(patient)


class Clockwork:
    """A machine on which `others` cores are in use by other programs."""

    def __init__(self) -> None:
        self.now = self.busy = self.own = 0.0

    def run(self, seconds: float, *, others: float, own: float = 2.0) -> None:
        self.now += seconds
        self.own += own * seconds
        self.busy += (own + others) * seconds

    def crowd(self) -> Crowd:
        return Crowd(lambda: self.busy, lambda: self.own, lambda: self.now)


def test_threads_spin_while_every_one_has_a_core_and_sleep_when_others_come() -> None:
    machine, watched = Clockwork(), Watched()
    waiting = Waiting(watched, machine.crowd(), processors=2)
    assert watched.said == [True], "patient until it is known that nobody else is there"
    machine.run(1, others=0.05)
    waiting.adapt(threads=2)
    machine.run(1, others=0.9)
    waiting.adapt(threads=2)
    machine.run(1, others=0.9)
    waiting.adapt(threads=2)
    assert watched.said == [True, False, True]
    machine.run(1, others=0.9)
    waiting.adapt(threads=1)
    assert watched.said[-1] is False, "one thread and one other program fit on two cores"
    waiting.close()
    assert watched.said[-1] is False


def test_looks_are_not_too_close_together_to_mean_anything() -> None:
    machine = Clockwork()
    crowd = machine.crowd()
    machine.run(0.1, others=2)
    assert crowd.look() is None
    machine.run(0.9, others=2)
    assert crowd.look() == pytest.approx(2)


def test_what_others_did_while_nothing_was_asked_does_not_count() -> None:
    machine, watched = Clockwork(), Watched()
    waiting = Waiting(watched, machine.crowd(), processors=2)
    machine.run(1, others=0)
    waiting.adapt(threads=2)
    assert watched.said == [True, False]
    assert waiting.sure
    machine.run(60, others=0, own=0)
    waiting.adapt(threads=2)
    assert watched.said == [True, False, True], "nobody knows what the machine does now"
    assert not waiting.sure
    machine.run(0.5, others=0)
    waiting.adapt(threads=2)
    assert watched.said[-1] is False
    assert waiting.sure


def test_a_long_step_is_no_rest() -> None:
    machine, watched = Clockwork(), Watched()
    waiting = Waiting(watched, machine.crowd(), processors=2)
    for _ in range(3):
        machine.run(2, others=0.05)
        waiting.worked()
        waiting.adapt(threads=2)
    assert watched.said == [True, False]
    assert waiting.sure


def test_without_anything_to_change_nothing_is_looked_at() -> None:
    machine = Clockwork()
    waiting = Waiting(None, machine.crowd(), processors=2)
    machine.run(1, others=0)
    waiting.adapt(2)
    assert waiting.patient
    assert waiting.sure, "steps need not be short where nothing depends on it"


@pytest.mark.parametrize("own", [{"OMP_WAIT_POLICY": "passive"}, {"GOMP_SPINCOUNT": "7"}])
def test_the_users_own_settings_stand(own: dict[str, str]) -> None:
    environ = dict(own)
    prepare_openmp(environ)
    assert environ == own


_TEAM = """
import os
from nexo_lsp.engines.llama.waiting import find_patience, prepare_openmp
prepare_openmp(os.environ)
assert find_patience() is None, "nothing has loaded libgomp yet"
import llama_cpp.llama_cpp
patience = find_patience()
assert patience is not None
threads = lambda: len(os.listdir("/proc/self/task"))
before = threads()
patience.set(True)
patience.set(True)
crowded = threads()
patience.set(False)
assert crowded > before + os.cpu_count() // 8, (before, crowded)
print("fine")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="libgomp is Linux's")
def test_the_real_library_is_found_and_crowded() -> None:
    run = subprocess.run(
        [sys.executable, "-c", _TEAM], capture_output=True, text=True, timeout=60, check=False
    )
    assert run.stdout == "fine\n", run.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="libgomp is Linux's")
def test_a_library_that_only_has_the_name_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    only_the_name = SimpleNamespace(omp_get_num_procs=lambda: 2)
    monkeypatch.setattr(ctypes, "CDLL", lambda *_args, **_kwargs: only_the_name)
    assert find_patience() is None

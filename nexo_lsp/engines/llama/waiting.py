"""How OpenMP's threads wait for each other: spinning on a quiet machine, asleep on a busy one.

Every operation of a step ends with all threads waiting for the slowest. Spinning is the quickest way to wait
while every thread has a core for itself. As soon as another program runs on one of those cores, the threads
that spin take the time of the one that they wait for, and a step takes ten times as long or more. Sleeping is
never so slow, and never so quick.

libgomp (the OpenMP of GCC) reads its settings once, when it is loaded. But it has two counts: threads spin
`GOMP_SPINCOUNT` times, and only 1,000 times (with `OMP_WAIT_POLICY=active`) while it manages more threads
than there are processors; see `libgomp/env.c` and `wait.h` of GCC. So a second team of threads that do
nothing and sleep makes the first one patient, and ending it makes it spin again. Where there is no libgomp
(Windows, macOS, builds without OpenMP) nothing is changed.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from collections.abc import Callable, MutableMapping
from typing import Any, Protocol

import psutil

_SPINS = 100_000
"""Enough for threads of a quiet machine to meet awake: 32 to 35 tokens/s, and 24 to 29 with 1,000 (0.5B, 2
cores of an AMD EPYC, one run each)."""
_LOOK_S, _OLD_S = 0.25, 1.5
"""What happened in a shorter time says little, and what happened in a longer one says nothing about now."""
_SLACK_TO_SPIN, _SLACK_TO_SLEEP = 0.1, 0.3
"""Cores that others may use for spinning to begin, and for it to go on: apart, or it would flutter."""


def prepare_openmp(environ: MutableMapping[str, str]) -> None:
    """Set what libgomp reads when it is loaded; a user's own choice stands."""
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & environ.keys():
        environ["OMP_WAIT_POLICY"] = "active"
        environ["GOMP_SPINCOUNT"] = str(_SPINS)


class Patience(Protocol):
    """Something that can make waiting threads sleep soon, or spin for long."""

    def set(self, patient: bool) -> None:
        """From the next step on threads sleep soon (True) or spin for long."""
        ...


class CrowdedTeam:
    """A second team of sleeping threads, so that libgomp counts more threads than processors."""

    def __init__(self, parallel: Any, processors: int) -> None:
        """`parallel` is libgomp's `GOMP_parallel`; `processors` how many of them it may use."""
        self._parallel = parallel
        self._threads = processors + 1
        self._host: threading.Thread | None = None
        self._end = threading.Event()

    def set(self, patient: bool) -> None:
        """Make the team, or end it."""
        if patient and self._host is None:
            ready = threading.Event()
            self._end.clear()
            self._host = threading.Thread(target=self._run, args=(ready,), name="nexo-openmp", daemon=True)
            self._host.start()
            ready.wait()
        elif not patient and self._host is not None:
            self._end.set()
            self._host.join()
            self._host = None

    def _run(self, ready: threading.Event) -> None:
        # What the team calls has to be a C function of one pointer that does nothing: `free` of a null one.
        nothing = ctypes.cast(ctypes.CDLL(None).free, ctypes.c_void_p)
        try:
            self._parallel(nothing, None, self._threads, 0)
        finally:
            # Whatever happened, the engine goes on.
            ready.set()
        # The team belongs to this thread, and ends with it.
        self._end.wait()


def find_patience() -> Patience | None:
    """What can change the waiting in this process; None where nothing can. Ask after llama.cpp is loaded."""
    if sys.platform != "linux" or os.environ.get("OMP_WAIT_POLICY") != "active":
        return None
    try:
        # Only if llama.cpp brought it: a second copy, or one that nobody uses, has no say.
        library = ctypes.CDLL("libgomp.so.1", mode=os.RTLD_NOLOAD)
        # Other libraries go by this name too, and not all of them have both functions.
        team = library.GOMP_parallel
        processors = int(library.omp_get_num_procs())
    except (OSError, AttributeError):
        return None
    return CrowdedTeam(team, processors)


class Crowd:
    """How many cores other programs use."""

    def __init__(
        self,
        busy_s: Callable[[], float] | None = None,
        own_s: Callable[[], float] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`busy_s`: processor time that all programs have taken together; `own_s`: that of this one."""
        self._busy_s = busy_s or _busy_s
        self._own_s = own_s or time.process_time
        self._clock = clock
        self._last = (clock(), self._busy_s(), self._own_s())
        self._worked = clock()

    def worked(self) -> None:
        """A step has just ended."""
        self._worked = self._clock()

    def forget(self) -> bool:
        """Begin anew after a rest: what others did in it says nothing about now.

        What they did during a step does, however long it took.
        """
        now = self._clock()
        if now - max(self._last[0], self._worked) <= _OLD_S:
            return False
        self._last = (now, self._busy_s(), self._own_s())
        return True

    def look(self) -> float | None:
        """The cores in use by others since the last look; None if that was just now."""
        now = self._clock()
        before, busy, own = self._last
        if now - before < _LOOK_S:
            return None
        self._last = (now, self._busy_s(), self._own_s())
        others = (self._last[1] - busy) - (self._last[2] - own)
        return max(0.0, others / (now - before))


class Waiting:
    """Chooses how threads wait, from how many cores others use."""

    def __init__(self, patience: Patience | None, crowd: Crowd, processors: int) -> None:
        self._patience = patience
        self._crowd = crowd
        self._processors = processors
        self.patient = True
        """Whether threads sleep soon."""
        self.sure = patience is None
        """Whether that is known to be right; until then steps had better be short."""
        if patience is not None:
            # A wrong guess costs little this way round.
            patience.set(True)

    def worked(self) -> None:
        """To be called when a step has ended."""
        self._crowd.worked()

    def adapt(self, threads: int) -> None:
        """To be called between two steps that use so many threads."""
        if self._patience is None:
            return
        if self._crowd.forget():
            # To sleep is a little slower on a quiet machine, to spin is very much slower on a busy one.
            self.sure = False
            self._choose(patient=True)
            return
        others = self._crowd.look()
        if others is None:
            return
        self.sure = True
        slack = _SLACK_TO_SPIN if self.patient else _SLACK_TO_SLEEP
        self._choose(patient=others + threads > self._processors + slack)

    def _choose(self, *, patient: bool) -> None:
        if self._patience is not None and patient != self.patient:
            self.patient = patient
            self._patience.set(patient)

    def close(self) -> None:
        """End what was started."""
        if self._patience is not None:
            self._patience.set(False)


def processors() -> int:
    """How many logical processors this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else (os.cpu_count() or 1)


def _busy_s() -> float:
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    # Time of guests is part of user time already.
    return sum(times) - idle - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)

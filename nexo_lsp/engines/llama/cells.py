"""How many cells of a context are in use, when sequences share them."""

from __future__ import annotations

from collections.abc import Iterable


class _Run:
    """Neighbouring cells from position `start` on, and up to which position each sequence uses them."""

    __slots__ = ("start", "stops")

    def __init__(self, start: int) -> None:
        self.start = start
        self.stops: dict[int, int] = {}


class Cells:
    """Follows what is evaluated, shared and forgotten; sharing always goes from position 0 on.

    A cell belongs to a position and is tagged with the sequences that use it. Equal tokens that were
    evaluated twice take two cells, which is why the tokens alone do not tell.
    """

    def __init__(self) -> None:
        self._runs: dict[int, list[_Run]] = {}

    def length(self, sequence: int) -> int:
        """How many positions `sequence` has."""
        runs = self._runs.get(sequence)
        return runs[-1].stops[sequence] if runs else 0

    def set(self, sequence: int, length: int) -> None:
        """`sequence` has `length` positions now: its end was forgotten, or more was evaluated."""
        runs = self._runs.setdefault(sequence, [])
        while runs and runs[-1].start >= length:
            del runs.pop().stops[sequence]
        present = self.length(sequence)
        if present == length:
            return
        if length < present:
            runs[-1].stops[sequence] = length
            return
        # Where another sequence goes on behind this one's end, in cells of its own, new ones were taken.
        if not runs or max(runs[-1].stops.values()) > present:
            runs.append(_Run(present))
        runs[-1].stops[sequence] = length

    def share(self, source: int, target: int, length: int) -> None:
        """`target`, which is empty, uses the first `length` positions of `source` too."""
        runs = self._runs[target] = [run for run in self._runs.get(source, ()) if run.start < length]
        for run in runs:
            run.stops[target] = min(run.stops[source], length)

    def total(self, sequences: Iterable[int] | None = None) -> int:
        """The cells in use, by all or by some sequences; shared ones count once."""
        stops: dict[_Run, int] = {}
        for sequence in self._runs if sequences is None else sequences:
            for run in self._runs.get(sequence, ()):
                stops[run] = max(stops.get(run, 0), run.stops[sequence])
        return sum(stop - run.start for run, stop in stops.items())

    def only(self, sequence: int) -> int:
        """The cells that `sequence` uses and no other: what is free once it is forgotten."""
        return self.total() - self.total(other for other in self._runs if other != sequence)

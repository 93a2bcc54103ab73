"""Giving up what is being computed: decided by the thread that reads messages, for the one that works."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from nexo_lsp.engines.llama.messages import BadMessage, Cancel, Start, ToWorker
from nexo_lsp.engines.llama.native import Interrupt


class Overtaking:
    """Knows who is served at this moment, and stops that for whoever is more urgent."""

    def __init__(self, interrupts: Sequence[Interrupt], *, harmless: bool) -> None:
        """`harmless`: whether the model forgets what an interrupted step has done to its state."""
        self._interrupts = interrupts
        self._harmless = harmless
        self._step: tuple[int, frozenset[int]] | None = None

    def begin(self, level: int, jobs: Iterable[int]) -> None:
        """Something for these jobs, so urgent, is about to be computed, and may be interrupted.

        Whoever calls this has to look for unread messages next: those that came before are not noticed here.
        """
        self._step = (level, frozenset(jobs))
        for interrupt in self._interrupts:
            interrupt.clear()

    def end(self) -> None:
        """It has been computed, or is not going to be."""
        self._step = None

    def urgent(self, message: ToWorker | BadMessage | None) -> bool:
        """Whether what is being computed is worth giving up for `message`; may be asked from any thread."""
        step = self._step
        if step is None or not self._harmless:
            return False
        level, jobs = step
        match message:
            case Start():
                return message.request.priority < level
            case Cancel():
                return message.id in jobs
            case _:
                return False

    def interrupt(self) -> None:
        """Give it up; may be called from any thread."""
        for interrupt in self._interrupts:
            interrupt.set()

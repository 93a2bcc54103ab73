"""What a provider answers to the questions whether it can be used here, and what it is like."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from nexo_lsp.engines.engine import Engine
from nexo_lsp.generation import Capabilities, EngineStatus
from nexo_lsp.runtime.environment import Platform


@dataclass(frozen=True, slots=True)
class Availability:
    """Whether a provider can be used on this machine with these settings, and why (not)."""

    usable: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Traits:
    """What selection filters and scores a provider by. Nothing is asked of the machine for it."""

    sends_code: bool = False
    """Whether prompts leave this machine: only in a trusted workspace, and if the user turned it on."""
    network: bool = False
    """Whether it needs one; a loopback address is none."""
    processes: bool = False
    """Whether it has to start processes."""
    needs_trust: bool = False
    """Whether it does something that a workspace must not be able to ask for by its settings alone."""
    only_by_name: bool = False
    """Whether it is never taken by itself."""
    platforms: frozenset[Platform] = frozenset()
    """Where it is at home; it may work elsewhere too."""
    memory_bytes: int = 0
    """What it takes of this machine's memory."""
    tokens_per_s: float | None = None
    """How quickly it answers, if that was measured here."""
    parameters: float | None = None
    """The size of its model in billions, if that is known."""


class Provider(Protocol):
    """A way to have an engine."""

    @property
    def name(self) -> str:
        """The word that the setting `engine.kind` has for it."""
        ...

    def traits(self) -> Traits:
        """What it is like."""
        ...

    def probe(self) -> Availability:
        """Whether it can be used; cheap (no network, no process, nothing loaded)."""
        ...

    def capabilities(self) -> Capabilities:
        """What its engine will be able to do, as far as that is known beforehand."""
        ...

    def create_engine(self, on_status: Callable[[EngineStatus], None]) -> Engine:
        """The engine, not started; `on_status` is called on the loop whenever its state changes."""
        ...

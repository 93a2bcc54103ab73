"""What a provider answers to the question whether it can be used here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from nexo_lsp.engines.engine import Engine
from nexo_lsp.generation import EngineStatus


@dataclass(frozen=True, slots=True)
class Availability:
    """Whether a provider can be used on this machine with these settings, and why (not)."""

    usable: bool
    reason: str


class Provider(Protocol):
    """A way to have an engine."""

    @property
    def name(self) -> str:
        """The word that the setting `engine.kind` has for it."""
        ...

    def probe(self) -> Availability:
        """Whether it can be used; cheap, and without loading anything."""
        ...

    def create_engine(self, on_status: Callable[[EngineStatus], None]) -> Engine:
        """The engine, not started; `on_status` is called on the loop whenever its state changes."""
        ...

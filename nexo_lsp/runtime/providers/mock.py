"""Scripted answers, for tests: used only when the settings name it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from nexo_lsp.engines.engine import Engine
from nexo_lsp.engines.mock import MockEngine
from nexo_lsp.generation import Capabilities, EngineStatus
from nexo_lsp.runtime.providers.provider import Availability, Traits


@dataclass(frozen=True, slots=True)
class MockProvider:
    """`environ` may name a script and a log (see `nexo_lsp.engines.mock`)."""

    environ: Mapping[str, str]
    name: str = "mock"

    def traits(self) -> Traits:
        """It takes nothing, and is for tests."""
        return Traits(only_by_name=True)

    def capabilities(self) -> Capabilities:
        """It can do everything."""
        return Capabilities(infill=True, json_schema=True, context_tokens=8192)

    def probe(self) -> Availability:
        """Always usable, never chosen by itself."""
        return Availability(True, "scripted answers")

    def create_engine(self, on_status: Callable[[EngineStatus], None]) -> Engine:
        """A `MockEngine`."""
        engine = MockEngine.from_environment(self.environ)
        engine.on_status = on_status
        return engine

"""The mobile engine at work: real workers, and the default model within a phone's memory."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from nexo_lsp.engines.engine import Engine
from nexo_lsp.engines.llama.engine import LlamaEngine
from nexo_lsp.generation import FinishReason
from nexo_lsp.runtime.machine import read_environment
from nexo_lsp.runtime.providers.mobile import MobileProvider, PhoneRules
from nexo_lsp.runtime.providers.native import NativeProvider
from nexo_lsp.settings import EngineSettings

from .requests import chat, collect


def engine_for(path: Path) -> Engine:
    async def model() -> Path:
        return path

    native = NativeProvider(EngineSettings(kind="mobile"), model)
    provider = MobileProvider(native, read_environment())
    assert provider.probe().usable
    return provider.create_engine(lambda _status: None)


async def test_it_answers_from_a_worker_of_its_own(tiny_model: Path) -> None:
    engine = engine_for(tiny_model)
    assert isinstance(engine, LlamaEngine)
    try:
        _, last = await collect(engine.stream(chat("hello", max_tokens=4)))
        assert last.finish is FinishReason.LENGTH
        status = engine.status()
        assert status.extra["shared"] is False
        assert "phone" in str(status.extra["sharedReason"])
        assert engine.capabilities().context_tokens == 4096
    finally:
        await engine.close()


@pytest.mark.model
async def test_the_default_model_stays_within_a_phones_memory(model_path: Path) -> None:
    rules = PhoneRules()
    engine = engine_for(model_path)
    try:
        text = "def add(first, second):\n    return first + second\n" * 60
        prompt = chat(f"What does this code do?\n{text}", max_tokens=32)
        _, last = await collect(engine.stream(prompt))
        assert last.usage is not None
        assert last.usage.completion_tokens > 0
        taken = engine.status().memory_bytes
        assert taken is not None
        # This process plays the server, and carries a test framework beside it.
        server = min(psutil.Process().memory_info().rss, rules.server_bytes)
        print(f"worker {taken / 10**6:.0f} MB, server {server / 10**6:.0f} MB")
        assert taken + server <= rules.memory_bytes
    finally:
        await engine.close()

"""Who gets a place in the context when places are few, and what happens to those who lose theirs."""

from __future__ import annotations

from pathlib import Path

from nexo_lsp.engines.llama.loading import LoadedModel
from nexo_lsp.engines.llama.prefix_cache import PrefixCache
from nexo_lsp.engines.llama.prefix_store import PrefixStore
from nexo_lsp.engines.llama.scheduler import Scheduler
from nexo_lsp.generation import ChatPrompt, Message, Request, Role

from .conftest import Bench

LONG = "def f(x):\n    return x + 1\n" * 30


def test_only_whole_static_prefixes_are_written_to_disk(loaded: LoadedModel, tmp_path: Path) -> None:
    """Jobs that are cancelled at different places would leave a file for each place."""
    bench = Bench(loaded)
    store = PrefixStore(tmp_path, "key", 2**24)
    cache = PrefixCache(loaded.context, loaded.context.sequences, store=store)
    bench.scheduler = Scheduler(loaded.model, loaded.context, bench.said.append, lambda: 0.0, cache=cache)
    messages = (Message(Role.SYSTEM, LONG), Message(Role.USER, "hi"))
    request = Request(ChatPrompt(messages, static_messages=1), max_tokens=2)
    bench.scheduler.add(1, request)
    while bench.scheduler.stats().metrics.cells < 100:
        bench.scheduler.step()
    bench.scheduler.cancel(1)
    assert store.load() == []
    bench.scheduler.add(2, request)
    bench.run()
    assert len(store.load()) == 1
    bench.scheduler.close()

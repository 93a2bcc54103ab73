"""What may be given up in the middle, and what is left of it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from nexo_lsp.engines.llama.loading import LoadedModel
from nexo_lsp.engines.llama.messages import Cancel, Start
from nexo_lsp.engines.llama.native import Decoded, Model, Slice
from nexo_lsp.generation import Priority

from .conftest import Bench
from .requests import background, chat


@pytest.mark.parametrize("forgets", [True, False])
def test_a_model_that_cannot_forget_is_never_stopped_in_the_middle(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, forgets: bool
) -> None:
    """Its state would be half of before and half of after, and nothing could mend it."""
    monkeypatch.setattr(Model, "can_forget", forgets)
    bench = Bench(loaded)
    evaluate = loaded.context.evaluate
    asked: list[bool] = []

    def watched(slices: Sequence[Slice]) -> Decoded:
        asked.append(bench.scheduler.urgent(Cancel(1)))
        asked.append(bench.scheduler.urgent(Start(2, chat(priority=Priority.INTERACTIVE))))
        return evaluate(slices)

    monkeypatch.setattr(loaded.context, "evaluate", watched)
    bench.scheduler.add(1, background("text", max_tokens=2))
    bench.run()
    assert set(asked) == {forgets}
    bench.scheduler.close()

"""How well a model predicts: against models whose answer is known, and a computation of our own."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest

from nexo_lsp.engines.llama.native import Context, Decoded, Library, Model, Slice
from nexo_lsp.engines.llama.perplexity import (
    WINDOW,
    Perplexity,
    loss,
    loss_of,
    perplexity,
    sample_text,
)
from nexo_lsp.engines.llama.predicting import surprise, windows_of
from nexo_lsp.errors import EngineCrashed, EngineLoadFailed, ModelBroken

from .tiny_gguf import SPECIAL, write_tiny_model

VOCABULARY = 256 + len(SPECIAL)
JUDGED = WINDOW - 1 - WINDOW // 2


def made(*losses: float) -> Perplexity:
    return Perplexity(losses, 1, 1, 1)


def test_of_all_tokens_as_likely_as_each_other_it_is_their_number(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "uniform.gguf", output=0)
    seen: list[float] = []
    found = perplexity(model, seen.append, windows=2)
    assert found.value == pytest.approx(VOCABULARY, rel=1e-6)
    assert found.uncertainty == pytest.approx(0, abs=1e-6)
    assert found.tokens == 2 * JUDGED
    assert seen == [0.5, 1]
    assert found.read_per_s > 0
    assert found.write_per_s > 0
    assert found.resident_bytes > 10**6


def test_it_is_what_the_logits_say(library: Library, tiny_model: Path) -> None:
    """Computed here token by token, in double precision, with a context of its own."""
    model = Model(library, tiny_model, 0, lambda _share: True)
    context = Context(model, WINDOW, 1, 1)
    expected: list[float] = []
    tokens = model.tokenize(sample_text(), special=False)[: 2 * WINDOW]
    for start in (0, WINDOW):
        context.clear()
        for position in range(WINDOW - 1):
            part = Slice(0, position, [tokens[start + position]], 1)
            assert context.evaluate([part]) is Decoded.DONE
            if position >= WINDOW // 2:
                logits = context.logits(0).astype(np.float64)
                expected.append(np.logaddexp.reduce(logits) - logits[tokens[start + position + 1]])
    context.close()
    model.close()
    found = perplexity(tiny_model, windows=2)
    assert found.losses == pytest.approx(expected, abs=2e-3)
    assert found.value == pytest.approx(math.exp(np.mean(expected)), rel=1e-3)
    spread = np.std(expected, ddof=1) / math.sqrt(len(expected))
    assert found.uncertainty == pytest.approx(found.value * spread, rel=1e-3)


def test_the_whole_text_is_read_if_nothing_bounds_it(tiny_model: Path) -> None:
    found = perplexity(tiny_model, text="words, " * 300)
    assert found.tokens == 2100 // WINDOW * JUDGED


def test_a_model_that_computes_no_numbers_is_broken(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "nan.gguf", output=math.nan)
    with pytest.raises(ModelBroken, match=r"nan\.gguf is broken"):
        perplexity(model, windows=1)


def test_what_cannot_be_loaded_or_read(tmp_path: Path, half_a_model: Path, tiny_model: Path) -> None:
    with pytest.raises(EngineLoadFailed, match="cannot be read"):
        perplexity(tmp_path / "none.gguf")
    with pytest.raises(EngineLoadFailed, match="damaged"):
        perplexity(half_a_model)
    with pytest.raises(EngineLoadFailed, match="less than 512 tokens"):
        perplexity(tiny_model, text="short")
    with pytest.raises(EngineCrashed, match="Reading with tiny"):
        perplexity(tiny_model, command=[sys.executable, "-c", "raise SystemExit(1)"])


def test_a_loss_is_known_better_than_what_it_is_between() -> None:
    before = made(1.0, 5.0, 2.0, 8.0)
    after = made(1.1, 5.1, 2.1, 8.1)
    lost = loss(before, after)
    assert lost.share == pytest.approx(math.exp(0.1) - 1)
    assert lost.uncertainty == pytest.approx(0, abs=1e-9)
    assert before.uncertainty > 1
    assert loss(before, before).share == 0
    assert loss_of(before.losses[:1], (1.2,)).share == pytest.approx(math.exp(0.2) - 1)
    with pytest.raises(ValueError, match="shorter"):
        loss(before, made(1.0))


def test_surprise_is_a_softmax() -> None:
    logits = np.array([1000.0, 1000.0, -np.inf], np.float32)
    assert surprise(logits, 0) == pytest.approx(math.log(2))
    assert surprise(logits, 2) == math.inf


def test_windows_are_full_ones() -> None:
    assert windows_of(range(11), 4, 0) == [range(4), range(4, 8)]
    assert windows_of(range(11), 4, 1) == [range(4)]
    assert windows_of(range(3), 4, 0) == []


def test_the_sample_has_code_of_several_languages_and_prose() -> None:
    text = sample_text()
    assert 9_000 < len(text) < 14_000
    for mark in ("def ", "fn ", "func ", "export ", "#include", "SELECT", "Wer ", "Le four", "Quien"):
        assert mark in text


@pytest.mark.model
def test_the_real_model_predicts_the_sample(model_path: Path) -> None:
    found = perplexity(model_path, windows=1)
    assert found.tokens == JUDGED
    # A model that knows code: a few of 152,000 tokens are left to choose from.
    assert 2 < found.value < 30

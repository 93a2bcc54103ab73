"""How well a model file predicts a text: what shows that quantising has broken it, or how much was lost.

Perplexity is the exponential of the mean negative log-likelihood (in nats) that the model gives to each
token, here over the second half of each window of 512 tokens, so that every judged token has at least 255
before it. That is how llama.cpp's own `perplexity` tool computes it. Its published figures are for another
text; ours is `data/sample.txt` (code in several languages, and prose), so figures compare only among models
that have read that. The model runs in a process of its own, `predicting.py`.

Two files of one model err in much the same places, so their ratio is known far better than either figure: its
uncertainty comes from the differences token by token (in llama.cpp's tool: "Mean ln(PPL(Q)/PPL(base))").
"""

from __future__ import annotations

import math
import statistics
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from nexo_lsp.engines.llama.errand import ErrandFailed, Said, Trouble, run
from nexo_lsp.engines.llama.quantize import default_threads
from nexo_lsp.errors import EngineLoadFailed, ModelBroken

_MODULE = "nexo_lsp.engines.llama.predicting"
WINDOW = 512
"""Tokens that are read in one go."""


@dataclass(frozen=True, slots=True)
class Perplexity:
    """How well a model predicted a text."""

    losses: tuple[float, ...]
    """The negative log-likelihood of each judged token, in nats."""
    read_per_s: float
    """Tokens of the text for each second, with the logits of half of them."""
    write_per_s: float
    """Single tokens for each second: the median of a few."""
    resident_bytes: int
    """What the process took of the machine's memory at its end, with a context of one window."""

    @property
    def tokens(self) -> int:
        """How many tokens were judged."""
        return len(self.losses)

    @property
    def value(self) -> float:
        """The perplexity: 1 is a model that knows the text by heart."""
        return math.exp(statistics.fmean(self.losses))

    @property
    def uncertainty(self) -> float:
        """One standard error of `value`, to first order."""
        return self.value * _standard_error(self.losses)


@dataclass(frozen=True, slots=True)
class Loss:
    """By how much one perplexity is above another, as a share of the other."""

    share: float
    """0.05: five per cent worse. Below 0: better."""
    uncertainty: float
    """One standard error of `share`, to first order."""


def loss(before: Perplexity, after: Perplexity) -> Loss:
    """What was lost from `before` to `after`, which read the same tokens."""
    return loss_of(before.losses, after.losses)


def loss_of(before: Sequence[float], after: Sequence[float]) -> Loss:
    """What was lost from one list of losses to another one of the same tokens."""
    differences = [new - old for old, new in zip(before, after, strict=True)]
    ratio = math.exp(statistics.fmean(differences))
    return Loss(ratio - 1, ratio * _standard_error(differences))


def _standard_error(values: Sequence[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def sample_text() -> str:
    """The text that models are judged by: some 2,900 tokens of code and prose."""
    return resources.files("nexo_lsp.engines.llama").joinpath("data", "sample.txt").read_text("utf-8")


def perplexity(
    model: Path,
    on_progress: Callable[[float], None] = lambda _share: None,
    *,
    on_losses: Callable[[Sequence[float]], None] = lambda _losses: None,
    text: str | None = None,
    windows: int = 0,
    threads: int = 0,
    cancel: threading.Event | None = None,
    command: list[str] | None = None,
) -> Perplexity:
    """Let `model` read `text` (`sample_text` if None) in another process; blocks, some ten seconds or more.

    `windows` bounds how many windows are read, 0: all that are full. `threads` 0 leaves one processor to
    others. `on_losses` gets the losses of all windows so far; what it raises ends the reading. Raises
    `EngineLoadFailed` if the model cannot be loaded, `ModelBroken` if what it computes are no
    numbers, `EngineCrashed`, `ModelWorkCancelled`.
    """
    wish = {
        "model": str(model.absolute()),
        "text": sample_text() if text is None else text,
        "windows": windows,
        "threads": threads or default_threads(),
    }

    losses: list[float] = []

    def told(said: Said) -> None:
        losses.extend(said["losses"])
        on_progress(said["done"] / said["of"])
        on_losses(losses)

    try:
        said = run(_MODULE, wish, f"Reading with {model.name}", on_said=told, cancel=cancel, command=command)
    except ErrandFailed as error:
        if error.trouble is Trouble.BROKEN:
            raise ModelBroken(f"{model.name} is broken: {error}.") from error
        raise EngineLoadFailed(str(error)) from error
    return Perplexity(tuple(losses), said["read_per_s"], said["write_per_s"], said["resident_bytes"])

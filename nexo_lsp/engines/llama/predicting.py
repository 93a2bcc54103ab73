"""How surprised a model is by each token of a text: the child behind `perplexity.py`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nexo_lsp.engines.llama.errand import ErrandFailed, Said, Say, Trouble, serve
from nexo_lsp.engines.llama.loading import LoadError, load, resident_bytes
from nexo_lsp.engines.llama.messages import Load
from nexo_lsp.engines.llama.native import Context, Decoded, Library, Model, NativeError, Slice
from nexo_lsp.engines.llama.perplexity import WINDOW
from nexo_lsp.engines.llama.waiting import Crowd, Waiting, find_patience, processors

_SINGLE_STEPS = 12
"""Single tokens whose time is taken."""


def surprise(logits: npt.NDArray[np.float32], token: int) -> float:
    """The negative logarithm of what the softmax of `logits` gives to `token`, in nats."""
    highest = logits.max()
    whole = np.exp(logits - highest).sum(dtype=np.float64)
    return float(highest - logits[token] + np.log(whole))


@dataclass
class Reader:
    """Reads windows of a text with one context."""

    context: Context
    bos: int | None
    """What stands in the place of each window's first token, where the model wants one there."""
    waiting: Waiting

    def losses(self, window: Sequence[int]) -> list[float]:
        """The surprise by each token of the second half of `window` but its first.

        Raises `NativeError`.
        """
        tokens = list(window)
        if self.bos is not None:
            tokens[0] = self.bos
        first, last = len(tokens) // 2, len(tokens) - 1
        context, found = self.context, list[float]()
        context.clear()
        for at in range(0, first, context.batch_tokens):
            self._evaluate(at, tokens[at : min(first, at + context.batch_tokens)], logits=False)
        for at in range(first, last, context.outputs):
            part = tokens[at : min(last, at + context.outputs)]
            self._evaluate(at, part, logits=True)
            found += [surprise(context.logits(row), tokens[at + row + 1]) for row in range(len(part))]
        return found

    def step_s(self, token: int, position: int) -> float:
        """How long a single token at `position` takes, which is forgotten again: the median of several."""
        times: list[float] = []
        for _ in range(_SINGLE_STEPS):
            self.context.truncate(0, position)
            began = time.perf_counter()
            self._evaluate(position, [token], logits=True)
            times.append(time.perf_counter() - began)
        return statistics.median(times)

    def _evaluate(self, position: int, tokens: Sequence[int], *, logits: bool) -> None:
        self.waiting.adapt(self.context.threads)
        part = Slice(0, position, tokens, len(tokens) if logits else 0)
        if self.context.evaluate([part]) is not Decoded.DONE:
            raise NativeError("a part of the text could not be evaluated")
        self.waiting.worked()


def windows_of(tokens: Sequence[int], size: int, most: int) -> list[Sequence[int]]:
    """The full windows of `tokens`, at most `most` (0: all)."""
    count = len(tokens) // size
    return [tokens[at * size : (at + 1) * size] for at in range(min(count, most) if most else count)]


def read(model: Model, context: Context, windows: Sequence[Sequence[int]], say: Say) -> Said:
    """Read `windows`; `say` gets the losses of each. Raises `ErrandFailed` and `NativeError`."""
    waiting = Waiting(find_patience(), Crowd(), processors())
    reader = Reader(context, model.bos, waiting)
    try:
        began = time.perf_counter()
        for number, window in enumerate(windows, start=1):
            losses = reader.losses(window)
            if not np.isfinite(losses).all():
                raise ErrandFailed(Trouble.BROKEN, "what it computes are no numbers")
            say({"done": number, "of": len(windows), "losses": losses})
        seconds = time.perf_counter() - began
        size = len(windows[-1])
        return {
            "read_per_s": size * len(windows) / seconds,
            "write_per_s": 1 / reader.step_s(windows[-1][size // 2], size // 2),
            "resident_bytes": resident_bytes(),
        }
    finally:
        waiting.close()


def work(wish: Said, say: Say) -> Said:
    """Load the model and let it read, as the wish says. Raises `ErrandFailed`."""
    path = Path(wish["model"])
    try:
        loaded = load(Library(), Load(str(path), WINDOW, wish["threads"], sequences=1), lambda _share: True)
    except (LoadError, NativeError) as error:
        raise ErrandFailed(Trouble.LOAD, str(error)) from error
    try:
        size = min(WINDOW, loaded.context.tokens, loaded.model.trained_context or WINDOW)
        windows = windows_of(loaded.model.tokenize(wish["text"], special=False), size, wish["windows"])
        if not windows:
            raise ErrandFailed(Trouble.LOAD, f"The text to judge {path.name} by has less than {size} tokens.")
        return read(loaded.model, loaded.context, windows, say)
    except NativeError as error:
        raise ErrandFailed(Trouble.LOAD, f"{path.name} could not read the text: {error}") from error
    finally:
        loaded.close()


def main() -> None:
    """Do what the wish on stdin says."""
    serve(work)


if __name__ == "__main__":
    main()

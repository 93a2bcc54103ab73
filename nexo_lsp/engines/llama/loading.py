"""Loading a model in the worker, with a reason for everything that can go wrong."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from nexo_lsp.engines.llama.messages import Load, Loaded, LoadFailure
from nexo_lsp.engines.llama.native import Context, Library, Model, NativeError

_MAGIC = b"GGUF"
# What llama.cpp needs beside weights and cache: compute buffers, the vocabulary, the interpreter.
_OVERHEAD_BYTES = 200 * 1024 * 1024


class LoadError(Exception):
    """Why a model could not be loaded; the text is one sentence for the user."""

    def __init__(self, failure: LoadFailure, message: str) -> None:
        super().__init__(message)
        self.failure = failure


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that is ready to be scheduled."""

    model: Model
    context: Context
    info: Loaded

    def close(self) -> None:
        """Free its memory."""
        self.context.close()
        self.model.close()


def load(
    library: Library,
    wish: Load,
    on_progress: Callable[[float], bool],
    available_bytes: Callable[[], int] = lambda: psutil.virtual_memory().available,
) -> LoadedModel:
    """Load what `wish` says. Raises `LoadError`."""
    began = time.monotonic()
    path = Path(wish.path)
    size = _check_file(path)
    _check_memory(path, size + _OVERHEAD_BYTES, available_bytes())
    try:
        model = Model(library, path, wish.gpu_layers, on_progress)
    except NativeError as error:
        raise LoadError(
            LoadFailure.DAMAGED,
            f"{path} could not be loaded: it is damaged, cut off, or of a kind that this llama.cpp does not "
            f"know ({error}); run `nexo-lsp models verify` and, for your own file, check where it came from.",
        ) from error
    tokens = min(wish.context_tokens, model.trained_context) or wish.context_tokens
    threads = wish.threads or default_threads()
    try:
        # The weights are in memory by now, so only what still comes is counted.
        _check_memory(path, model.cache_bytes(tokens) + _OVERHEAD_BYTES // 2, available_bytes())
        context = Context(model, tokens, wish.sequences, threads)
    except NativeError as error:
        model.close()
        raise LoadError(
            LoadFailure.MEMORY,
            f"The cache for {tokens} tokens could not be made ({error}); lower nexo.engine.contextTokens.",
        ) from error
    except LoadError:
        model.close()
        raise
    info = Loaded(
        description=model.description,
        context_tokens=context.tokens,
        chat=model.chat_template is not None,
        infill=model.has_infill,
        device="GPU" if library.uses_gpu else f"CPU, {threads} thread{'s' if threads > 1 else ''}",
        load_s=time.monotonic() - began,
    )
    return LoadedModel(model, context, info)


def default_threads() -> int:
    """The physical cores that this process may use: more threads than cores slow llama.cpp down."""
    affinity = getattr(os, "sched_getaffinity", None)
    usable = len(affinity(0)) if affinity is not None else (os.cpu_count() or 1)
    return max(1, min(usable, psutil.cpu_count(logical=False) or usable))


def _check_file(path: Path) -> int:
    try:
        with path.open("rb") as file:
            magic = file.read(len(_MAGIC))
        size = path.stat().st_size
    except OSError as error:
        raise LoadError(
            LoadFailure.MISSING,
            f"The model file {path} cannot be read ({error.strerror}); run `nexo-lsp models pull`, or set "
            "nexo.model to a file that exists.",
        ) from error
    if magic != _MAGIC:
        raise LoadError(
            LoadFailure.FOREIGN,
            f"{path} is not a GGUF model file; set nexo.model to a name from `nexo-lsp models list` or to a "
            "GGUF file.",
        )
    return size


def _check_memory(path: Path, needed: int, available: int) -> None:
    if needed > available:
        raise LoadError(
            LoadFailure.MEMORY,
            f"{path.name} needs about {needed // 2**20} MB of memory and {available // 2**20} MB are free; "
            "close something, lower nexo.engine.contextTokens, or choose a smaller model.",
        )

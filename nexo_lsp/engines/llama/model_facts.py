"""What a model file says about the memory that it will take."""

from __future__ import annotations

import ctypes
import hashlib
import math
import os
from pathlib import Path
from typing import Any

from nexo_lsp.engines.llama.budget import ModelFacts
from nexo_lsp.engines.llama.native import Library

_END_BYTES = 2**20
_STEP_TOKENS, _STEP_VALUE_BYTES = 256, 6
"""Tokens of the largest step without flash attention, and what a comparison of two tokens takes: measured,
see `budget.py`."""


def content_key(path: Path, more: str = "") -> str:
    """What stands for a file's content, and for `more`: its ends count, and its size.

    To read all of it would take longer than what is kept under this key saves. Raises `OSError`.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(f"{more}{size}".encode())
    with path.open("rb") as file:
        digest.update(file.read(_END_BYTES))
        file.seek(-min(_END_BYTES, size), os.SEEK_END)
        digest.update(file.read())
    return digest.hexdigest()


def facts_of(c: Any, handle: Any, file_bytes: int) -> ModelFacts:
    """What a loaded (or looked into) model says about its cache; `held_bytes` is left at 0."""
    heads = max(1, int(c.llama_model_n_head(handle)))
    usual = int(c.llama_model_n_embd(handle)) // heads
    architecture = _meta(c, handle, "general.architecture")
    # Some models have heads of another size than the width would give, and K and V may differ.
    key = _number(_meta(c, handle, f"{architecture}.attention.key_length")) or usual
    value = _number(_meta(c, handle, f"{architecture}.attention.value_length")) or usual
    layers = int(c.llama_model_n_layer(handle))
    return ModelFacts(
        file_bytes=file_bytes,
        held_bytes=0,
        token_bytes=2 * (key + value) * int(c.llama_model_n_head_kv(handle)) * layers,
        trained_tokens=int(c.llama_model_n_ctx_train(handle)),
        head_size=math.gcd(key, value),
        layers=layers,
        step_bytes=_STEP_TOKENS * _STEP_VALUE_BYTES * heads,
    )


def look_into(library: Library, path: Path, file_bytes: int) -> ModelFacts | None:
    """The facts of a file without its weights; None if it cannot be read. Takes 0.35 s with the 0.5B."""
    c = library.c
    params = c.llama_model_default_params()
    params.no_alloc = True
    # 0 is LLAMA_LOAD_MODE_NONE: mapping the file needs what is not allocated.
    params.load_mode = 0
    params.n_gpu_layers = 0
    handle = c.llama_model_load_from_file(os.fsencode(path), params)
    if not handle:
        return None
    try:
        return facts_of(c, handle, file_bytes)
    finally:
        c.llama_model_free(handle)


def _meta(c: Any, handle: Any, key: str) -> str:
    buffer = ctypes.create_string_buffer(128)
    length = int(c.llama_model_meta_val_str(handle, key.encode(), buffer, len(buffer)))
    return buffer.value.decode("utf-8", "replace") if length >= 0 else ""


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0

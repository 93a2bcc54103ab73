"""What memory and devices allow, for `nexo-lsp doctor`: asked of the library, without loading a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nexo_lsp.cli.check import Check
from nexo_lsp.engines.llama.asking import Probe, ProbeFailed, probe
from nexo_lsp.engines.llama.messages import Load
from nexo_lsp.models.catalog import size_text
from nexo_lsp.runtime.providers.native import gpu_layers_of
from nexo_lsp.settings import EngineSettings


def bounds(
    settings: EngineSettings, model: Path | None, ask: Probe = probe, *, unpack_folder: Path | None = None
) -> Iterator[Check]:
    """Which device the layers go to, and how large a context fits; of a missing model only the devices."""
    wish = Load(
        path=str(model.absolute()) if model is not None else "",
        context_tokens=settings.context_tokens,
        threads=settings.threads,
        gpu_layers=gpu_layers_of(settings.gpu_layers),
        memory_limit_mb=settings.memory_limit_mb,
        unpack_folder=str(unpack_folder) if unpack_folder is not None else "",
    )
    try:
        said = ask(wish)
    except ProbeFailed as error:
        yield Check("bounds", "library", "warning", f"it could not be asked: {error}", "see the lines above")
        return
    yield from _devices(said)
    if said["error"]:
        yield Check("bounds", "context", "problem", said["error"], "see the message")
    elif said["outlook"] is not None:
        yield from _outlook(said["outlook"])


def _devices(said: Mapping[str, Any]) -> Iterator[Check]:
    for device in said["devices"]:
        free, total = size_text(device["free_bytes"]), size_text(device["total_bytes"])
        name = device["description"] or device["name"]
        yield Check("bounds", "GPU", "ok", f"{name}, {free} of {total} free")
    if said["offload"] and not said["devices"]:
        yield Check("bounds", "GPU", "ok", "none found, though this build could use one")


def _outlook(outlook: Mapping[str, Any]) -> Iterator[Check]:
    yield Check("bounds", "device", "ok", outlook["device"])
    plan = outlook["plan"]
    size, total = f"{plan['context_tokens']:,} tokens as {plan['kv_type']}", plan["total_bytes"] // 2**20
    text = f"{size}, about {total:,} MB in all with the model; {outlook['why']}"
    yield Check("bounds", "context", "ok", text)
    if outlook["weights"]:
        yield Check("bounds", "weights", "ok", outlook["weights"])
    mend = "end other programs, change nexo.engine.memoryLimitMb, or choose a smaller model"
    for note in outlook["notes"]:
        yield Check("bounds", "less", "warning", note, mend)

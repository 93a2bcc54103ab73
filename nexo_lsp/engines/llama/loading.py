"""Loading a model in the worker, within its memory, with a reason for everything that can go wrong."""

from __future__ import annotations

import importlib.metadata
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from nexo_lsp.engines.llama.budget import (
    LEAST_TOKENS,
    MIB,
    VOCABULARY_BYTES,
    MemoryWatch,
    ModelFacts,
    NoRoom,
    Plan,
    Wish,
    compute_bytes,
    plan,
)
from nexo_lsp.engines.llama.devices import Device, devices, gpu_layers
from nexo_lsp.engines.llama.free_memory import Free, free_memory
from nexo_lsp.engines.llama.gguf_head import is_rearranged
from nexo_lsp.engines.llama.messages import Load, Loaded, LoadFailure
from nexo_lsp.engines.llama.model_facts import content_key, facts_of, look_into
from nexo_lsp.engines.llama.native import Context, Library, Model, NativeError
from nexo_lsp.engines.llama.unpacking import CannotUnpack, Copy, copy_of, unpack

_MAGIC = b"GGUF"
_CACHE_ROOM = 512 * MIB
"""The copy that takes more memory is not worth a smaller context: what a large one takes has to be left."""
_WHOLE_BYTES = "kept in whole bytes: the same values, read faster by this processor"
_AS_IN_FILE = "kept as in the file, not in whole bytes: {}"


class LoadError(Exception):
    """Why a model could not be loaded; the text is one sentence for the user."""

    def __init__(self, failure: LoadFailure, message: str) -> None:
        super().__init__(message)
        self.failure = failure


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that is ready to be scheduled."""

    path: Path
    model: Model
    context: Context
    info: Loaded
    plan: Plan
    memory: MemoryWatch
    """Says when the worker has grown beyond `nexo.engine.memoryLimitMb`."""

    def fingerprint(self) -> str | None:
        """What the evaluated state of a prompt depends on: the file's content, llama.cpp, the cache's type.

        None if the file has gone since it was loaded.
        """
        c = self.model.library.c
        try:
            key = content_key(self.path)
        except OSError:
            return None
        build = importlib.metadata.version("llama-cpp-python"), c.llama_print_system_info()
        kept = f"{self.context.kv_type} {'flash' if self.context.flash_attention else 'whole'} attention"
        return f"{key} {build} {kept} {self.info.gpu_layers}"

    def close(self) -> None:
        """Free its memory."""
        self.context.close()
        self.model.close()


def resident_bytes() -> int:
    """What this process takes of the machine's memory."""
    return int(psutil.Process().memory_info().rss)


@dataclass(frozen=True, slots=True)
class Machine:
    """What is asked of the machine; tests put figures in its place."""

    free: Callable[[], Free] = free_memory
    resident: Callable[[], int] = resident_bytes
    devices: Callable[[], tuple[Device, ...]] = devices


@dataclass(frozen=True, slots=True)
class _Gpu:
    """What goes to the GPU."""

    layers: int
    of: int
    names: tuple[str, ...]
    shares_memory: bool
    notes: tuple[str, ...] = ()

    @property
    def host_share(self) -> float:
        """The part of weights and cache that stays in the machine's memory."""
        return 1.0 if self.shares_memory or not self.of else 1 - self.layers / self.of


def load(
    library: Library, wish: Load, on_progress: Callable[[float], bool], machine: Machine | None = None
) -> LoadedModel:
    """Load what `wish` says, with a smaller or compressed cache where memory does not allow all of it.

    What is less than was wished is said in `Loaded.notes` and on stderr. Raises `LoadError`.
    """
    machine = machine or Machine()
    began = time.monotonic()
    path = Path(wish.path)
    size = _check_file(path)
    before = machine.resident()
    allowed = _allowed(wish, machine.free(), before)
    gpu = _gpu(library, wish, size, machine)
    # Before anything is read: the least that it can come to.
    _check_room(path, wish, allowed, before + _least(round(size * gpu.host_share), size))
    copy, told = _copy(library, wish, gpu, allowed.bytes - before)
    model, copy, told = _model(library, copy, told, path, gpu, on_progress)
    size = copy.size if copy is not None else size
    weights = round(size * gpu.host_share)
    try:
        facts = facts_of(library.c, model.handle, size)
        facts = replace(
            facts,
            # What is mapped from the file is not counted everywhere before it is used.
            held_bytes=max(machine.resident(), before + weights),
            token_bytes=round(facts.token_bytes * gpu.host_share),
            step_bytes=0 if gpu.layers else facts.step_bytes,
        )
        made = _plan(path, wish, facts, allowed)
        threads = wish.threads or default_threads()
        context = _context(model, made, threads)
    except LoadError:
        model.close()
        raise
    notes = (*gpu.notes, *made.reduced)
    for note in (*notes, *([f"weights are {told}"] if told else [])):
        sys.stderr.write(f"{path.name}: {note}\n")
    info = Loaded(
        description=model.description,
        context_tokens=context.tokens,
        chat=model.chat_template is not None,
        infill=model.has_infill,
        device=_device(gpu, threads),
        load_s=time.monotonic() - began,
        sequences=made.sequences,
        kv_type=made.kv_type,
        gpu_layers=gpu.layers,
        notes=notes,
        weights=told,
    )
    watch = MemoryWatch(wish.memory_limit_mb * MIB, machine.resident)
    return LoadedModel(copy.path if copy is not None else path, model, context, info, made, watch)


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a load would come to, told without loading."""

    device: str
    plan: Plan
    allowed_bytes: int
    why: str
    """What bounds `allowed_bytes`."""
    notes: tuple[str, ...]
    weights: str = ""
    """How the weights would be kept, and why, where there is a choice."""


def outlook(library: Library, wish: Load, machine: Machine | None = None) -> Outlook:
    """What `load` would do, from the file's head alone; raises `LoadError` for the same reasons.

    A copy of the weights that `load` would take or make is reckoned with as if it were there already.
    """
    machine = machine or Machine()
    path = Path(wish.path)
    size = _check_file(path)
    before = machine.resident()
    allowed = _allowed(wish, machine.free(), before)
    gpu = _gpu(library, wish, size, machine)
    facts = look_into(library, path, size)
    if facts is None:
        raise LoadError(LoadFailure.DAMAGED, f"{path} is damaged, or of a kind that llama.cpp does not know.")
    copy, told = _copy(library, wish, gpu, allowed.bytes - before)
    size = copy.size if copy is not None else size
    weights = round(size * gpu.host_share)
    facts = replace(
        facts,
        file_bytes=size,
        held_bytes=before + weights + VOCABULARY_BYTES,
        token_bytes=round(facts.token_bytes * gpu.host_share),
        step_bytes=0 if gpu.layers else facts.step_bytes,
    )
    made = _plan(path, wish, facts, allowed)
    device = _device(gpu, wish.threads or default_threads())
    return Outlook(device, made, allowed.bytes, allowed.why, (*gpu.notes, *made.reduced), told)


def default_threads() -> int:
    """The physical cores that this process may use: more threads than cores slow llama.cpp down."""
    affinity = getattr(os, "sched_getaffinity", None)
    usable = len(affinity(0)) if affinity is not None else (os.cpu_count() or 1)
    return max(1, min(usable, psutil.cpu_count(logical=False) or usable))


@dataclass(frozen=True, slots=True)
class _Allowed:
    """How much the worker may take in all."""

    bytes: int
    why: str
    by_setting: bool


def _allowed(wish: Load, free: Free, resident: int) -> _Allowed:
    limit = wish.memory_limit_mb * MIB
    if limit and limit <= free.bytes + resident:
        return _Allowed(limit, f"nexo.engine.memoryLimitMb is {wish.memory_limit_mb:,}", by_setting=True)
    return _Allowed(free.bytes + resident, free.why, by_setting=False)


def _gpu(library: Library, wish: Load, size: int, machine: Machine) -> _Gpu:
    if wish.gpu_layers == 0 or not library.uses_gpu:
        notes: tuple[str, ...] = ()
        if wish.gpu_layers:
            notes = ("no layer is on a GPU: this build of llama.cpp, or this machine, has none",)
        return _Gpu(0, 0, (), shares_memory=False, notes=notes)
    found = machine.devices()
    facts = look_into(library, Path(wish.path), size)
    # A file that cannot be looked into cannot be loaded either, and that is said in a moment.
    layers, token = (facts.layers, facts.token_bytes) if facts is not None else (0, 0)
    free = sum(device.free_bytes for device in found) if found else None
    chosen = gpu_layers(
        wish.gpu_layers,
        offload=True,
        free_bytes=free,
        layers=layers,
        weights=size,
        cache=token * wish.context_tokens,
    )
    less = wish.gpu_layers is None and chosen < layers + 1
    return _Gpu(
        layers=chosen,
        of=layers + 1,
        names=tuple(device.description or device.name for device in found),
        shares_memory=any(device.shares_memory for device in found),
        notes=(f"{chosen} of {layers + 1} layers are on the GPU: {(free or 0) // MIB:,} MB are free there",)
        if less
        else (),
    )


def _device(gpu: _Gpu, threads: int) -> str:
    cpu = f"CPU, {threads} thread{'s' if threads > 1 else ''}"
    if not gpu.layers:
        return cpu
    name = f"GPU ({', '.join(gpu.names)})" if gpu.names else "GPU"
    return f"{name}, {gpu.layers} of {gpu.of} layers" + (f"; {cpu}" if gpu.layers < gpu.of else "")


def _copy(library: Library, wish: Load, gpu: _Gpu, room: int) -> tuple[Copy | None, str]:
    """The copy of the model that a processor computes faster with, if it is to be taken, and what to say."""
    # On a GPU what counts is how few bytes a token's weights are.
    if not wish.unpack_folder or gpu.layers:
        return None, ""
    try:
        copy = copy_of(library, Path(wish.path), Path(wish.unpack_folder))
    except CannotUnpack as error:
        return None, _AS_IN_FILE.format(error)
    if copy is None:
        return None, ""
    if _least(copy.size, copy.size) + _CACHE_ROOM > room:
        return None, _AS_IN_FILE.format("there is too little memory")
    return copy, _WHOLE_BYTES


def _least(weights: int, size: int) -> int:
    """What a model takes at least, beside the library."""
    return weights + VOCABULARY_BYTES + compute_bytes(size)


def _model(
    library: Library,
    copy: Copy | None,
    told: str,
    path: Path,
    gpu: _Gpu,
    on_progress: Callable[[float], bool],
) -> tuple[Model, Copy | None, str]:
    """The model from its copy, which is made if it is not there; else from its file."""
    if copy is not None and not copy.there and look_into(library, path, copy.size) is None:
        # It will not load; that is not worth a copy.
        copy = None
    if copy is not None:
        try:
            unpack(library, copy, on_progress)
            return Model(library, copy.path, gpu.layers, on_progress), copy, told
        except CannotUnpack as error:
            told = _AS_IN_FILE.format(error)
        except NativeError as error:
            # A disk may lose what was written; the copy can be made again.
            with suppress(OSError):
                copy.path.unlink()
            told = _AS_IN_FILE.format(f"the copy was damaged ({error}) and is made again")
    return _original(library, path, gpu, on_progress), None, told


def _original(library: Library, path: Path, gpu: _Gpu, on_progress: Callable[[float], bool]) -> Model:
    try:
        mapped = bool(gpu.layers) or not is_rearranged(library, path)
        return Model(library, path, gpu.layers, on_progress, mapped=mapped)
    except NativeError as error:
        raise LoadError(
            LoadFailure.DAMAGED,
            f"{path} could not be loaded: it is damaged, cut off, or of a kind that this llama.cpp does not "
            f"know ({error}); run `nexo-lsp models verify` and, for your own file, check where it came from.",
        ) from error


def _plan(path: Path, wish: Load, facts: ModelFacts, allowed: _Allowed) -> Plan:
    asked = Wish(wish.context_tokens, wish.sequences, wish.kv_type)
    try:
        return plan(facts, asked, allowed.bytes, allowed.why)
    except NoRoom as error:
        _check_room(path, wish, allowed, error.least_bytes)
        raise


def _context(model: Model, made: Plan, threads: int) -> Context:
    try:
        return Context(
            model,
            made.context_tokens,
            made.sequences,
            threads,
            made.kv_type,
            flash_attention=made.flash_attention,
        )
    except NativeError as error:
        raise LoadError(
            LoadFailure.MEMORY,
            f"The cache for {made.context_tokens:,} tokens could not be made ({error}); lower "
            "nexo.engine.contextTokens.",
        ) from error


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


def _check_room(path: Path, wish: Load, allowed: _Allowed, needed: int) -> None:
    if needed <= allowed.bytes:
        return
    most = -(-needed // MIB)
    mend = (
        f"raise it to {most:,} at least, or choose a smaller model"
        if allowed.by_setting
        else "close something, or choose a smaller model"
    )
    tokens = min(LEAST_TOKENS, wish.context_tokens)
    raise LoadError(
        LoadFailure.MEMORY,
        f"{path.name} needs about {most:,} MB of memory with a context of {tokens:,} tokens, and "
        f"{allowed.why}; {mend}.",
    )

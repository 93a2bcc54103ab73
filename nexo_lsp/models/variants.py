"""Which model `auto` means on a machine: the first of a table that fits it and is quick enough."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Literal

from pydantic import TypeAdapter

from nexo_lsp.models.catalog import MEMORY_CONTEXT, CatalogEntry, size_text

Form = Literal["desktop", "web", "mobile", "console"]
"""What kind of machine: each has a table of its own."""
Preference = Literal["performance", "balanced", "quality"]

SERVER_BYTES = 100_000_000
"""What the server takes beside its engine (83 MB measured, benchmarks/results/server.md)."""

_GPU_HOST_BYTES = 600_000_000
"""What an engine takes of the machine's memory with all layers on a GPU, not measured."""

_CORE_BYTES_PER_S, _MACHINE_BYTES_PER_S = 11e9, 45e9
"""How quickly weights are read, by one core and by all: a token reads each weight once. From the 0.5B (45
tokens/s) and the 1.5B (22) on two cores; more cores share one memory."""
_GPU_BYTES_PER_S, _SHARED_GPU_BYTES_PER_S = 300e9, 68e9
"""A small GPU's with memory of its own, and that of the slowest of Apple's (M1); low on purpose."""
_NARROW, _WEB = 0.4, 0.5
"""What is left of the cores' speed without wide vector units, and in WebAssembly, whose vectors have 128
bits. Guesses."""
_GPU_SPARE_BYTES = 512 << 20
"""What is left free on a GPU (`engines/llama/devices.py`)."""
_BESIDE_BYTES = 198 << 20
"""Library, Python, vocabulary, and an evaluation of a small model (`engines/llama/budget.py`)."""
_LEAST_TOKENS = 1024
"""The smallest context that an engine makes."""

_SLOWEST: Mapping[Preference, float] = {"performance": 45, "balanced": 25, "quality": 8}
"""Tokens a second below which a model is too slow for somebody who prefers this."""


@dataclass(frozen=True, slots=True)
class Host:
    """What of a machine decides."""

    form: Form
    cores: int
    memory_bytes: int
    """What server and engine may take together; 0 is the form's own budget."""
    free_bytes: int = 0
    """What is free of it just now; 0 while unknown."""
    gpu_bytes: int = 0
    """What a GPU with memory of its own has free for weights."""
    shared_gpu: bool = False
    """Whether there is a GPU that computes in the machine's own memory, and quicker than its cores."""
    narrow: bool = False
    """Whether the engine has no wide vector units: an old processor, a small board, a translated program."""


@dataclass(frozen=True, slots=True)
class Table:
    """The budgets and lists of one form."""

    memory_bytes: int
    download_bytes: int
    context_tokens: int
    performance: tuple[str, ...]
    balanced: tuple[str, ...]
    quality: tuple[str, ...]

    def of(self, prefer: Preference) -> tuple[str, ...]:
        """The names for a preference, the best first."""
        return {"performance": self.performance, "balanced": self.balanced, "quality": self.quality}[prefer]


@dataclass(frozen=True, slots=True)
class Choice:
    """A model for a machine."""

    entry: CatalogEntry
    context_tokens: int
    reason: str
    """Why this one, in one sentence."""
    rejected: tuple[str, ...]
    """Why not each of the better ones."""
    fits: bool = True
    """False if it is only the smallest of those that are too large."""
    rank: str = ""
    """What made it first, without figures: "the best for desktop, balanced"."""
    seen: Seen | None = None
    """The figures that decided; None where none did."""


@cache
def tables() -> Mapping[Form, Table]:
    """The tables of the data file."""
    text = resources.files("nexo_lsp.models").joinpath("variants.toml").read_text(encoding="utf-8")
    return TypeAdapter(dict[Form, Table]).validate_python(tomllib.loads(text))


def choose(
    host: Host,
    prefer: Preference,
    catalog: Sequence[CatalogEntry],
    only: Callable[[CatalogEntry], bool] = lambda _entry: True,
    measured: Callable[[CatalogEntry], float | None] = lambda _entry: None,
) -> Choice | None:
    """The best model of the host's table that fits; None if `only` leaves none.

    `only` is asked what may be taken at all (what is here already), `measured` how many tokens a second were
    measured on this machine. Where all are too large or too slow the smallest is taken all the same: the
    engine makes its context smaller, or says why it cannot.
    """
    table, pace = tables()[host.form], _pace(catalog, measured)
    slowest = _SLOWEST[prefer]
    known = {entry.name: entry for entry in catalog}
    entries = [entry for name in table.of(prefer) if (entry := known.get(name)) is not None and only(entry)]
    rejected: list[str] = []
    for entry in entries:
        seen = Seen(entry, host, table, measured(entry), pace)
        against = seen.against(slowest)
        if not against:
            rank = f"the best for {host.form}, {prefer}"
            why = f"{entry.name}: {rank}: {seen.why}"
            return Choice(entry, table.context_tokens, why, tuple(rejected), rank=rank, seen=seen)
        rejected.append(f"{entry.name}: {against}")
    if not entries:
        return None
    smallest = min(entries, key=lambda entry: entry.weight_bytes or math.inf)
    seen = Seen(smallest, host, table, measured(smallest), pace)
    rank = f"the smallest for {host.form}, though nothing suits"
    why = f"{smallest.name}: {rank}: {seen.why}"
    return Choice(smallest, table.context_tokens, why, tuple(rejected), fits=False, rank=rank, seen=seen)


def look_at(entry: CatalogEntry, host: Host, measured: float | None = None) -> Seen:
    """What a model is on a machine; `measured` are tokens a second."""
    return Seen(entry, host, tables()[host.form], measured)


def _pace(catalog: Sequence[CatalogEntry], measured: Callable[[CatalogEntry], float | None]) -> float | None:
    """How many bytes of weights are read a second here, by the quickest measured one; None if none is."""
    speeds = ((entry, speed) for entry in catalog if (speed := measured(entry)) is not None)
    return max((speed * _read_bytes(entry) for entry, speed in speeds), default=None)


def _read_bytes(entry: CatalogEntry) -> float:
    """What of its weights one token reads."""
    share = entry.active_parameters / entry.parameters if entry.active_parameters else 1.0
    return max(1.0, entry.weight_bytes * share)


def memory_of(entry: CatalogEntry, context_tokens: int) -> int:
    """What server and engine take together with a model, in bytes, on a processor."""
    if context_tokens >= MEMORY_CONTEXT:
        return entry.memory_bytes + SERVER_BYTES
    # What is small keeps no prompts aside and no copy of its weights.
    weights = entry.weight_bytes * 17 // 16
    return weights + entry.kv_bytes_per_token * context_tokens + _BESIDE_BYTES + SERVER_BYTES


def budget_of(host: Host) -> int:
    """What server and engine may take together."""
    return host.memory_bytes or tables()[host.form].memory_bytes


def least_bytes(entry: CatalogEntry, host: Host) -> int:
    """What an engine takes of the machine's memory with the smallest context; 0 while the size is unknown."""
    return Seen(entry, host, tables()[host.form]).least


def beside(host: Host, entry: CatalogEntry) -> Host | None:
    """What is left of a machine for a second model while it has `entry` in memory; None if nothing is."""
    seen = Seen(entry, host, tables()[host.form])
    # The server is there once.
    left = budget_of(host) - seen.taken + SERVER_BYTES
    free = host.free_bytes - seen.least
    if left <= 0 or (host.free_bytes and free <= 0):
        return None
    rest = replace(host, memory_bytes=left, free_bytes=free if host.free_bytes else 0)
    if not seen.on_gpu:
        return rest
    # Whoever is loaded first takes of the GPU what it can get: the second one has to fit there as well.
    only_there = min(left, _GPU_HOST_BYTES + SERVER_BYTES)
    return replace(rest, memory_bytes=only_there, gpu_bytes=host.gpu_bytes - entry.memory_bytes)


@dataclass(frozen=True, slots=True)
class Seen:
    """A model on a machine."""

    entry: CatalogEntry
    host: Host
    table: Table
    measured: float | None = None
    pace: float | None = None
    """What other models were measured to be read with, in bytes a second."""

    @property
    def on_gpu(self) -> bool:
        """Whether all of it fits on a GPU with memory of its own."""
        return self.host.gpu_bytes - _GPU_SPARE_BYTES >= self.entry.memory_bytes

    @property
    def tokens_per_s(self) -> float:
        """How quickly answers are written: as measured, or about what memory allows to read."""
        if self.measured is not None:
            return self.measured
        host = self.host
        if self.on_gpu:
            speed = _GPU_BYTES_PER_S
        elif host.shared_gpu:
            speed = _SHARED_GPU_BYTES_PER_S
        elif self.pace is not None:
            speed = self.pace
        else:
            slower = _NARROW if host.narrow else _WEB if host.form == "web" else 1.0
            speed = min(host.cores * _CORE_BYTES_PER_S, _MACHINE_BYTES_PER_S) * slower
        return speed / _read_bytes(self.entry)

    @property
    def taken(self) -> int:
        """What of the machine's memory it takes, with the server."""
        whole = memory_of(self.entry, self.table.context_tokens)
        return min(whole, _GPU_HOST_BYTES + SERVER_BYTES) if self.on_gpu else whole

    @property
    def least(self) -> int:
        """What an engine takes of the machine's memory with the smallest context."""
        weights = self.entry.weight_bytes
        if not weights:
            return 0
        # A cache of 8.5 bits a value, where one of f16 has 16.
        cache = self.entry.kv_bytes_per_token * _LEAST_TOKENS * 17 // 32
        whole = weights * 17 // 16 + cache + _BESIDE_BYTES
        return min(whole, _GPU_HOST_BYTES) if self.on_gpu else whole

    @property
    def why(self) -> str:
        """What speaks for it."""
        host = self.host
        where = "on the GPU" if self.on_gpu or host.shared_gpu else f"on {host.cores} cores"
        how = "measured" if self.measured is not None else "expected"
        memory = f"{size_text(self.taken)} of {size_text(budget_of(host))} memory"
        return f"{memory}, {self.tokens_per_s:.0f} tokens/s {how} {where}"

    def against(self, slowest: float) -> str:
        """Why it does not suit; empty if it does."""
        if not self.entry.weight_bytes:
            return "its size is not known"
        most = self.table.download_bytes
        if most and self.entry.weight_bytes > most:
            return f"a download of {self.entry.size_text}, at most {size_text(most)}"
        if self.taken > budget_of(self.host):
            return f"takes {size_text(self.taken)} of memory, at most {size_text(budget_of(self.host))}"
        if self.host.free_bytes and self.least > self.host.free_bytes:
            free = size_text(self.host.free_bytes)
            return f"takes {size_text(self.least)} of memory at the least, {free} are free"
        if self.tokens_per_s < slowest:
            how = "measured" if self.measured is not None else "expected"
            return f"{self.tokens_per_s:.0f} tokens/s {how}, {slowest:g} wanted"
        return ""

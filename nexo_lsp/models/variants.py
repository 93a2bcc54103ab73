"""Which model `auto` means on a machine: the first of a table that fits it and is quick enough."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
_GPU_BYTES_PER_S, _SHARED_GPU_BYTES_PER_S = 300e9, 100e9
"""A small GPU's with memory of its own, and one's that shares the machine's; low on purpose."""
_EMULATED = 0.4
"""What is left of the speed where a translated program has no wide vector units (Rosetta). A guess."""
_GPU_SPARE_BYTES = 512 << 20
"""What is left free on a GPU (`engines/llama/devices.py`)."""
_BESIDE_BYTES = 198 << 20
"""Library, Python, vocabulary, and an evaluation of a small model (`engines/llama/budget.py`)."""

_SLOWEST: Mapping[Preference, float] = {"performance": 45, "balanced": 25, "quality": 8}
"""Tokens a second below which a model is too slow for somebody who prefers this."""


@dataclass(frozen=True, slots=True)
class Host:
    """What of a machine decides."""

    form: Form
    cores: int
    memory_bytes: int
    """What server and engine may take together; 0 is the form's own budget."""
    gpu_bytes: int = 0
    """What a GPU with memory of its own has free for weights."""
    shared_gpu: bool = False
    """Whether there is a GPU that computes in the machine's own memory."""
    emulated: bool = False
    """Whether the engine was built for another processor."""


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
    table = tables()[host.form]
    known = {entry.name: entry for entry in catalog}
    entries = [entry for name in table.of(prefer) if (entry := known.get(name)) is not None and only(entry)]
    rejected: list[str] = []
    for entry in entries:
        seen = Seen(entry, host, table, measured(entry))
        against = seen.against(_SLOWEST[prefer])
        if not against:
            rank = f"the best for {host.form}, {prefer}"
            why = f"{entry.name}: {rank}: {seen.why}"
            return Choice(entry, table.context_tokens, why, tuple(rejected), rank=rank)
        rejected.append(f"{entry.name}: {against}")
    if not entries:
        return None
    smallest = min(entries, key=lambda entry: entry.weight_bytes)
    seen = Seen(smallest, host, table, measured(smallest))
    rank = f"the smallest for {host.form}, though nothing suits"
    why = f"{smallest.name}: {rank}: {seen.why}"
    return Choice(smallest, table.context_tokens, why, tuple(rejected), fits=False, rank=rank)


def look_at(entry: CatalogEntry, host: Host, measured: float | None = None) -> Seen:
    """What a model is on a machine; `measured` are tokens a second."""
    return Seen(entry, host, tables()[host.form], measured)


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


@dataclass(frozen=True, slots=True)
class Seen:
    """A model on a machine."""

    entry: CatalogEntry
    host: Host
    table: Table
    measured: float | None

    @property
    def on_gpu(self) -> bool:
        """Whether all of it fits on a GPU with memory of its own."""
        return self.host.gpu_bytes - _GPU_SPARE_BYTES >= self.entry.memory_bytes

    @property
    def tokens_per_s(self) -> float:
        """How quickly answers are written: as measured, or about what memory allows to read."""
        if self.measured is not None:
            return self.measured
        entry, host = self.entry, self.host
        share = entry.active_parameters / entry.parameters if entry.active_parameters else 1.0
        if self.on_gpu:
            speed = _GPU_BYTES_PER_S
        elif host.shared_gpu:
            speed = _SHARED_GPU_BYTES_PER_S
        else:
            speed = min(host.cores * _CORE_BYTES_PER_S, _MACHINE_BYTES_PER_S)
        return speed * (_EMULATED if host.emulated else 1) / max(1.0, entry.weight_bytes * share)

    @property
    def taken(self) -> int:
        """What of the machine's memory it takes, with the server."""
        whole = memory_of(self.entry, self.table.context_tokens)
        return min(whole, _GPU_HOST_BYTES + SERVER_BYTES) if self.on_gpu else whole

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
        most = self.table.download_bytes
        if most and self.entry.weight_bytes > most:
            return f"a download of {self.entry.size_text}, at most {size_text(most)}"
        if self.taken > budget_of(self.host):
            return f"takes {size_text(self.taken)} of memory, at most {size_text(budget_of(self.host))}"
        if self.tokens_per_s < slowest:
            how = "measured" if self.measured is not None else "expected"
            return f"{self.tokens_per_s:.0f} tokens/s {how}, {slowest:g} wanted"
        return ""

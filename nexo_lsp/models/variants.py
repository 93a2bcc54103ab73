"""Which model `auto` means on a machine: the first of a table that fits it and is quick enough."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal

from pydantic import TypeAdapter

from nexo_lsp.models.catalog import CatalogEntry, size_text

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
_GPU_BYTES_PER_S = 300e9
"""A small GPU's, low on purpose."""

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
    slowest_tokens_per_s: float = 0.0,
) -> Choice | None:
    """The best model of the host's table that fits; None if `only` leaves none.

    `only` is asked what may be taken at all (what is here already, what is good for an operation). Where all
    are too large the smallest is taken all the same: the engine makes its context smaller, or says why not.
    """
    table = tables()[host.form]
    known = {entry.name: entry for entry in catalog}
    entries = [entry for name in table.of(prefer) if (entry := known.get(name)) is not None and only(entry)]
    slowest = max(_SLOWEST[prefer], slowest_tokens_per_s)
    rejected: list[str] = []
    for entry in entries:
        against = _against(entry, host, table, slowest)
        if not against:
            rank = f"the best for {host.form}, {prefer}"
            why = f"{entry.name}: {rank}: {_why(entry, host)}"
            return Choice(entry, table.context_tokens, why, tuple(rejected), rank=rank)
        rejected.append(f"{entry.name}: {against}")
    if not entries:
        return None
    smallest = min(entries, key=memory_of)
    rank = f"the smallest for {host.form}, though nothing fits"
    why = f"{smallest.name}: {rank}: {_why(smallest, host)}"
    return Choice(smallest, table.context_tokens, why, tuple(rejected), fits=False, rank=rank)


def memory_of(entry: CatalogEntry) -> int:
    """What server and engine take together with a model, in bytes, on a processor."""
    return entry.memory_bytes + SERVER_BYTES


def expected_tokens_per_s(entry: CatalogEntry, host: Host) -> float:
    """How quickly answers are written, about: what memory allows to read."""
    share = entry.active_parameters / entry.parameters if entry.active_parameters else 1.0
    if host.gpu_bytes >= entry.memory_bytes:
        speed = _GPU_BYTES_PER_S
    else:
        speed = min(host.cores * _CORE_BYTES_PER_S, _MACHINE_BYTES_PER_S)
    return speed / max(1.0, entry.weight_bytes * share)


def budget_of(host: Host) -> int:
    """What server and engine may take together."""
    return host.memory_bytes or tables()[host.form].memory_bytes


def taken_bytes(entry: CatalogEntry, host: Host) -> int:
    """What server and engine take together of the host's own memory: little where a GPU has the weights."""
    if host.gpu_bytes >= entry.memory_bytes:
        return min(memory_of(entry), _GPU_HOST_BYTES + SERVER_BYTES)
    return memory_of(entry)


def _against(entry: CatalogEntry, host: Host, table: Table, slowest: float) -> str:
    if table.download_bytes and entry.weight_bytes > table.download_bytes:
        return f"a download of {entry.size_text}, at most {size_text(table.download_bytes)}"
    taken, budget = taken_bytes(entry, host), budget_of(host)
    if taken > budget:
        return f"takes {size_text(taken)} of memory, at most {size_text(budget)}"
    speed = expected_tokens_per_s(entry, host)
    if speed < slowest:
        return f"{speed:.0f} tokens/s expected, {slowest:g} wanted"
    return ""


def _why(entry: CatalogEntry, host: Host) -> str:
    speed = expected_tokens_per_s(entry, host)
    where = "on the GPU" if host.gpu_bytes >= entry.memory_bytes else f"on {host.cores} cores"
    taken, budget = size_text(taken_bytes(entry, host)), size_text(budget_of(host))
    return f"{taken} of {budget} memory, about {speed:.0f} tokens/s {where}"

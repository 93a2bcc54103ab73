"""Asks the program what it decides for the cases of `decisions.toml`, and writes the page of them.

`python -m tests.unit.runtime.deciding > docs/decisions.md` makes the page.
"""

from __future__ import annotations

import importlib.util
import tomllib
from collections.abc import Coroutine, Mapping
from dataclasses import field, replace
from datetime import date
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
from pydantic import ConfigDict, TypeAdapter
from pydantic import dataclasses as checked

from nexo_lsp.app.engine_room import EngineRoom, Hooks
from nexo_lsp.engines.client_port import Announcement
from nexo_lsp.engines.llama.engine import LlamaEngine
from nexo_lsp.engines.llama.tuning import Figures, StepTime
from nexo_lsp.engines.llama.tuning_file import Tuned, TuningFile
from nexo_lsp.folders import folders
from nexo_lsp.generation import Operation, Request
from nexo_lsp.models.catalog import find
from nexo_lsp.offload import inline
from nexo_lsp.runtime.environment import Environment, Gpu, GpuBackend
from nexo_lsp.runtime.providers.native import tuning_of
from nexo_lsp.settings import Settings
from tests.unit.runtime.machines import ENVIRONMENTS, GPUS

FILE = Path(__file__).with_name("decisions.toml")
PAGE = Path(__file__).resolve().parents[3] / "docs" / "decisions.md"
_STRICT = ConfigDict(extra="forbid")


@checked.dataclass(frozen=True, config=_STRICT)
class Answer:
    """What some operations of a case get."""

    operations: tuple[Operation, ...]
    engines: tuple[str, ...]
    why: str
    model: str = ""
    better: str = ""
    context: int = 0
    threads: int = 0
    refusal: str = ""


@checked.dataclass(frozen=True, config=_STRICT)
class Speed:
    """What `doctor --tune` found."""

    tokens_per_s: float
    threads: int


@checked.dataclass(frozen=True, config=_STRICT)
class Case:
    """One machine and one user."""

    name: str
    machine: str
    answer: tuple[Answer, ...]
    part: str = ""
    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    trusted: bool = False
    here: tuple[str, ...] = ()
    measured: dict[str, Speed] = field(default_factory=dict[str, Speed])
    client: dict[str, Any] | None = None
    installed: bool = True
    machine_has: dict[str, Any] = field(default_factory=dict[str, Any])
    integrated_gpu: bool = False

    @property
    def environment(self) -> Environment:
        """The machine's profile."""
        gpus = GPUS.get(self.machine, ())
        if self.integrated_gpu:
            gpus = (Gpu(GpuBackend.VULKAN, "Intel Iris Xe", 4 << 30, 8 << 30, shares_memory=True),)
        return replace(ENVIRONMENTS[self.machine], gpus=gpus, **self.machine_has)

    def expected(self, operation: Operation) -> Answer:
        """The answer for an operation; exactly one has to be there."""
        (found,) = (answer for answer in self.answer if operation in answer.operations)
        return found


@cache
def _content() -> dict[str, Any]:
    return tomllib.loads(FILE.read_text(encoding="utf-8"))


@cache
def names() -> Mapping[str, str]:
    """The catalogue's names of models, by the short ones of the table."""
    return _content()["models"]


@cache
def cases() -> tuple[Case, ...]:
    """The cases of the file."""
    content = [
        {**case, "answer": [{**{k: v for k, v in one.items() if k != "for"}, "operations": one["for"]} for one in case["answer"]]}
        for case in _content()["case"]
    ]  # fmt: skip
    return TypeAdapter(tuple[Case, ...]).validate_python(content)


class Nobody:
    """A host that is asked nothing, and a client that is told nothing."""

    async def confirm_download(self, model: str, size_bytes: int) -> bool:
        raise AssertionError("nothing is fetched here")

    async def download(self, model: str, size_bytes: int, fetch: object) -> Path:
        raise AssertionError("nothing is fetched here")

    def start(self, request_id: int, request: Request) -> None:
        raise AssertionError("nothing is asked here")

    def cancel(self, request_id: int) -> None:
        raise AssertionError("nothing is asked here")

    async def count_tokens(self, text: str) -> int | None:
        raise AssertionError("nothing is asked here")


def room_for(case: Case, home: Path, monkeypatch: pytest.MonkeyPatch) -> EngineRoom:
    """The real engine room of a case, whose user's files lie in `home`."""
    environ = {"NEXO_HOME": str(home)}
    monkeypatch.setenv("NEXO_HOME", str(home))
    _pretend(monkeypatch, llama=case.installed)
    where, settings = folders(environ), Settings.model_validate(case.settings)
    for short in case.here:
        entry = find(names()[short])
        assert entry is not None
        where.models.mkdir(parents=True, exist_ok=True)
        (where.models / entry.file).touch()
        if short in case.measured:
            speed = case.measured[short]
            steps = (StepTime(speed.threads, None, 1 / speed.tokens_per_s),)
            tuned = Tuned(date(2026, 1, 1), Figures(speed.threads, steps, (), (), 0.0))
            TuningFile(where.state).remember(where.models / entry.file, tuned)
    hooks = Hooks(
        keep=_unkept,
        on_status=lambda: None,
        notice=lambda _text: None,
        free_bytes=lambda: case.environment.free_bytes,
        lasting=False,
    )
    room = EngineRoom(environ, where, Nobody(), inline, lambda: settings, case.environment, hooks)
    room.plan(trusted=case.trusted)
    if case.client is not None:
        room.client_port.connect(Nobody())
        room.client_port.announce(Announcement(**case.client))
    return room


def decided(room: EngineRoom, operation: Operation, expected: Answer, settings: Settings) -> Answer:
    """What the program answers, with `why` and `for` as they were expected."""
    selection = room.selection(operation)
    engines = tuple(candidate.provider.name for candidate in selection.ranked)
    provider = selection.provider
    if provider is None:
        said = " ".join(selection.reasons)
        refusal = expected.refusal if expected.refusal and expected.refusal in said else said
        return replace(expected, engines=(), model="", better="", context=0, threads=0, refusal=refusal)
    context, threads, model, better = provider.capabilities().context_tokens, 0, "", ""
    choice = room.choice(operation)
    if provider.name in {"native", "mobile", "docker"}:
        model, better = _short(choice.reference), _short(choice.better.name) if choice.better else ""
    engine = provider.create_engine(lambda _status: None) if provider.name in {"native", "mobile"} else None
    if isinstance(engine, LlamaEngine):
        where = folders({"NEXO_HOME": str(room.store.folder.parent)})
        file = where.models / choice.entry.file if choice.entry is not None else Path(choice.reference)
        tuned = tuning_of(settings.engine, file, where.state).threads
        context, threads = engine.options.context_tokens, tuned or engine.options.threads
    return replace(
        expected, engines=engines, model=model, better=better, context=context,
        threads=threads, refusal="",
    )  # fmt: skip


def _short(name: str) -> str:
    return next((short for short, full in names().items() if full == name), name)


def _unkept(work: Coroutine[Any, Any, None]) -> None:
    work.close()


def _pretend(monkeypatch: pytest.MonkeyPatch, *, llama: bool) -> None:
    """Whether llama-cpp-python is there; `detect-secrets` and Docker's library are."""
    real = importlib.util.find_spec

    def find_spec(name: str, package: str | None = None) -> ModuleSpec | None:
        if name not in {"llama_cpp", "detect_secrets", "docker"}:
            return real(name, package)
        return ModuleSpec(name, None, origin="here") if llama or name != "llama_cpp" else None

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)


def page() -> str:
    """The page of the decisions."""
    lines = [
        "# What each machine gets",
        "",
        "This page is made from `tests/unit/runtime/decisions.toml`, and a test asks the program whether it is true.",
        "A row is what some operations get: the engines, the best first; the model that they begin with → the better",
        "one that is fetched meanwhile; how many tokens of context and how many threads the engine is asked for. Where",
        "nothing else is said nothing was fetched or measured before, no other machine is allowed, and",
        "llama-cpp-python is installed. The machines are written down by hand, after what their makers document.",
        "",
        *(f"- {short}: `{full}`" for short, full in names().items()),
    ]
    for case in cases():
        if case.part:
            lines += ["", f"## {case.part}", ""]
            lines += ["| machine | for | engines | model | context | threads | why |", f"|{'---|' * 7}"]
        lines += [_row(case, answer) for answer in case.answer]
    return "\n".join(lines) + "\n"


def _about(case: Case) -> str:
    machine, size = case.environment, 2**30
    cores = f"{machine.performance_cores} of {machine.physical_cores} cores"
    if machine.performance_cores == machine.physical_cores:
        cores = f"{machine.physical_cores} core{'s' if machine.physical_cores > 1 else ''}"
    memory = f"{machine.total_bytes / size:.3g} GiB of memory, {machine.free_bytes / size:.3g} free"
    told = [
        f"{machine.platform.value}, {machine.architecture}{', emulated' if machine.emulated else ''}",
        cores,
        memory if machine.total_bytes else "memory unknown",
        *(f"{gpu.name} ({gpu.backend.value})" for gpu in machine.gpus),
        *(["no network"] if not machine.network else []),
        *(["llama-cpp-python is not installed"] if not case.installed else []),
        *(["the workspace is trusted"] if case.trusted else []),
        *(f"`nexo.{name}` = `{value}`" for name, value in _flat(case.settings)),
        *(f"the {short} is here" for short in case.here),
        *(f"the {short} was measured: {speed.tokens_per_s:g} tokens/s" for short, speed in case.measured.items()),
        *([_offered(case.client)] if case.client is not None else []),
    ]  # fmt: skip
    return "; ".join(told) + "."


def _offered(client: Mapping[str, Any]) -> str:
    where = "on this machine" if client.get("local") else "on another machine"
    gaps = "fills gaps" if client.get("infill") else "does not fill gaps"
    return f"the editor offers an engine {where} that {gaps}"


def _flat(settings: Mapping[str, Any], before: str = "") -> list[tuple[str, object]]:
    found: list[tuple[str, object]] = []
    for name, value in settings.items():
        inner = isinstance(value, Mapping)
        found += _flat(value, f"{before}{name}.") if inner else [(before + name, value)]  # pyright: ignore[reportUnknownArgumentType]
    return found


def _row(case: Case, answer: Answer) -> str:
    operations = "all" if len(answer.operations) == len(Operation) else ", ".join(answer.operations)
    model = f"{answer.model} → {answer.better}" if answer.better else answer.model
    engines = ", ".join(answer.engines) or f"none: “{answer.refusal}”"
    context = f"{answer.context:,}" if answer.context else ""
    machine = f"**{case.name}**: {_about(case)}" if answer is case.answer[0] else ""
    cells = (machine, operations, engines, model, context, str(answer.threads or ""), answer.why)
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    print(page(), end="")

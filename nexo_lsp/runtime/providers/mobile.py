"""llama.cpp on a phone or a tablet: the native engine under rules that keep it small and cool."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from nexo_lsp.engines.engine import Engine
from nexo_lsp.engines.llama.engine import LlamaEngine, LlamaOptions
from nexo_lsp.engines.llama.process import Spawn, spawn_private
from nexo_lsp.errors import EngineUnavailable
from nexo_lsp.generation import Capabilities, EngineStatus
from nexo_lsp.offload import Offload, in_thread
from nexo_lsp.runtime.environment import Environment, Gpu, GpuBackend, Platform
from nexo_lsp.runtime.providers.native import NativeProvider
from nexo_lsp.runtime.providers.provider import Availability, Traits

PHONES = frozenset({Platform.ANDROID, Platform.IOS})


@dataclass(frozen=True, slots=True)
class PhoneRules:
    """What a phone allows. Bytes are decimal, as the budgets of the project are."""

    model_bytes: int = 500_000_000
    """The largest model file."""
    memory_bytes: int = 1_000_000_000
    """Server and engine together."""
    server_bytes: int = 150_000_000
    """Kept for the server where the engine is another process: it takes 65 MB after reviewing a file of 800
    lines (Linux, Python 3.11), and grows with what is open."""
    context_tokens: int = 4096
    """A prompt of the largest budget and its answer; half of what a desktop holds."""
    sequences: int = 2
    """A completion beside one piece of background work."""
    idle_unload_s: float = 120.0
    pause_below_battery: int = 40
    """Percent: a phone is needed until the evening, so its bound is higher than a laptop's."""

    def pause_below(self, setting: int) -> int:
        """The bound that counts beside `nexo.review.pauseBelowBattery`; 0 there stays "never"."""
        return max(setting, self.pause_below_battery) if setting else 0

    def memory_limit_mb(self, setting: int, *, processes: bool) -> int:
        """What the engine may take, in MiB: the process that it runs in, which may be the server's own."""
        allowed = (self.memory_bytes - (self.server_bytes if processes else 0)) // 2**20
        return min(setting, allowed) if setting else allowed


@dataclass(frozen=True, slots=True)
class Delegate:
    """Something on the device that could compute instead of the processor's cores."""

    name: str
    present: bool
    reason: str


@dataclass(frozen=True, slots=True)
class MobileProvider:
    """Makes engines of `native` smaller; at home on phones, and anywhere else if it is asked for by name."""

    native: NativeProvider
    environment: Environment
    rules: PhoneRules = PhoneRules()
    spawn: Spawn | None = None
    """How a worker is had; None: as a process. iOS allows none: a worker in a thread has to be handed in."""
    named: bool = False
    """Whether a setting other than `nexo.engine.kind` names it."""
    offload: Offload = in_thread
    name: str = "mobile"

    def traits(self) -> Traits:
        """It starts a process unless it was given another way."""
        return Traits(
            processes=self.spawn is None,
            platforms=PHONES,
            memory_bytes=self.rules.memory_bytes,
        )

    def capabilities(self) -> Capabilities:
        """Those of the native engine, with a shorter context."""
        return replace(self.native.capabilities(), context_tokens=self._options().context_tokens)

    def probe(self) -> Availability:
        """Usable on a phone, or by name, where llama.cpp is installed and a worker can be had."""
        platform = self.environment.platform
        if platform not in PHONES and not self._is_named():
            return Availability(
                False, f"this is no phone ({platform.value}); nexo.engine = 'mobile' tries it out"
            )
        if self.spawn is None and not self.environment.processes:
            return Availability(False, "processes are not allowed here, and no worker in a thread is offered")
        found = self.native.probe()
        if not found.usable:
            return found
        present = [delegate.name for delegate in self.delegates() if delegate.present]
        rules = self.rules
        model, memory = rules.model_bytes // 10**6, rules.memory_bytes // 10**6
        room = f"models up to {model} MB, {memory:,} MB of memory in all"
        helped = ", ".join(present) or "no GPU or neural delegate, so the processor computes"
        return Availability(True, f"{found.reason}; {room}; {helped}")

    def create_engine(self, on_status: Callable[[EngineStatus], None]) -> Engine:
        """A `LlamaEngine` that shares its worker with nobody. Too large a model fails its requests."""
        spawn = self.spawn or partial(spawn_private, reason="a phone's worker is its server's own")
        engine = LlamaEngine(self._model, self._options(), spawn=spawn, installed=self.native.installed)
        engine.on_status = on_status
        return engine

    def delegates(self) -> tuple[Delegate, ...]:
        """What this build of llama.cpp can hand work to on this device, and why (not)."""
        return tuple(_delegates(self.environment.gpus))

    def _is_named(self) -> bool:
        return self.named or self.native.settings.kind == self.name

    def _options(self) -> LlamaOptions:
        settings, rules, environment = self.native.settings, self.rules, self.environment
        asked = self.native.options()
        return replace(
            asked,
            context_tokens=min(asked.context_tokens, rules.context_tokens),
            # Efficiency cores would hold the others back: an operation ends with its slowest thread.
            threads=settings.threads or environment.performance_cores,
            sequences=min(asked.sequences, rules.sequences),
            memory_limit_mb=rules.memory_limit_mb(settings.memory_limit_mb, processes=environment.processes),
            # A second copy of the weights is larger, in memory and on the disk.
            unpack_folder=None,
            # 0 keeps it for ever, which a phone has no memory for.
            idle_unload_s=min(asked.idle_unload_s or rules.idle_unload_s, rules.idle_unload_s),
        )

    async def _model(self) -> Path:
        """The native engine's model. Raises `EngineUnavailable` if it is too large for a phone."""
        path = await self.native.model()
        size = await self.offload(lambda: path.stat().st_size if path.is_file() else 0)
        if size > self.rules.model_bytes:
            raise EngineUnavailable(
                f"{path.name} has {size / 10**6:,.0f} MB, and the mobile engine takes models of at most "
                f"{self.rules.model_bytes // 10**6} MB; choose a smaller one (nexo.model), or another engine "
                "(nexo.engine)."
            )
        return path


def _delegates(gpus: tuple[Gpu, ...]) -> Iterator[Delegate]:
    def found(name: str, *, backend: GpuBackend | None = None, start: str = "") -> Delegate:
        for gpu in gpus:
            if gpu.backend is backend or (start and gpu.device.startswith(start)):
                return Delegate(name, True, gpu.name)
        return Delegate(name, False, f"this build of llama.cpp finds no {name} device")

    yield found("Metal", backend=GpuBackend.METAL)
    yield found("Vulkan", backend=GpuBackend.VULKAN)
    yield found("OpenCL", start="GPUOpenCL")
    yield found("Hexagon", start="HTP")
    # As of the llama.cpp in llama-cpp-python 0.3.36: there is no such folder in ggml/src.
    yield Delegate(
        "Core ML", False, "llama.cpp computes on Apple devices with Metal, it has no Core ML backend"
    )
    yield Delegate("NNAPI", False, "llama.cpp has no NNAPI backend, and Android 15 deprecates NNAPI")

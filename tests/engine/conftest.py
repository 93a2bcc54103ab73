"""The tiny model, and engines and schedulers around it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import pytest_asyncio

from nexo_lsp.engines.llama.engine import LlamaEngine, LlamaOptions
from nexo_lsp.engines.llama.loading import LoadedModel, load
from nexo_lsp.engines.llama.messages import Delta, Done, Failed, FromWorker, Load
from nexo_lsp.engines.llama.native import Library
from nexo_lsp.engines.llama.process import Spawn, spawn_private
from nexo_lsp.engines.llama.scheduler import Scheduler
from nexo_lsp.engines.llama.threaded import spawn_in_thread
from nexo_lsp.generation import Request

from .client_side import Client
from .tiny_gguf import write_tiny_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture
def half_a_model(tiny_model: Path, tmp_path: Path) -> Path:
    """A download that was cut off."""
    data = tiny_model.read_bytes()
    path = tmp_path / "half.gguf"
    path.write_bytes(data[: len(data) // 2])
    return path


@pytest.fixture(scope="session")
def library() -> Library:
    return Library()


@pytest.fixture
def loaded(library: Library, tiny_model: Path) -> Iterator[LoadedModel]:
    model = load(library, Load(str(tiny_model), context_tokens=4096, threads=1), lambda _progress: True)
    yield model
    model.close()


@dataclass
class Bench:
    """A scheduler that is stepped by hand, and everything that it said.

    Its clock stands still unless a test moves it. So the size of the prompt chunks does not depend on how
    busy the machine is, and with it the last bits of what is computed.
    """

    loaded: LoadedModel
    said: list[FromWorker] = field(default_factory=list)
    now: float = 0.0

    def __post_init__(self) -> None:
        model, context = self.loaded.model, self.loaded.context
        self.scheduler = Scheduler(model, context, self.said.append, clock=lambda: self.now)

    def alone(self, job: int, request: Request) -> str:
        """The text of `job` if nothing else is there; ends everything else."""
        self.scheduler.close()
        single = Bench(self.loaded)
        single.scheduler.add(job, request)
        single.run()
        single.scheduler.close()
        # A scheduler of its own for what follows: this one's cache knows nothing of what the other left.
        self.__post_init__()
        return single.text(job)

    def run(self) -> None:
        while self.scheduler.busy:
            self.scheduler.step()

    def text(self, job: int) -> str:
        return "".join(m.text for m in self.said if isinstance(m, Delta | Done) and m.id == job)

    def done(self, job: int) -> Done:
        return next(m for m in self.said if isinstance(m, Done) and m.id == job)

    def finished(self, job: int) -> bool:
        return any(isinstance(m, Done) and m.id == job for m in self.said)

    def failed(self, job: int) -> Failed:
        return next(m for m in self.said if isinstance(m, Failed) and m.id == job)

    def deltas(self, job: int) -> int:
        return sum(isinstance(m, Delta) and m.id == job for m in self.said)


@pytest.fixture
def bench(loaded: LoadedModel) -> Iterator[Bench]:
    made = Bench(loaded)
    yield made
    made.scheduler.close()


MakeEngine = Callable[..., LlamaEngine]


SPAWNS: dict[str, Spawn] = {"process": spawn_private, "thread": spawn_in_thread}


@pytest_asyncio.fixture
async def make_engine(tiny_model: Path, request: pytest.FixtureRequest) -> AsyncGenerator[MakeEngine]:
    """Engines that are closed when the test ends; their worker is in a process, unless a test says `thread`."""
    spawn = SPAWNS[getattr(request, "param", "process")]
    made: list[LlamaEngine] = []

    def make(
        model: Callable[[], Awaitable[Path]] | None = None,
        options: LlamaOptions | None = None,
        **more: object,
    ) -> LlamaEngine:
        async def tiny() -> Path:
            return tiny_model

        options = options or LlamaOptions(context_tokens=4096, threads=1)
        engine = LlamaEngine(model or tiny, options, **{"spawn": spawn, **more})
        made.append(engine)
        return engine

    yield make
    for engine in made:
        await engine.close()


@pytest_asyncio.fixture
async def client() -> AsyncIterator[Client]:
    """A client whose engine is asked one thing at a time."""
    made = Client()
    yield made
    await made.engine.close()
    assert made.port._running == {}
    assert made.port._waiting == []

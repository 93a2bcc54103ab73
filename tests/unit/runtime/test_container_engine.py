"""How a container comes and goes with requests, with servers and answers that are scripted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from nexo_lsp.errors import (
    EngineClosed,
    EngineCrashed,
    EngineError,
    EngineSilent,
    EngineUnavailable,
    PromptTooLong,
)
from nexo_lsp.generation import (
    Capabilities,
    ChatPrompt,
    EngineState,
    EngineStatus,
    FinishReason,
    Message,
    Piece,
    Request,
    Role,
)
from nexo_lsp.runtime.providers.containers.engine import ContainerEngine

REQUEST = Request(ChatPrompt((Message(Role.USER, "hello"),)))
CRASH = EngineCrashed("The container ended.")


@dataclass
class FakeServer:
    number: int
    url: str = "http://127.0.0.1:1"
    key: str = "k"
    name: str = "nexo-lsp-x"
    image: str = "image:1"
    host: str = "Docker Engine 1"
    memory_limit_bytes: int = 3_000_000_000
    confined: bool = True
    crash: EngineError | None = None
    stopped: bool = False

    async def crashed(self, patience_s: float) -> EngineError | None:
        return self.crash

    async def stop(self) -> None:
        self.stopped = True


@dataclass
class Script:
    """Starts servers and answers; what goes wrong is said beforehand."""

    servers: list[FakeServer] = field(default_factory=list)
    failures: list[EngineError] = field(default_factory=list)
    """The next starts fail with these."""
    errors: list[tuple[int, EngineError, bool]] = field(default_factory=list)
    """The next answers end after so many pieces with an error, and with the server's crash or not."""
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    now: float = 0.0

    def __post_init__(self) -> None:
        self.gate.set()

    async def model(self) -> Path:
        return Path("/models/coder.gguf")

    async def start(self, model: Path, tell: Callable[[str], None]) -> FakeServer:
        tell("starting a container")
        await self.gate.wait()
        if self.failures:
            raise self.failures.pop(0)
        server = FakeServer(len(self.servers))
        self.servers.append(server)
        return server

    def engine(self, **more: float) -> ContainerEngine:
        return ContainerEngine(
            self.model,
            self.start,
            lambda _url, _key: FakeEngine(self, self.servers[-1]),
            capabilities=Capabilities(infill=True),
            clock=lambda: self.now,
            **more,
        )


@dataclass
class FakeEngine:
    script: Script
    server: FakeServer

    def capabilities(self) -> Capabilities:
        return Capabilities(context_tokens=77)

    def status(self) -> EngineStatus:
        return EngineStatus(EngineState.READY, "remote", running=1)

    async def count_tokens(self, text: str) -> int:
        return len(text)

    async def stream(self, request: Request) -> AsyncGenerator[Piece, None]:
        if self.script.errors:
            count, error, crashes = self.script.errors.pop(0)
            for _ in range(count):
                yield Piece("x", 1)
            self.server.crash = CRASH if crashes else None
            raise error
        yield Piece(f"from {self.server.number}", 1, FinishReason.STOP)

    async def close(self) -> None:
        pass


@pytest.fixture
def script() -> Script:
    return Script()


async def answer(engine: ContainerEngine, request: Request = REQUEST) -> str:
    return "".join([piece.text async for piece in engine.stream(request)])


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 -- conditions of several kinds
            await asyncio.sleep(0.001)


async def test_all_requests_share_one_server(script: Script) -> None:
    script.gate.clear()
    engine = script.engine()
    assert engine.status().state is EngineState.IDLE
    assert engine.capabilities().infill
    both = asyncio.gather(answer(engine), answer(engine))
    await until(lambda: engine.status().detail == "starting a container")
    assert engine.status().state is EngineState.LOADING
    script.gate.set()
    assert await both == ["from 0", "from 0"]
    assert await engine.count_tokens("four") == 4
    status = engine.status()
    assert (status.name, status.state, status.model) == ("docker", EngineState.READY, "coder")
    assert "image:1" in str(status.extra["notes"])
    assert engine.capabilities().context_tokens == 77
    await engine.close()
    assert [server.stopped for server in script.servers] == [True]
    assert engine.status().state is EngineState.CLOSED
    with pytest.raises(EngineClosed):
        await answer(engine)
    await engine.close()


async def test_an_answer_that_had_not_begun_is_begun_again_on_the_next_server(script: Script) -> None:
    script.errors = [(0, EngineUnavailable("connection refused"), True)]
    engine = script.engine()
    assert await answer(engine) == "from 1"
    assert script.servers[0].stopped
    await engine.close()


async def test_an_answer_that_had_begun_ends_with_the_reason(script: Script) -> None:
    script.errors = [(1, EngineError("connection reset"), True)]
    engine = script.engine()
    with pytest.raises(EngineCrashed, match="The container ended"):
        await answer(engine)
    assert engine.status().state is EngineState.FAILED
    assert await answer(engine) == "from 1"
    assert engine.status().state is EngineState.READY
    await engine.close()


@pytest.mark.parametrize("error", [PromptTooLong("too long"), EngineError("bad request")])
async def test_an_error_of_a_server_that_is_well_stays_what_it_is(script: Script, error: EngineError) -> None:
    script.errors = [(0, error, False)]
    engine = script.engine()
    with pytest.raises(type(error), match=str(error)):
        await answer(engine)
    assert await answer(engine) == "from 0"
    await engine.close()


async def test_a_container_that_hangs_is_replaced(script: Script) -> None:
    script.errors = [(0, EngineSilent("said nothing"), False)]
    engine = script.engine()
    with pytest.raises(EngineSilent):
        await answer(engine)
    assert await answer(engine) == "from 1"
    assert script.servers[0].stopped
    await engine.close()


async def test_a_container_that_answers_others_meanwhile_is_kept(script: Script) -> None:
    script.errors = [(2, EngineSilent("said nothing"), False)]
    engine = script.engine()
    with pytest.raises(EngineSilent):
        await answer(engine)
    assert await answer(engine) == "from 0"
    await engine.close()


async def test_starts_that_fail_are_tried_ever_more_rarely(script: Script) -> None:
    script.failures = [EngineUnavailable("no image"), EngineUnavailable("no image")]
    engine = script.engine()
    for _ in range(2):
        with pytest.raises(EngineUnavailable, match=r"no image$"):
            await answer(engine)
    with pytest.raises(EngineUnavailable, match=r"no image \(Next try in 1 s\.\)"):
        await answer(engine)
    script.now = 1.5
    assert await answer(engine) == "from 0"
    await engine.close()


async def test_two_crashes_in_one_request_end_it(script: Script) -> None:
    script.errors = [(0, EngineError("reset"), True)] * 2
    engine = script.engine()
    with pytest.raises(EngineCrashed):
        await answer(engine)
    await engine.close()
    assert [server.stopped for server in script.servers] == [True, True]


async def test_an_idle_server_is_stopped_and_started_again(script: Script) -> None:
    engine = script.engine(idle_unload_s=0.01)
    await answer(engine)
    await until(lambda: script.servers[0].stopped)
    assert engine.status().state is EngineState.IDLE
    assert await answer(engine) == "from 1"
    await engine.close()


async def test_closing_while_it_starts(script: Script) -> None:
    script.gate.clear()
    engine = script.engine()
    asking = asyncio.ensure_future(answer(engine))
    await until(lambda: engine.status().state is EngineState.LOADING)
    await engine.close()
    with pytest.raises(EngineClosed):
        await asking


async def test_a_deadline_that_passes_while_it_starts(script: Script) -> None:
    script.gate.clear()
    engine = script.engine()
    request = Request(REQUEST.prompt, deadline_s=0.01)
    pieces = [piece async for piece in engine.stream(request)]
    assert [piece.finish for piece in pieces] == [FinishReason.DEADLINE]
    script.gate.set()
    await engine.close()

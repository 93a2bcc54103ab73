"""One engine for all servers of a user: real processes and the tiny model."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from nexo_lsp.engines.llama.channel import connect
from nexo_lsp.engines.llama.endpoint import Endpoint, EndpointFile, key_of
from nexo_lsp.engines.llama.engine import LlamaEngine, LlamaOptions
from nexo_lsp.engines.llama.hub_process import READY, HubOptions
from nexo_lsp.engines.llama.messages import Done, FromWorker, Load, Loaded, Start, Stats
from nexo_lsp.engines.llama.process import WorkerLink, python_command
from nexo_lsp.engines.llama.shared import SharedLink, SharedSpawn, Sharing
from nexo_lsp.errors import EngineClosed, EngineCrashed
from nexo_lsp.runtime.providers.native import NativeProvider
from nexo_lsp.settings import EngineSettings

from .conftest import MakeEngine
from .requests import background, chat, collect

ROOT = Path(__file__).parents[2]
WAIT_S = 60.0
"""How long a test waits for something before it fails."""
ENDLESS = 3000

posix = pytest.mark.skipif(sys.platform == "win32", reason="the signal does not exist there")


@pytest.fixture
def sharing(nexo_home: Path) -> Sharing:
    return Sharing(nexo_home / "state" / "engine", nexo_home / "logs", grace_s=0.2)


@pytest.fixture
def share(make_engine: MakeEngine, sharing: Sharing) -> Callable[..., LlamaEngine]:
    def make(**changes: object) -> LlamaEngine:
        return make_engine(spawn=SharedSpawn(replace(sharing, **changes)))

    return make


Share = Callable[..., LlamaEngine]


def pid_of(engine: LlamaEngine) -> int:
    return int(engine.status().extra["pid"])


def endpoint_of(sharing: Sharing) -> EndpointFile:
    (path,) = sharing.folder.glob("*.json")
    return EndpointFile(sharing.folder, path.stem)


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not true():  # noqa: ASYNC110 - other processes set no events
            await asyncio.sleep(0.01)


async def started(engine: LlamaEngine) -> psutil.Process:
    """Load the model; the process that has it."""
    assert await engine.count_tokens("four") == 4
    return psutil.Process(pid_of(engine))


async def ended(process: psutil.Process) -> None:
    """Wait until a process is no more; a zombie would be one that nobody waited for."""
    await until(lambda: not process.is_running())


@asynccontextmanager
async def another_server(
    sharing: Sharing, model: Path, requests: int = 0
) -> AsyncIterator[tuple[asyncio.subprocess.Process, Callable[[], Awaitable[str]]]]:
    """A server in a process of its own, and what it says, line by line."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.engine.sharer",
        str(sharing.folder), str(sharing.logs), str(model), str(requests),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, cwd=ROOT,
        # Told, not inherited: llama.cpp, which other tests load into this process, sets KMP_BLOCKTIME behind
        # Python's back, and who has other settings for threads gets another engine.
        env=dict(os.environ),
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdin is not None
    stdout = process.stdout

    async def line() -> str:
        return (await asyncio.wait_for(stdout.readline(), WAIT_S)).decode().strip()

    try:
        yield process, line
    finally:
        process.stdin.close()
        await asyncio.wait_for(process.wait(), WAIT_S)


async def test_two_servers_share_one_engine_which_ends_after_the_last(share: Share, sharing: Sharing) -> None:
    one, two = share(), share()
    hub = await started(one)
    assert await started(two) == hub
    assert one.status().extra["shared"] is True
    assert (one.status().extra["sharedReason"], two.status().extra["sharedReason"]) == ("started", "joined")
    first, second = await asyncio.gather(
        collect(one.stream(chat("a", max_tokens=100))), collect(two.stream(chat("b", max_tokens=100)))
    )
    assert (first[1].tokens, second[1].tokens) == (100, 100)
    await one.close()
    assert (await collect(two.stream(chat())))[1].tokens == 40
    assert hub.is_running()
    await two.close()
    await ended(hub)
    assert [path.suffix for path in sharing.folder.iterdir()] == [".lock"], "nothing but the lock is left"


async def test_servers_that_come_while_the_model_is_loaded_wait_for_the_same_load(
    sharing: Sharing, tiny_model: Path
) -> None:
    spawn, wish = SharedSpawn(sharing), Load(str(tiny_model), 4096, threads=1)
    hosted = [await spawn(wish) for _ in range(3)]
    for each in hosted:
        each.link.send(wish)
    loads = {await heard(each.link, Loaded) for each in hosted}
    assert len(loads) == 1, "the same load, by its duration"
    for each in hosted:
        await each.link.close(WAIT_S)


async def heard(link: WorkerLink, kind: type[FromWorker]) -> FromWorker:
    async with asyncio.timeout(WAIT_S):
        async for message in link.receive():
            if isinstance(message, kind):
                return message
    raise AssertionError


async def test_servers_that_want_different_things_do_not_share(
    make_engine: MakeEngine, sharing: Sharing
) -> None:
    engines = [
        make_engine(options=LlamaOptions(context_tokens=tokens, threads=1), spawn=SharedSpawn(sharing))
        for tokens in (2048, 4096)
    ]
    assert await started(engines[0]) != await started(engines[1])


async def test_five_servers_that_start_at_once_start_one_engine(sharing: Sharing, tiny_model: Path) -> None:
    servers = [another_server(sharing, tiny_model) for _ in range(5)]
    lines = [line for _, line in await asyncio.gather(*(server.__aenter__() for server in servers))]
    try:
        said = [(await line()).split() for line in lines]
    finally:
        await asyncio.gather(*(server.__aexit__(None, None, None) for server in servers))
    assert {shared for _, shared in said} == {"True"}
    assert len({pid for pid, _ in said}) == 1
    if psutil.pid_exists(int(said[0][0])):
        await ended(psutil.Process(int(said[0][0])))


async def test_the_engine_outlives_the_server_that_started_it(
    share: Share, sharing: Sharing, tiny_model: Path
) -> None:
    async with another_server(sharing, tiny_model) as (process, line):
        pid = int((await line()).split()[0])
        engine = share()
        assert (await started(engine)).pid == pid
        process.kill()
        await process.wait()
    assert (await collect(engine.stream(chat())))[1].tokens == 40
    assert pid_of(engine) == pid


async def test_what_a_killed_server_asked_for_is_cancelled_and_the_others_are_served(
    sharing: Sharing, tiny_model: Path
) -> None:
    spawn, wish = SharedSpawn(sharing), Load(str(tiny_model), 4096, threads=1)
    async with another_server(sharing, tiny_model, requests=30) as (process, line):
        pid = int((await line()).split()[0])
        assert await line() == "busy"
        hosted = await spawn(wish)
        assert hosted.link.pid == pid
        hosted.link.send(wish)
        messages = hosted.link.receive()
        job, busiest, idle = 0, 0, False
        async with asyncio.timeout(WAIT_S):
            async for message in messages:
                if isinstance(message, Loaded | Done) and not idle:
                    job += 1
                    hosted.link.send(Start(job, chat(max_tokens=5)))
                elif isinstance(message, Stats):
                    jobs = message.running + message.queued
                    if jobs > 10 and not busiest:
                        busiest = jobs
                        process.kill()
                    idle = bool(busiest) and jobs <= 1
                if idle:
                    break
        assert job < 1000, "thirty endless answers would have taken longer"
    await hosted.link.close(WAIT_S)


@posix
async def test_when_the_engine_is_killed_every_server_goes_on_with_a_new_one(share: Share) -> None:
    one, two = share(), share()
    hub = await started(one)
    await started(two)
    shown = one.stream(chat("shown", max_tokens=ENDLESS))
    await anext(shown)
    waiting = [
        asyncio.create_task(collect(engine.stream(background("waits", max_tokens=ENDLESS))))
        for engine in (one, two)
    ]
    await asyncio.sleep(0)
    hub.kill()
    with pytest.raises(EngineCrashed, match="perhaps because memory ran out"):
        async for _ in shown:
            pass
    for task in waiting:
        assert (await task)[1].tokens == ENDLESS
    assert pid_of(one) == pid_of(two) != hub.pid
    assert not psutil.pid_exists(hub.pid)


@posix
async def test_a_place_that_is_left_over_is_taken(share: Share, sharing: Sharing) -> None:
    first = await started(share())
    file = endpoint_of(sharing)
    old = file.read()
    assert old is not None
    first.kill()
    await ended(first)
    left_over = Path(old.address)
    assert left_over in set(sharing.folder.iterdir())
    second = await started(share())
    assert second != first
    assert left_over not in set(sharing.folder.iterdir())
    new = file.read()
    assert new is not None
    assert new.pid == second.pid
    assert sharing.folder.stat().st_mode & 0o777 == 0o700
    assert file.path.stat().st_mode & 0o777 == 0o600


async def test_a_place_that_names_somebody_else_is_taken(
    share: Share, sharing: Sharing, tiny_model: Path
) -> None:
    """The number of a process that is gone may have been given to another one."""
    sharing.folder.mkdir(parents=True)
    key = key_of(Load(str(tiny_model), 4096, threads=1), os.environ)
    file = EndpointFile(sharing.folder, key)
    file.write(Endpoint(str(sharing.folder / "nobody.sock"), os.getpid(), "aa"))
    hub = await started(share())
    assert hub.pid != os.getpid()


async def test_nobody_gets_in_without_the_token(share: Share, sharing: Sharing) -> None:
    engine = share()
    await started(engine)
    endpoint = endpoint_of(sharing).read()
    assert endpoint is not None
    channel = connect(endpoint.address)
    with pytest.raises(EOFError):
        await asyncio.to_thread(channel.prove, b"a guess", WAIT_S)
    channel.close()
    assert (await collect(engine.stream(chat())))[1].tokens == 40


async def test_a_client_that_speaks_nonsense_harms_only_itself(share: Share, sharing: Sharing) -> None:
    engine = share()
    await started(engine)
    endpoint = endpoint_of(sharing).read()
    assert endpoint is not None
    channel = connect(endpoint.address)

    def speak() -> None:
        channel.prove(bytes.fromhex(endpoint.token), WAIT_S)
        channel.send(b"what?")
        while True:
            channel.receive(WAIT_S)

    with pytest.raises(EOFError):
        await asyncio.to_thread(speak)
    channel.close()
    assert (await collect(engine.stream(chat())))[1].tokens == 40


@posix
async def test_an_engine_that_does_not_answer_is_left_alone_and_that_is_said(
    share: Share, caplog: pytest.LogCaptureFixture
) -> None:
    one = share()
    hub = await started(one)
    hub.suspend()
    try:
        two = share(answer_s=0.1)
        with caplog.at_level(logging.WARNING):
            assert await started(two) != hub
        extra = two.status().extra
        assert extra["shared"] is False
        assert f"{hub.pid} could not be joined" in extra["sharedReason"]
        assert any("not shared" in record.getMessage() for record in caplog.records)
    finally:
        hub.resume()
    assert (await collect(one.stream(chat())))[1].tokens == 40


async def test_where_nothing_can_be_shared_the_server_has_its_own_engine_and_says_why(
    share: Share, nexo_home: Path
) -> None:
    (nexo_home / "state").write_text("a file where a folder should be")
    engine = share()
    worker = await started(engine)
    assert worker.ppid() == os.getpid()
    assert engine.status().extra["shared"] is False
    assert "could not be shared" in engine.status().extra["sharedReason"]


async def test_an_engine_that_cannot_start_says_why(
    share: Share, sharing: Sharing, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = [sys.executable, "-c", "raise SystemExit('the library is broken')"]
    monkeypatch.setattr("nexo_lsp.engines.llama.shared.python_command", lambda *_: broken)
    engine = share()
    await started(engine)
    assert "the library is broken" in engine.status().extra["sharedReason"]


async def test_the_setting_decides(nexo_home: Path, tiny_model: Path) -> None:
    async def model() -> Path:
        return tiny_model

    engines = [
        NativeProvider(EngineSettings(shared=shared), model).create_engine(lambda _status: None)
        for shared in (True, True, False)
    ]
    try:
        for engine in engines:
            await engine.count_tokens("x")
        extras = [engine.status().extra for engine in engines]
        assert [extra["shared"] for extra in extras] == [True, True, False]
        assert extras[2]["sharedReason"] == "switched off"
        assert extras[0]["pid"] == extras[1]["pid"] != extras[2]["pid"]
    finally:
        for engine in engines:
            await engine.close()


def test_an_engine_that_nobody_comes_to_ends_and_leaves_nothing(nexo_home: Path) -> None:
    folder = nexo_home / "engine"
    folder.mkdir(mode=0o700)
    options = HubOptions(str(folder), "key", str(nexo_home / "log"), first_s=0.01)
    command = python_command("nexo_lsp.engines.llama.hub_process", options.argument())
    ran = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=WAIT_S, check=True
    )
    assert ran.stdout == READY
    assert list(folder.iterdir()) == []


def test_the_engine_does_not_import_from_the_folder_it_is_started_in(nexo_home: Path, tmp_path: Path) -> None:
    (tmp_path / "psutil.py").write_text("raise SystemExit('owned')\n")
    options = HubOptions(str(tmp_path), "key", str(nexo_home / "log"), first_s=0.01)
    command = python_command("nexo_lsp.engines.llama.hub_process", options.argument())
    subprocess.run(command, stdin=subprocess.DEVNULL, cwd=tmp_path, timeout=WAIT_S, check=True)


async def test_leaving_does_not_wait_for_an_engine_that_hangs(sharing: Sharing, tiny_model: Path) -> None:
    hosted = await SharedSpawn(sharing)(Load(str(tiny_model), 4096, threads=1))
    assert isinstance(hosted.link, SharedLink)
    hub = psutil.Process(hosted.link.pid)
    hub.suspend()
    try:
        await asyncio.wait_for(hosted.link.close(0.05), WAIT_S)
        async for _ in hosted.link.receive():
            pass
    finally:
        hub.resume()
    await ended(hub)


async def test_a_start_that_is_cancelled_leaves_no_client_behind(share: Share, sharing: Sharing) -> None:
    engine = share()
    asking = asyncio.create_task(engine.count_tokens("x"))
    await asyncio.sleep(0)
    # The start runs as far as to the thread that connects.
    await until(sharing.folder.exists)
    await engine.close()
    with pytest.raises(EngineClosed):
        await asking
    await until(lambda: list(sharing.logs.glob("*.log")))
    await until(lambda: b"the last client has left" in next(sharing.logs.glob("*.log")).read_bytes())

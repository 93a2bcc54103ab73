"""Real containers of a real Docker Engine: llama.cpp servers with the real model in them."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio
from typer.testing import CliRunner

from benchmarks.engine.llama_server import find as find_llama_server
from nexo_lsp.cli.container_checks import containers
from nexo_lsp.cli.program import build
from nexo_lsp.engines.engine import Engine
from nexo_lsp.errors import EngineClosed, EngineCrashed, EngineError, EngineLoadFailed, EngineUnavailable
from nexo_lsp.generation import EngineState, EngineStatus, FinishReason, InfillPrompt, Request
from nexo_lsp.runtime.environment import Platform
from nexo_lsp.runtime.providers.containers.daemon import Daemon
from nexo_lsp.runtime.providers.containers.owners import Owner, labels
from nexo_lsp.runtime.providers.docker import DockerProvider
from nexo_lsp.settings import DockerSettings, EngineSettings, Settings

from ..conftest import IN_CI
from .docker_engine import docker_engine, import_image, missing, write_llama_server_image, write_python_image
from .requests import chat, collect, saying
from .test_real_model import QWEN
from .tiny_registry import registry

pytestmark = pytest.mark.docker

PYTHON_IMAGE, NATIVE_IMAGE = "nexo-test-python", "nexo-test-llama-server"
PYTHON = str(Path(sys._base_executable).resolve())
"""The interpreter inside the image."""
USED = os.environ.get("NEXO_TEST_DOCKER", "")
"""The socket of an engine to be used instead of one that is started, for example Podman's."""


@pytest.fixture(scope="session")
def docker_url() -> Iterator[str]:
    if USED:
        yield USED
        return
    if why := missing():
        (pytest.fail if IN_CI else pytest.skip)(f"no Docker Engine can be started: {why}")
    with docker_engine() as url:
        yield url


@pytest.fixture(scope="session")
def docker_client(docker_url: str) -> Iterator[Any]:
    import docker

    client = docker.DockerClient(base_url=docker_url)
    yield client
    client.close()


@pytest.fixture(scope="session")
def python_image(docker_client: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    tar = tmp_path_factory.mktemp("image") / "python.tar"
    import_image(docker_client, tar, PYTHON_IMAGE, write_python_image(tar))
    tar.unlink()
    return PYTHON_IMAGE


@pytest.fixture(scope="session", params=["python", "llama-server"])
def image(
    request: pytest.FixtureRequest, docker_client: Any, tmp_path_factory: pytest.TempPathFactory
) -> str:
    """Both kinds of server: what comes with llama-cpp-python, and llama.cpp's own if it was built here."""
    if request.param == "python":
        return request.getfixturevalue("python_image")
    program = find_llama_server(os.environ)
    if program is None:
        pytest.skip("llama-server was not built here (benchmarks/engine/llama_server.py)")
    tar = tmp_path_factory.mktemp("image") / "llama-server.tar"
    import_image(docker_client, tar, NATIVE_IMAGE, write_llama_server_image(tar, program.resolve()))
    tar.unlink()
    return NATIVE_IMAGE


Make = Callable[..., Engine]


@pytest_asyncio.fixture
async def make(docker_url: str, docker_client: Any, model_path: Path) -> AsyncGenerator[Make]:
    """Engines that are closed when the test ends, and a look that nothing is left of them."""
    made: list[Engine] = []

    def engine(
        image: str, on_status: Callable[[EngineStatus], None] = lambda _status: None, **settings: Any
    ) -> Engine:
        path = settings.pop("model", model_path)

        async def model() -> Path:
            return path

        provider = DockerProvider(
            DockerSettings(
                image=image, socket=settings.pop("socket", docker_url), pull=settings.pop("pull", False)
            ),
            EngineSettings(context_tokens=2048, **settings),
            model,
            os.environ,
            Platform.LINUX,
        )
        made.append(provider.create_engine(on_status))
        return made[-1]

    yield engine
    for one in made:
        await one.close()
    assert ours(docker_client) == []


def ours(client: Any) -> list[Any]:
    return [*client.containers.list(all=True, filters={"label": "nexo-lsp"}), *our_networks(client)]


def our_networks(client: Any) -> list[Any]:
    return client.networks.list(filters={"label": "nexo-lsp"})


def only_container(client: Any) -> Any:
    (container,) = client.containers.list(filters={"label": "nexo-lsp"})
    return container


async def test_it_answers_and_leaves_nothing_behind(
    make: Make, image: str, docker_client: Any, model_path: Path
) -> None:
    told: list[str] = []
    engine = make(image, lambda status: told.append(status.detail))
    code = InfillPrompt("def add(a, b):\n    return ", "\n", QWEN)
    text, last = await collect(engine.stream(Request(code, max_tokens=16, stop=("\n",))))
    assert text.strip() == "a + b"
    assert last.finish is FinishReason.STOP
    # The second request finds the container of the first.
    text, last = await collect(engine.stream(saying("ready")))
    assert json.loads(text) == "ready"
    assert last.usage is not None
    assert last.usage.completion_tokens > 0
    # On a busy machine a look at the server may fail for a moment, and then the number is an estimate.
    async with asyncio.timeout(30):
        while await engine.count_tokens("one two three") != 3:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.1)
    assert engine.status().state is EngineState.READY
    assert {"starting a container", "waiting for the server in the container to load the model"} <= set(told)
    container = only_container(docker_client)
    assert container.labels["nexo-lsp.owner.pid"] == str(os.getpid())
    assert container.labels["nexo-lsp.model"] == model_path.stem
    await engine.close()
    assert ours(docker_client) == []


async def test_it_is_closed_in_on_all_sides(
    make: Make, python_image: str, docker_client: Any, model_path: Path
) -> None:
    engine = make(python_image)
    await collect(engine.stream(chat("hello", max_tokens=2)))
    container = only_container(docker_client)
    container.reload()
    # The port is bound to the loopback interface, and to nothing else that the kernel knows of.
    ((_, bound),) = container.attrs["NetworkSettings"]["Ports"].items()
    assert [entry["HostIp"] for entry in bound] == ["127.0.0.1"]
    port = int(bound[0]["HostPort"])
    listening = [
        c.laddr.ip for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.laddr.port == port
    ]
    assert listening == ["127.0.0.1"]

    def inside(program: str) -> tuple[int, str]:
        code, output = container.exec_run([PYTHON, "-c", program])
        return code, output.decode()

    model = f"/models/{model_path.name}"
    assert inside(f"print(open({model!r}, 'rb').read(4))") == (0, "b'GGUF'\n")
    for write in (f"open({model!r}, 'r+b')", "open('/models/x', 'w')", "open('/app/x', 'w')"):
        code, output = inside(write)
        assert code == 1
        assert "Read-only file system" in output or "Permission denied" in output
    assert inside("import os; print(os.listdir('/models'))") == (0, f"{[model_path.name]}\n")
    status = inside("print(open('/proc/self/status').read())")[1]
    assert re.search(r"^NoNewPrivs:\s+1$", status, re.M)
    assert re.search(r"^CapBnd:\s+0+$", status, re.M)
    assert re.search(rf"^Uid:\s+{os.getuid()}\b", status, re.M)
    # Without the key nobody gets an answer.
    import httpx

    async with httpx.AsyncClient(trust_env=False) as stranger:
        answer = await stranger.post(f"http://127.0.0.1:{port}/v1/completions", json={"prompt": "x"})
    assert answer.status_code == 401
    (network,) = our_networks(docker_client)
    assert USED or network.attrs["Options"]["com.docker.network.bridge.enable_ip_masquerade"] == "false"


async def test_cancelling_stops_the_work(make: Make, image: str, docker_client: Any) -> None:
    """An answer of 1,500 tokens would take much longer than the container is given here to come to rest."""
    engine = make(image)
    request = chat("Count from one to a thousand, in words.", max_tokens=1500)
    async with aclosing(engine.stream(request)) as pieces:
        await anext(pieces)
    container = only_container(docker_client)

    async def at_rest() -> bool:
        before = await asyncio.to_thread(_cpu_s, docker_client, container.id)
        await asyncio.sleep(0.3)
        return await asyncio.to_thread(_cpu_s, docker_client, container.id) - before < 0.03

    async with asyncio.timeout(15):
        while not await at_rest():
            pass
    await collect(engine.stream(chat("hello", max_tokens=2)))


def _cpu_s(client: Any, container: str) -> float:
    stats = client.api.stats(container, stream=False, one_shot=True)
    return stats["cpu_stats"]["cpu_usage"]["total_usage"] / 1e9


async def test_a_container_that_is_killed(make: Make, image: str, docker_client: Any) -> None:
    """In the middle of an answer that is an error; before one, a reason to start another."""
    engine = make(image)
    with pytest.raises(EngineCrashed, match=r"ended \(exit code 137\).*started again with the next request"):
        async with aclosing(engine.stream(chat("Count to a thousand.", max_tokens=1500))) as pieces:
            await anext(pieces)
            first = only_container(docker_client)
            first.kill()
            async for _ in pieces:
                pass
    assert engine.status().state is EngineState.FAILED
    await collect(engine.stream(chat("hello", max_tokens=2)))
    second = only_container(docker_client)
    assert second.id != first.id
    second.kill()
    await collect(engine.stream(chat("hello", max_tokens=2)))
    assert only_container(docker_client).id != second.id


async def test_a_server_that_ends_at_its_start_says_why(
    make: Make, python_image: str, half_a_model: Path
) -> None:
    engine = make(python_image, model=half_a_model)
    with pytest.raises(EngineLoadFailed, match="before it was ready") as caught:
        await collect(engine.stream(chat()))
    assert "half.gguf" in str(caught.value)


async def test_a_server_that_is_cancelled_while_it_starts(
    make: Make, python_image: str, docker_client: Any
) -> None:
    starting = asyncio.Event()

    def heard(status: EngineStatus) -> None:
        if status.detail.startswith("waiting for the server"):
            starting.set()

    engine = make(python_image, heard)
    asking = asyncio.ensure_future(collect(engine.stream(chat())))
    async with asyncio.timeout(60):
        await starting.wait()
    await engine.close()
    with pytest.raises(EngineClosed):
        await asking
    assert ours(docker_client) == []


@pytest.mark.parametrize("by", ["the first use", "the command"])
async def test_what_dead_owners_left_is_removed_and_nothing_else(
    by: str,
    make: Make,
    python_image: str,
    docker_client: Any,
    docker_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    me = Owner.this()
    waiting = [sys.executable, "-c", "input()"]
    with subprocess.Popen(waiting, stdin=subprocess.PIPE) as process:  # noqa: ASYNC220 -- a short one
        owner = replace(me, pid=process.pid, started=psutil.Process(process.pid).create_time())
        living = replace(owner, pid=os.getppid(), started=psutil.Process(os.getppid()).create_time())
        somebody = replace(owner, user="somebody else")
        made = {
            name: docker_client.containers.run(
                python_image,
                entrypoint=[PYTHON, "-c", "import time; time.sleep(600)"],
                name=f"nexo-test-{name}",
                labels=labels(whose, "coder", None),
                network_mode="none",
                detach=True,
            )
            for name, whose in (("dead", owner), ("living", living), ("foreign", somebody))
        }
        network = docker_client.networks.create("nexo-test-dead", labels=labels(owner, "coder", None))
        other = docker_client.networks.create("nexo-test-living", labels=labels(living, "coder", None))
        # The owner dies here.
    try:
        settings = Settings(docker=DockerSettings(enabled=True, image=python_image, socket=docker_url))
        checks = {check.name: check for check in await asyncio.to_thread(list, containers(settings, {}))}
        assert checks["image"].state == "ok"
        assert "nexo-test-dead" in checks["containers"].value
        assert "nexo-test-living" not in checks["containers"].value
        if by == "the command":
            monkeypatch.setenv("NEXO_DOCKER_SOCKET", docker_url)
            result = await asyncio.to_thread(CliRunner().invoke, build(["docker"]), ["docker", "prune"])
            assert result.output == "removed nexo-test-dead\n"
        else:
            engine = make(python_image)
            await collect(engine.stream(chat("hello", max_tokens=2)))
            await engine.close()
        left = {container.name for container in ours(docker_client)}
        assert left == {"nexo-test-living", "nexo-test-foreign"}
        assert network.id not in {found.id for found in our_networks(docker_client)}
    finally:
        for container in made.values():
            if container.name != "nexo-test-dead":
                container.remove(force=True)
        other.remove()


async def test_an_image_that_is_not_here(make: Make, docker_url: str) -> None:
    with pytest.raises(
        EngineUnavailable, match=r"`docker pull localhost:1/nobody/nothing:1`.*nexo\.docker\.pull"
    ):
        await collect(make("localhost:1/nobody/nothing:1").stream(chat()))
    # Where it may be fetched it is tried, and what came of it is said.
    told: list[str] = []
    engine = make("localhost:1/nobody/nothing:1", lambda status: told.append(status.detail), pull=True)
    with pytest.raises(
        EngineUnavailable,
        match=r"The image localhost:1/nobody/nothing:1 could not be fetched: .*connection refused",
    ):
        await collect(engine.stream(chat()))
    assert "fetching the image localhost:1/nobody/nothing:1" in told


@pytest.mark.skipif(bool(USED), reason="Podman fetches by TLS only, and does not say how far it is")
async def test_an_image_is_fetched_where_that_is_allowed(make: Make, docker_client: Any) -> None:
    percents: list[int] = []
    half = asyncio.Event()

    def heard(status: EngineStatus) -> None:
        if (match := re.search(r"fetching the image .*: (\d+) %$", status.detail)) is not None:
            percents.append(int(match[1]))
            half.set()

    with registry() as (name, go_on):
        asking = asyncio.ensure_future(collect(make(name, heard, pull=True).stream(chat())))
        async with asyncio.timeout(60):
            await half.wait()
        go_on.set()
        # It is no image of a server, but it is here now.
        with pytest.raises(EngineError, match=r"ended \(exit code 127\)|could not start"):
            await asking
    assert docker_client.images.get(name)
    assert 0 < percents[0] <= 50
    docker_client.images.remove(name)


async def test_no_engine(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineUnavailable, match=r"nothing is there.*Start Docker"):
        await collect(make("x", socket=f"unix://{tmp_path}/docker.sock").stream(chat()))
    # The file of one that ended stays.
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind("docker.sock")
    with pytest.raises(EngineUnavailable, match="is not running"):
        await collect(make("x", socket=f"unix://{tmp_path}/docker.sock").stream(chat()))


@pytest.mark.skipif(os.geteuid() != 0 or bool(USED), reason="only root can become another user")
def test_an_engine_that_is_not_for_us(docker_url: str) -> None:
    """Also when it was looked at too early: what is refused at the socket says how to get permission."""
    import grp

    import docker.errors  # noqa: F401 -- here before the test becomes a user who may not read it

    Path(docker_url.removeprefix("unix://")).chmod(0o600)
    daemon = Daemon(docker_url)
    name = grp.getgrgid(Path(docker_url.removeprefix("unix://")).stat().st_gid).gr_name
    os.seteuid(65534)
    try:
        with pytest.raises(EngineUnavailable, match=f"sudo usermod -aG {name}|only root"):
            daemon.facts()
    finally:
        os.seteuid(0)
        daemon.close()

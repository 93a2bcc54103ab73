"""One server in a container: started, waited for, looked after and stopped, without holding up the loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from nexo_lsp.errors import EngineError, EngineLoadFailed, EngineUnavailable
from nexo_lsp.models.record import read_record
from nexo_lsp.offload import Offload, in_thread
from nexo_lsp.runtime.environment import Platform
from nexo_lsp.runtime.providers.containers.daemon import Daemon, ended
from nexo_lsp.runtime.providers.containers.owners import Owner, labels
from nexo_lsp.runtime.providers.containers.places import find, this_platform
from nexo_lsp.runtime.providers.containers.plan import Facts, Plan, memory_for

if TYPE_CHECKING:
    import httpx

_log = logging.getLogger(__name__)

T = TypeVar("T")
Tell = Callable[[str], None]

_FIRST_LOOK_S, _MOST_BETWEEN_LOOKS_S, _SLOWER = 0.05, 1.0, 1.5
_HEALTH_TIMEOUT_S = 5.0
_OK, _UNKNOWN_PATH = 200, 404


@dataclass(frozen=True, slots=True)
class ContainerOptions:
    """Which container, and where."""

    image: str
    pull: bool = False
    socket: str = ""
    """Empty looks in the usual places."""
    context_tokens: int = 8192
    threads: int = 0
    memory_limit_mb: int = 0
    gpus: bool = False
    ready_timeout_s: float = 300.0
    """How long the server may take to load its model."""


class ContainerServer:
    """A llama.cpp server that runs in a container and answers."""

    def __init__(
        self, daemon: Daemon, plan: Plan, facts: Facts, container: str, port: int, offload: Offload
    ) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.key = plan.key
        self.name = plan.name
        self.image = plan.image
        self.host = facts.name
        self.memory_limit_bytes = plan.memory_bytes
        self.confined = facts.confines
        self._daemon = daemon
        self._container = container
        self._offload = offload

    async def crashed(self, patience_s: float) -> EngineError | None:
        """Why the container is no longer running, None if it is; one that is just ending is waited for."""

        def look() -> EngineError | None:
            state = self._daemon.wait(self._container, patience_s)
            return None if state.running else ended(state, self.image, starting=False)

        return await self._offload(look)

    async def stop(self) -> None:
        """End and remove the container; one that cannot be removed now is an orphan later."""

        def remove() -> None:
            _removed(self._daemon, self.name)
            self._daemon.close()

        await _to_the_end(self._offload, remove)


class Containers:
    """Starts servers."""

    def __init__(
        self,
        options: ContainerOptions,
        environ: Mapping[str, str],
        platform: Platform,
        *,
        offload: Offload = in_thread,
    ) -> None:
        self._options = options
        self._environ = environ
        self._platform = platform
        self._offload = offload

    async def start(self, model: Path, tell: Tell) -> ContainerServer:
        """A server of `model` that is ready; `tell` hears in a few words what is being waited for.

        Orphans are removed first. Nothing is left behind if it fails or is cancelled. Raises
        `EngineUnavailable` (no Docker, no image) and `EngineLoadFailed` (the server ends, or is not ready in
        time).
        """
        daemon = await self._offload(lambda: open_daemon(self._options.socket, self._environ, self._platform))
        try:
            return await self._start_at(daemon, model, tell)
        except BaseException:
            await _to_the_end(self._offload, daemon.close)
            raise

    async def _start_at(self, daemon: Daemon, model: Path, tell: Tell) -> ContainerServer:
        tell("asking Docker")
        facts = await self._offload(daemon.facts)
        for left in await self._offload(lambda: tidy(daemon)):
            _log.info("removed container %s, whose owner is gone", left)
        await self._have_image(daemon, tell)
        plan = await self._offload(lambda: self._plan(model))
        tell("starting a container")
        try:
            container = await _to_the_end(self._offload, lambda: daemon.start(plan, facts))
            port = await self._offload(lambda: daemon.port(container))
            if port is None:
                raise ended(await self._offload(lambda: daemon.state(container)), plan.image, starting=True)
            server = ContainerServer(daemon, plan, facts, container, port, self._offload)
            tell("waiting for the server in the container to load the model")
            await self._until_ready(daemon, container, server)
        except BaseException:
            await _to_the_end(self._offload, lambda: _removed(daemon, plan.name))
            raise
        _log.info("container %s of %s answers at %s", plan.name, plan.image, server.url)
        return server

    def _plan(self, model: Path) -> Plan:
        options = self._options
        try:
            memory = options.memory_limit_mb << 20 or memory_for(model)
        except OSError as error:
            raise EngineLoadFailed(f"The model {model} cannot be read: {error.strerror}.") from error
        return Plan(
            image=options.image,
            model=model.resolve(),
            context_tokens=options.context_tokens,
            threads=options.threads,
            memory_bytes=memory,
            gpus=options.gpus,
            labels=labels(Owner.this(), model.stem, read_record(model)),
        )

    async def _have_image(self, daemon: Daemon, tell: Tell) -> None:
        image = self._options.image
        if await self._offload(lambda: daemon.has_image(image)):
            return
        if not self._options.pull:
            raise EngineUnavailable(
                f"The image {image} is not here. Fetch it with `docker pull {image}` (or `podman pull "
                f"{image}`), or set nexo.docker.pull to true."
            )
        tell(f"fetching the image {image}")
        loop, stop = asyncio.get_running_loop(), threading.Event()

        def progress(words: str) -> None:
            with contextlib.suppress(RuntimeError):  # The loop has ended.
                loop.call_soon_threadsafe(tell, words)

        try:
            await self._offload(lambda: daemon.pull(image, progress, stop))
        finally:
            stop.set()

    async def _until_ready(self, daemon: Daemon, container: str, server: ContainerServer) -> None:
        limit = self._options.ready_timeout_s
        try:
            async with asyncio.timeout(limit), _client(server) as client:
                pause = _FIRST_LOOK_S
                while not await _ready(client):
                    state = await self._offload(lambda: daemon.state(container))
                    if not state.running:
                        raise ended(state, server.image, starting=True)
                    await asyncio.sleep(pause)
                    pause = min(pause * _SLOWER, _MOST_BETWEEN_LOOKS_S)
        except TimeoutError:
            raise EngineLoadFailed(
                f"The server in the container of {server.image} was not ready after {limit:.0f} s; set "
                "nexo.model to a smaller model, or nexo.docker.image to an image of a llama.cpp server."
            ) from None


def open_daemon(socket: str, environ: Mapping[str, str], platform: Platform | None = None) -> Daemon:
    """Docker or Podman, wherever it listens; not asked anything yet. Raises `EngineUnavailable`.

    `socket` is the setting; empty looks in the usual places of `platform` (that of this Python unless named).
    """
    search = find(socket, environ, platform or this_platform())
    if search.place is None:
        raise EngineUnavailable(f"No container can be started: {search.why_not}")
    return Daemon(search.place.url)


def tidy(daemon: Daemon) -> list[str]:
    """Remove what dead owners left behind; the answer are the names of what is gone (blocks).

    What cannot be removed, perhaps because another server is removing it, is left for the next time.
    """
    return [orphan.name for orphan in daemon.orphans(Owner.this()) if _removed(daemon, orphan.name)]


def _removed(daemon: Daemon, name: str) -> bool:
    try:
        daemon.remove(name)
    except EngineError as error:
        _log.warning("container %s stays behind: %s", name, error)
        return False
    return True


def _client(server: ContainerServer) -> httpx.AsyncClient:
    import httpx

    # No proxy: it is this machine. No certificates, which would be read from disk: it is not encrypted.
    return httpx.AsyncClient(
        base_url=server.url,
        headers={"Authorization": f"Bearer {server.key}"},
        timeout=_HEALTH_TIMEOUT_S,
        trust_env=False,
        verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
    )


async def _ready(client: httpx.AsyncClient) -> bool:
    """llama.cpp's own server has `/health`; others list their models when they have them."""
    import httpx

    try:
        status = (await client.get("/health")).status_code
        if status == _UNKNOWN_PATH:
            status = (await client.get("/v1/models")).status_code
    except httpx.TransportError:
        # The port is there before the server is.
        return False
    return status == _OK


async def _to_the_end(offload: Offload, work: Callable[[], T]) -> T:
    """Run `work`, and see its end also when cancelled: what it made has to be known to be taken away."""
    task = asyncio.ensure_future(offload(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        with contextlib.suppress(EngineError):
            await task
        raise

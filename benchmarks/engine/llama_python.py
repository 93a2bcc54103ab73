"""`llama_cpp.Llama`, the class that llama-cpp-python offers, in a process of its own.

This file is both ends: run as a program it is that process, which takes requests as lines of JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import IO, Any

from nexo_lsp.generation import ChatPrompt, InfillPrompt, Request

ROOT = Path(__file__).resolve().parents[2]
_LIMIT = 1 << 20


class LlamaPython:
    """Implements `Competitor`; one request at a time is all that `Llama` can, so others wait."""

    def __init__(self, name: str, model: Path, threads: int, context_tokens: int, *, lookup: bool) -> None:
        self.name = name
        words = (str(model), str(threads), str(context_tokens), str(int(lookup)))
        self._command = [sys.executable, "-m", "benchmarks.engine.llama_python", *words]
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()
        self._log: IO[bytes] | None = None

    async def start(self) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 -- closed with the process
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=self._log,
            limit=_LIMIT,
            cwd=ROOT,
        )
        await self._read()

    async def stream(self, request: Request) -> AsyncGenerator[int, None]:
        async with self._turn:
            line = json.dumps(_asked(request)).encode() + b"\n"
            self._child.stdin.write(line)  # type: ignore[union-attr]
            while True:
                event = await self._read()
                if "error" in event:
                    raise RuntimeError(f"{self.name}: {event['error']}")
                yield int(event["tokens"])
                if event["done"]:
                    return

    async def ready(self) -> None:
        raise NotImplementedError("Llama cannot be stopped inside a prompt")

    @property
    def pid(self) -> int:
        return self._child.pid

    async def close(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        if self._log is not None:
            self._log.close()
            self._log = None

    @property
    def _child(self) -> asyncio.subprocess.Process:
        if self._process is None:
            raise RuntimeError("not started")
        return self._process

    async def _read(self) -> dict[str, Any]:
        line = await self._child.stdout.readline()  # type: ignore[union-attr]
        if not line:
            raise RuntimeError(f"the process has ended: {self._last_words()}")
        return json.loads(line)

    def _last_words(self) -> str:
        if self._log is None:
            return ""
        self._log.seek(0)
        lines = self._log.read().decode("utf-8", "replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")[:200]


def _asked(request: Request) -> dict[str, Any]:
    asked: dict[str, Any] = {
        "max_tokens": request.max_tokens, "temperature": request.temperature, "stop": list(request.stop),
        "bias": [list(item) for item in request.logit_bias], "schema": request.json_schema,
    }  # fmt: skip
    if isinstance(request.prompt, InfillPrompt):
        return asked | {"prompt": request.prompt.prefix, "suffix": request.prompt.suffix}
    return asked | {"prompt": _chatml(request.prompt)}


def _chatml(prompt: ChatPrompt) -> str:
    """The conversation as text: `create_chat_completion` cannot go on with a begun answer."""
    said = [f"<|im_start|>{item.role.value}\n{item.content}<|im_end|>\n" for item in prompt.messages]
    return f"{''.join(said)}<|im_start|>assistant\n{prompt.answer_prefix}"


def _serve(model: str, threads: str, context: str, lookup: str) -> None:
    """Answer requests from stdin until it ends. Native libraries print, so stdout is kept from them."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    from llama_cpp import Llama
    from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

    draft = LlamaPromptLookupDecoding() if lookup == "1" else None
    count = int(threads)
    llama = Llama(
        model, n_ctx=int(context), n_threads=count, n_threads_batch=count, draft_model=draft, verbose=False
    )

    def say(**event: object) -> None:
        answers.write(json.dumps(event) + "\n")
        answers.flush()

    say(tokens=0, done=True)
    for line in sys.stdin:
        text = ""
        try:
            for number, chunk in enumerate(_chunks(llama, json.loads(line)), 1):
                text += chunk["choices"][0]["text"]
                say(tokens=number, done=False)
            say(tokens=len(llama.tokenize(text.encode(), add_bos=False)), done=True)
        except (ValueError, RuntimeError) as error:
            say(error=str(error))


def _chunks(llama: Any, asked: dict[str, Any]) -> Any:
    from llama_cpp import LlamaGrammar

    schema = asked["schema"]
    tokens = {text: llama.tokenize(text.encode(), add_bos=False) for text, _ in asked["bias"]}
    return llama.create_completion(
        prompt=asked["prompt"],
        suffix=asked.get("suffix"),
        max_tokens=asked["max_tokens"],
        temperature=asked["temperature"],
        top_k=1,
        repeat_penalty=1.0,
        stop=[*asked["stop"], "<|im_end|>"],
        logit_bias={tokens[text][0]: value for text, value in asked["bias"] if len(tokens[text]) == 1},
        grammar=None if schema is None else LlamaGrammar.from_json_schema(schema, verbose=False),
        stream=True,
    )


if __name__ == "__main__":
    _serve(*sys.argv[1:])

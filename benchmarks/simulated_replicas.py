"""OpenAI-compatible servers without a model, which take as long as one with a model was measured to take.

Each has a socket of its own and answers one request at a time; others wait in it. A prompt costs what its
tokens cost, but for those that it has in common with the one before it, as with llama.cpp's servers. An
answer's tokens come one by one. Times are reckoned from when the one before was to be done, not from when
this process got round to it, so that a busy machine makes nobody's model slower. Prints the ports; reads a
line; prints what was done.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import zlib
from collections.abc import AsyncGenerator
from typing import Any

CHARACTERS_PER_TOKEN = 3.3
# One function of so many has a finding.
FOUND_ONE_IN = 5


class Replica:
    """One server."""

    def __init__(self, prompt_speed: float, decode_speed: float) -> None:
        self._prompt_speed = prompt_speed
        self._decode_speed = decode_speed
        self._turn = asyncio.Lock()
        self._free_at = 0.0
        self._before = ""
        self.busy_s = 0.0
        self.requests = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                lines = head.decode("latin-1").lower().split("\r\n")
                length = next((int(line[15:]) for line in lines if line.startswith("content-length:")), 0)
                body = await reader.readexactly(length)
                if "/chat/completions" in lines[0]:
                    await self._stream(writer, json.loads(body))
                elif "/models" in lines[0]:
                    self._reply(
                        writer, 200, {"object": "list", "data": [{"id": "simulated", "object": "model"}]}
                    )
                else:
                    self._reply(writer, 404, {"error": {"message": "not here"}})
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def _reply(self, writer: asyncio.StreamWriter, status: int, value: Any) -> None:
        body = json.dumps(value).encode()
        head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)

    async def _stream(self, writer: asyncio.StreamWriter, asked: dict[str, Any]) -> None:
        async with self._turn:
            writer.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
            )
            async for piece in self._pieces(asked):
                self._event(
                    writer, {"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]}
                )
                await writer.drain()
            self._event(writer, {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
            data = b"data: [DONE]\n\n"
            writer.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(data), data))

    def _event(self, writer: asyncio.StreamWriter, value: Any) -> None:
        data = f"data: {json.dumps(value)}\n\n".encode()
        writer.write(b"%x\r\n%s\r\n" % (len(data), data))

    async def _pieces(self, asked: dict[str, Any]) -> AsyncGenerator[str]:
        loop = asyncio.get_running_loop()
        prompt = "\n".join(message["content"] for message in asked["messages"])
        known = _in_common(prompt, self._before)
        self._before = prompt
        tokens = _tokens(_answer(prompt, asked))
        began = max(loop.time(), self._free_at)
        first = began + (len(prompt) - known) / CHARACTERS_PER_TOKEN / self._prompt_speed
        self._free_at = first + len(tokens) / self._decode_speed
        self.busy_s += self._free_at - began
        self.requests += 1
        for number, token in enumerate(tokens, 1):
            await asyncio.sleep(first + number / self._decode_speed - loop.time())
            yield token


def _in_common(one: str, other: str) -> int:
    """How many characters two texts begin with alike."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def _answer(prompt: str, asked: dict[str, Any]) -> str:
    """Nothing found, or one finding on a line that the schema allows; the same for the same prompt."""
    if zlib.crc32(prompt.encode()) % FOUND_ONE_IN:
        return '{"findings": []}'
    schema = json.dumps(asked.get("response_format", {}))
    quotes: list[str] = _enum(json.loads(schema), "quote")
    categories: list[str] = _enum(json.loads(schema), "category")
    finding = {
        "quote": quotes[len(quotes) // 2] if quotes else "",
        "category": categories[0] if categories else "crash",
        "severity": "warning",
        "message": "The value may be missing here, and then this line fails with an exception.",
        "suggestion": "Look whether it is there first.",
    }
    return json.dumps({"findings": [finding]})


def _enum(value: Any, name: str) -> list[str]:
    """The words that a schema allows for the property `name`, wherever that is."""
    if isinstance(value, dict):
        if name in value and isinstance(value[name], dict) and "enum" in value[name]:
            return value[name]["enum"]
        value = list(value.values())
    if isinstance(value, list):
        return next((found for item in value if (found := _enum(item, name))), [])
    return []


def _tokens(text: str) -> list[str]:
    return [text[start : start + 3] for start in range(0, len(text), 3)]


async def _run(count: int, prompt_speed: float, decode_speed: float) -> None:
    replicas = [Replica(prompt_speed, decode_speed) for _ in range(count)]
    servers = [await asyncio.start_server(one.serve, "127.0.0.1", 0, limit=1 << 22) for one in replicas]
    print(json.dumps([server.sockets[0].getsockname()[1] for server in servers]), flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    print(
        json.dumps(
            {"busy_s": [one.busy_s for one in replicas], "requests": sum(one.requests for one in replicas)}
        )
    )
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replicas", type=int, required=True)
    parser.add_argument("--prompt-speed", type=float, required=True, help="tokens/s")
    parser.add_argument("--decode-speed", type=float, required=True, help="tokens/s")
    given = parser.parse_args()
    asyncio.run(_run(given.replicas, given.prompt_speed, given.decode_speed))

"""Another server of the same user, for tests: loads the tiny model by the shared engine and says what it got.

`python -m tests.engine.sharer FOLDER LOGS MODEL REQUESTS`: writes the engine's process id, begins REQUESTS
endless answers, writes `busy` when the first one is under way, and lives until its stdin is closed.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from nexo_lsp.engines.llama.engine import LlamaEngine, LlamaOptions
from nexo_lsp.engines.llama.shared import SharedSpawn, Sharing

from .requests import background, collect


async def main(folder: str, logs: str, model: str, requests: str) -> None:
    async def path() -> Path:
        return Path(model)

    spawn = SharedSpawn(Sharing(Path(folder), Path(logs), grace_s=0.2))
    engine = LlamaEngine(path, LlamaOptions(context_tokens=4096, threads=1), spawn=spawn)
    await engine.count_tokens("x")
    print(engine.status().extra["pid"], engine.status().extra["shared"], flush=True)
    streams = [engine.stream(background(f"{n}", max_tokens=3000)) for n in range(int(requests))]
    if streams:
        await anext(streams[0])
        print("busy", flush=True)
    tasks = [asyncio.create_task(collect(stream)) for stream in streams]
    await asyncio.to_thread(sys.stdin.read)
    for task in tasks:
        task.cancel()
    await engine.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

"""The worker in a thread of this process: what only concerns threads. `test_engine.py` has what holds for both."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from contextlib import aclosing
from pathlib import Path

import pytest

from nexo_lsp.engines.llama.engine import LlamaOptions
from nexo_lsp.engines.llama.messages import BadMessage, CountTokens, FromWorker, Load, Ready, Start, ToWorker
from nexo_lsp.engines.llama.threaded import ThreadLink, spawn_in_thread
from nexo_lsp.engines.llama.worker import Worker
from nexo_lsp.errors import EngineClosed, EngineCrashed
from nexo_lsp.generation import EngineState

from .conftest import MakeEngine
from .requests import chat, collect, saying

ENDLESS = 3000

in_thread = pytest.mark.parametrize("make_engine", ["thread"], indirect=True)


def engine_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "nexo-engine"]


@in_thread
async def test_an_answer_streams_through_the_thread(make_engine: MakeEngine) -> None:
    engine = make_engine()
    pieces = [piece async for piece in engine.stream(saying("a long enough answer"))]
    assert json.loads("".join(piece.text for piece in pieces)) == "a long enough answer"
    assert len(pieces) > 10
    status = engine.status()
    assert (status.state, status.extra["shared"], status.extra["pid"]) == (EngineState.READY, False, None)
    assert "thread" in status.extra["sharedReason"]


@in_thread
async def test_the_loop_goes_on_while_the_thread_computes(make_engine: MakeEngine) -> None:
    engine = make_engine()
    turns = 0
    async with aclosing(engine.stream(chat(max_tokens=ENDLESS))) as stream:
        await anext(stream)
        other = asyncio.ensure_future(collect(engine.stream(saying("x"))))
        while not other.done():
            turns += 1
            await asyncio.sleep(0)
    assert turns > 1


@in_thread
async def test_closing_frees_the_model_and_ends_the_thread(make_engine: MakeEngine) -> None:
    links: list[ThreadLink] = []

    async def spawn(wish: Load):
        hosted = await spawn_in_thread(wish)
        assert isinstance(hosted.link, ThreadLink)
        links.append(hosted.link)
        return hosted

    engine = make_engine(spawn=spawn)
    stream = engine.stream(chat(max_tokens=ENDLESS))
    await anext(stream)
    (link,) = links
    assert link._worker._loaded is not None
    await engine.close()
    with pytest.raises(EngineClosed):
        async for _ in stream:
            pass
    link._thread.join(timeout=60)
    assert not link._thread.is_alive()
    assert link._worker._loaded is None
    assert link._worker._scheduler is None
    assert engine_threads() == []


@in_thread
async def test_an_idle_engine_lets_go_of_the_model_and_loads_it_again(make_engine: MakeEngine) -> None:
    engine = make_engine(options=LlamaOptions(context_tokens=4096, threads=1, idle_unload_s=0.05))
    idle = asyncio.Event()
    engine.on_status = lambda status: idle.set() if status.state is EngineState.IDLE else None
    await engine.count_tokens("load")
    (thread,) = engine_threads()
    await idle.wait()
    await asyncio.to_thread(thread.join, 60)
    assert not thread.is_alive()
    assert await engine.count_tokens("four") == 4


@in_thread
async def test_a_loop_that_breaks_is_a_crash_and_the_next_request_has_another(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    stream = engine.stream(chat(max_tokens=ENDLESS))
    await anext(stream)
    # What breaks the loop is no error of the code here, so the thread's own complaint is not looked at.
    monkeypatch.setattr(threading, "excepthook", lambda _args: None)
    with monkeypatch.context() as broken:
        broken.setattr(Worker, "_care", lambda _self: 1 / 0)
        with pytest.raises(EngineCrashed):
            async for _ in stream:
                pass
    assert (await collect(engine.stream(chat())))[1].tokens == 40


async def test_a_message_is_noticed_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """That is how a step under way is given up for it."""
    seen: list[str] = []
    noticed, handle = Worker.notice, Worker._handle

    def notice(self: Worker, message: ToWorker | BadMessage | None) -> None:
        seen.append("noticed")
        noticed(self, message)

    def read(self: Worker, message: ToWorker | BadMessage) -> None:
        seen.append("read")
        handle(self, message)

    monkeypatch.setattr(Worker, "notice", notice)
    monkeypatch.setattr(Worker, "_handle", read)
    link = ThreadLink()
    link.send(CountTokens(1, "x"))
    await link.close(60)
    assert link._ended.is_set()
    assert seen[0] == "noticed"
    assert sorted(seen) == ["noticed", "noticed", "read"]


async def test_a_thread_that_hangs_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    hang, entered = threading.Event(), threading.Event()

    def run(self: Worker) -> None:
        self._send(Ready(1))
        entered.set()
        hang.wait()

    monkeypatch.setattr(Worker, "run", run)
    link = ThreadLink()
    await asyncio.to_thread(entered.wait)
    said: list[FromWorker] = []

    async def read() -> None:
        async for message in link.receive():
            said.append(message)

    reading = asyncio.ensure_future(read())
    link.kill()
    link.kill()
    await reading
    await link.close(0.01)
    link.send(Start(1, chat()))
    assert said == [Ready(1)]
    assert link._thread.is_alive()
    hang.set()
    await asyncio.to_thread(link._thread.join)


def test_a_loop_that_was_closed_ends_the_thread(tiny_model: Path) -> None:
    """Somebody who forgot to close the engine."""

    async def begin() -> ThreadLink:
        link = ThreadLink()
        link.send(Load(str(tiny_model), 512, threads=1))
        link.send(Start(1, chat(max_tokens=400)))
        async for message in link.receive():
            if not isinstance(message, Ready):
                break
        return link

    link = asyncio.run(begin())
    link._thread.join(timeout=60)
    assert not link._thread.is_alive()


def test_the_process_is_left_as_it_was(tiny_model: Path) -> None:
    """In a process of its own, since the descriptors of this one are pytest's."""
    code = f"""
import asyncio, os, signal
from pathlib import Path
from nexo_lsp.engines.llama.engine import LlamaEngine, LlamaOptions
from nexo_lsp.engines.llama.threaded import spawn_in_thread

def look():
    return os.fstat(0).st_ino, os.fstat(1).st_ino, os.fstat(2).st_ino, signal.getsignal(signal.SIGINT), dict(os.environ)

async def main():
    async def model():
        return Path({str(tiny_model)!r})
    before = look()
    engine = LlamaEngine(model, LlamaOptions(context_tokens=512, threads=1), spawn=spawn_in_thread)
    print(await engine.count_tokens("four"), flush=True)
    assert look() == before, "while it runs"
    await engine.close()
    assert look() == before, "afterwards"

asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "4\n"

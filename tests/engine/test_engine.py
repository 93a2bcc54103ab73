"""The engine with its real worker on the tiny model: in a process, and what a thread can do too in a thread."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from contextlib import aclosing
from pathlib import Path

import psutil
import pytest

from nexo_lsp.engines.llama.engine import LlamaEngine, LlamaOptions
from nexo_lsp.engines.llama.messages import Load, Start, ToWorker
from nexo_lsp.engines.llama.process import Hosted, ProcessLink, worker_command
from nexo_lsp.errors import (
    EngineClosed,
    EngineCrashed,
    EngineError,
    EngineLoadFailed,
    ModelDownloadFailed,
    ModelMissing,
    PromptTooLong,
)
from nexo_lsp.generation import EngineState, FinishReason, Priority

from .conftest import SPAWNS, MakeEngine
from .requests import background, chat, collect, infill, saying

ENDLESS = 3000
"""More tokens than any test waits for."""

posix = pytest.mark.skipif(sys.platform == "win32", reason="the signal does not exist there")

everywhere = pytest.mark.parametrize("make_engine", list(SPAWNS), indirect=True)


def pid_of(engine: LlamaEngine) -> int:
    return int(engine.status().extra["pid"])


async def test_an_answer_streams_through_the_worker(make_engine: MakeEngine) -> None:
    engine = make_engine()
    assert engine.status().state is EngineState.IDLE
    pieces = [piece async for piece in engine.stream(saying("a long enough answer"))]
    assert json.loads("".join(piece.text for piece in pieces)) == "a long enough answer"
    assert len(pieces) > 10
    assert [piece.finish for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert pieces[-1].finish is FinishReason.STOP
    assert pieces[-1].usage is not None
    status = engine.status()
    assert (status.state, status.model, status.queued) == (EngineState.READY, "tiny", 0)
    assert status.memory_bytes is not None
    assert status.memory_bytes > 0
    assert status.decode_tokens_per_s is not None
    assert engine.capabilities().context_tokens == 4096


@everywhere
async def test_the_second_prompt_comes_from_the_cache(make_engine: MakeEngine) -> None:
    engine = make_engine()
    first, _ = await collect(engine.stream(chat("again", session="s")))
    second, last = await collect(engine.stream(chat("again", session="s")))
    assert first == second
    assert last.usage is not None
    assert last.usage.cached_tokens == last.usage.prompt_tokens - 1


@everywhere
async def test_requests_that_come_at_once_share_one_start(make_engine: MakeEngine, tiny_model: Path) -> None:
    asked = 0

    async def model() -> Path:
        nonlocal asked
        asked += 1
        return tiny_model

    engine = make_engine(model)
    texts = await asyncio.gather(*(collect(engine.stream(saying(f"answer {n}"))) for n in range(4)))
    assert [json.loads(text) for text, _ in texts] == [f"answer {n}" for n in range(4)]
    assert asked == 1


@everywhere
async def test_an_urgent_request_is_done_before_one_that_began_earlier(make_engine: MakeEngine) -> None:
    engine = make_engine()
    async with aclosing(engine.stream(background("slow", max_tokens=ENDLESS))) as slow:
        await anext(slow)
        _, last = await collect(engine.stream(chat("quick", priority=Priority.INTERACTIVE)))
        assert last.finish is FinishReason.LENGTH
        assert (await anext(slow)).finish is None


@everywhere
@pytest.mark.parametrize("how", ["close", "cancel"])
async def test_leaving_a_stream_frees_the_worker_for_the_next(make_engine: MakeEngine, how: str) -> None:
    engine = make_engine()
    if how == "close":
        stream = engine.stream(chat("x", max_tokens=ENDLESS))
        await anext(stream)
        await stream.aclose()
    else:
        begun = asyncio.Event()

        async def read() -> None:
            async for _ in engine.stream(chat("x", max_tokens=ENDLESS)):
                begun.set()

        task = asyncio.create_task(read())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    _, last = await collect(engine.stream(chat("y", max_tokens=5)))
    assert last.tokens == 5
    assert engine.status().queued == 0


@everywhere
async def test_a_prompt_that_is_too_long_is_told_and_the_next_one_works(make_engine: MakeEngine) -> None:
    engine = make_engine()
    with pytest.raises(PromptTooLong, match="4096"):
        await collect(engine.stream(chat("x" * 5000)))
    with pytest.raises(EngineError, match="schema"):
        await collect(engine.stream(chat(json_schema="nonsense")))
    assert (await collect(engine.stream(chat())))[1].tokens == 40


@everywhere
async def test_a_deadline_holds_while_loading_and_while_decoding(make_engine: MakeEngine) -> None:
    never = asyncio.Event()

    async def model() -> Path:
        await never.wait()
        raise AssertionError

    text, last = await collect(make_engine(model).stream(chat(deadline_s=0.05)))
    assert (text, last.finish) == ("", FinishReason.DEADLINE)
    engine = make_engine()
    await engine.count_tokens("load")
    _, last = await collect(engine.stream(chat(max_tokens=ENDLESS, deadline_s=0.2)))
    assert last.finish is FinishReason.DEADLINE


@everywhere
async def test_tokens_are_counted(make_engine: MakeEngine) -> None:
    engine = make_engine()
    assert await engine.count_tokens("héllo <|im_end|>") == len("héllo <|im_end|>".encode())


async def test_a_relative_path_is_found(
    make_engine: MakeEngine, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_model.parent)

    async def model() -> Path:
        return Path(tiny_model.name)

    assert await make_engine(model).count_tokens("four") == 4


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux takes names of any bytes")
async def test_a_path_that_is_not_utf8_is_loaded(
    make_engine: MakeEngine, tiny_model: Path, tmp_path: Path
) -> None:
    odd = tmp_path / os.fsdecode(b"odd\xff.gguf")
    odd.symlink_to(tiny_model)

    async def model() -> Path:
        return odd

    assert await make_engine(model).count_tokens("four") == 4


async def test_text_with_lone_surrogates_does_no_harm(make_engine: MakeEngine) -> None:
    engine = make_engine()
    assert (await collect(engine.stream(infill("a = '\ud800'", "\udc00"))))[1].tokens == 40


@posix
async def test_a_killed_worker_ends_what_was_shown_and_the_rest_goes_on_with_another(
    make_engine: MakeEngine,
) -> None:
    engine = make_engine()
    stream = engine.stream(chat(max_tokens=ENDLESS))
    await anext(stream)
    waiting = asyncio.create_task(collect(engine.stream(background("waits", max_tokens=ENDLESS))))
    counting = asyncio.create_task(engine.count_tokens("four"))
    first = pid_of(engine)
    os.kill(first, signal.SIGKILL)
    with pytest.raises(EngineCrashed, match="perhaps because memory ran out"):
        async for _ in stream:
            pass
    assert (await waiting)[1].tokens == ENDLESS
    assert await counting == 4
    assert pid_of(engine) != first
    assert engine.status().detail == ""


@posix
async def test_a_request_that_was_there_for_two_crashes_is_not_begun_a_third_time(
    make_engine: MakeEngine,
) -> None:
    """The worker is killed as soon as it has work, so nothing is ever shown."""
    spawned: list[int] = []

    class Fragile(ProcessLink):
        def send(self, message: ToWorker) -> None:
            if isinstance(message, Start):
                self.kill()
            else:
                super().send(message)

    async def spawn(_wish: Load) -> Hosted:
        process = await asyncio.create_subprocess_exec(
            *worker_command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        spawned.append(process.pid)
        return Hosted(Fragile(process), shared=False, reason="a test")

    engine = make_engine(spawn=spawn, clock=lambda: 0.0)
    with pytest.raises(EngineCrashed, match="ended unexpectedly"):
        await collect(engine.stream(chat()))
    assert len(spawned) == 2
    with pytest.raises(EngineCrashed, match="Next try"):
        await collect(engine.stream(chat()))
    assert len(spawned) == 2, "the back-off holds for whoever asks next"
    assert engine.status().queued == 0


@posix
async def test_a_worker_that_hangs_is_ended(make_engine: MakeEngine) -> None:
    engine = make_engine(options=LlamaOptions(context_tokens=4096, threads=1, hang_s=2.0))
    stream = engine.stream(chat(max_tokens=ENDLESS))
    await anext(stream)
    first = psutil.Process(pid_of(engine))
    first.suspend()
    with pytest.raises(EngineCrashed, match="hung"):
        async for _ in stream:
            pass
    assert (await collect(engine.stream(chat())))[1].tokens == 40
    assert not first.is_running() or first.status() == psutil.STATUS_ZOMBIE


async def test_failing_again_and_again_backs_off(make_engine: MakeEngine, tmp_path: Path) -> None:
    now = 0.0
    asked = 0

    async def model() -> Path:
        nonlocal asked
        asked += 1
        raise ModelDownloadFailed("There is no model.")

    engine = make_engine(model, clock=lambda: now)
    for _ in range(3):
        with pytest.raises(ModelDownloadFailed, match="There is no model"):
            await collect(engine.stream(chat()))
    assert asked == 2, "the first retry is made at once, the next one has to wait"
    now += 1.1
    with pytest.raises(ModelDownloadFailed):
        await collect(engine.stream(chat()))
    assert asked == 3


async def test_a_model_that_was_missing_works_as_soon_as_it_is_there(
    make_engine: MakeEngine, tiny_model: Path
) -> None:
    there = False

    async def model() -> Path:
        if not there:
            raise ModelMissing("There is no model.")
        return tiny_model

    engine = make_engine(model, clock=lambda: 0.0)
    for _ in range(4):
        with pytest.raises(ModelMissing):
            await engine.count_tokens("x")
    there = True
    assert await engine.count_tokens("four") == 4


async def test_an_idle_engine_lets_go_of_the_model_and_loads_it_again(make_engine: MakeEngine) -> None:
    engine = make_engine(options=LlamaOptions(context_tokens=4096, threads=1, idle_unload_s=0.05))
    idle = asyncio.Event()
    await engine.count_tokens("load")
    worker = psutil.Process(pid_of(engine))
    engine.on_status = lambda status: idle.set() if status.state is EngineState.IDLE else None
    await idle.wait()
    await asyncio.to_thread(worker.wait, 30)
    assert (await collect(engine.stream(chat())))[1].tokens == 40


async def test_closing_ends_waiting_requests_and_the_process(make_engine: MakeEngine) -> None:
    engine = make_engine()
    stream = engine.stream(chat(max_tokens=ENDLESS))
    await anext(stream)
    worker = psutil.Process(pid_of(engine))
    await engine.close()
    await engine.close()
    with pytest.raises(EngineClosed):
        async for _ in stream:
            pass
    with pytest.raises(EngineClosed):
        await collect(engine.stream(chat()))
    assert not worker.is_running()
    assert engine.status().state is EngineState.CLOSED


@everywhere
async def test_closing_while_loading(make_engine: MakeEngine) -> None:
    asked = asyncio.Event()

    async def model() -> Path:
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    engine = make_engine(model)
    waiting = asyncio.create_task(collect(engine.stream(chat())))
    await asked.wait()
    assert engine.status().state is EngineState.LOADING
    await engine.close()
    with pytest.raises(EngineClosed):
        await waiting


@everywhere
async def test_every_change_of_state_is_told(make_engine: MakeEngine) -> None:
    engine = make_engine()
    seen: list[EngineState] = []
    engine.on_status = lambda status: seen.append(status.state)
    await collect(engine.stream(chat()))
    await engine.close()
    changes = [state for state, before in zip(seen, [None, *seen], strict=False) if state is not before]
    assert [state.value for state in changes] == ["idle", "loading", "busy", "ready", "closed"]


async def test_without_the_library_the_engine_says_how_to_get_it(make_engine: MakeEngine) -> None:
    engine = make_engine(installed=lambda: False)
    with pytest.raises(EngineError, match="pip install"):
        await collect(engine.stream(chat()))


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "cannot be read"), (b"not a model", "not a GGUF"), (b"GGUF\x03\x00\x00\x00", "cut off")],
)
async def test_a_file_that_cannot_be_loaded_is_one_clear_sentence(
    make_engine: MakeEngine, tmp_path: Path, content: bytes | None, words: str
) -> None:
    path = tmp_path / "broken.gguf"
    if content is not None:
        path.write_bytes(content)

    async def model() -> Path:
        return path

    engine = make_engine(model)
    with pytest.raises(EngineLoadFailed, match=words) as caught:
        await collect(engine.stream(chat()))
    assert str(path) in str(caught.value)
    assert engine.status().state is EngineState.FAILED
    assert engine.status().detail == str(caught.value)


@everywhere
async def test_a_file_that_was_cut_off_is_not_loaded(make_engine: MakeEngine, half_a_model: Path) -> None:
    async def model() -> Path:
        return half_a_model

    with pytest.raises(EngineLoadFailed, match="cut off"):
        await collect(make_engine(model).stream(chat()))

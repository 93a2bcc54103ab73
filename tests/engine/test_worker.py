"""The worker's loop and its process, without an engine around them."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from nexo_lsp.engines.llama.messages import (
    BadMessage,
    Cancel,
    Count,
    CountTokens,
    Delta,
    Done,
    Failed,
    FromWorker,
    Load,
    Loaded,
    LoadFailed,
    Ready,
    Rejected,
    Shutdown,
    Start,
    ToWorker,
    Unload,
    decode_from_worker,
    decode_to_worker,
    encode,
)
from nexo_lsp.engines.llama.process import worker_command
from nexo_lsp.engines.llama.worker import Worker
from nexo_lsp.generation import FinishReason

from .requests import chat, infill, saying


class Hosted:
    """A worker in a thread: what a platform without processes would do."""

    def __init__(self) -> None:
        self._in: queue.SimpleQueue[ToWorker | BadMessage | None] = queue.SimpleQueue()
        self._out: queue.SimpleQueue[FromWorker] = queue.SimpleQueue()
        self.thread = threading.Thread(target=Worker(self._receive, self._out.put).run)
        self.thread.start()

    def _receive(self, wait: bool) -> ToWorker | BadMessage | None:
        try:
            message = self._in.get(block=wait)
        except queue.Empty:
            return None
        if message is None:
            raise EOFError
        return message

    def tell(self, *messages: ToWorker | BadMessage | None) -> None:
        for message in messages:
            self._in.put(message)

    def until(self, kind: type) -> FromWorker:
        while not isinstance(message := self._out.get(timeout=60), kind):
            pass
        return message


@pytest.fixture
def hosted():
    worker = Hosted()
    yield worker
    worker.tell(None)
    worker.thread.join(timeout=60)
    assert not worker.thread.is_alive()


@pytest.mark.parametrize(
    "message",
    [
        Load("/m.gguf", 4096, gpu_layers=3),
        Start(1, chat("é\ud800", stop=("a", "b"), logit_bias=(("x", 1.5),), deadline_s=2.0)),
        Start(2, infill("a", "b")),
        Cancel(1),
        CountTokens(3, "x"),
        Unload(),
        Shutdown(),
    ],
)
def test_messages_survive_the_wire(message: ToWorker) -> None:
    line = encode(message)
    assert line.endswith(b"\n")
    assert b"\n" not in line[:-1]
    assert decode_to_worker(line) == message


@pytest.mark.parametrize(
    "line", [b"", b"\xff\xfe", b"[]", b"{}", b'{"kind":"load"}', b'{"kind":"dance"}', b"[" * 100_000, b"null"]
)
def test_what_is_no_message_is_said_to_be_none(line: bytes) -> None:
    with pytest.raises(BadMessage):
        decode_to_worker(line)
    with pytest.raises(BadMessage):
        decode_from_worker(line)


def test_a_thread_can_host_the_worker(hosted: Hosted, tiny_model: Path) -> None:
    hosted.tell(Load(str(tiny_model), 2048, threads=1), Start(1, saying("hi")))
    assert isinstance(hosted.until(Ready), Ready)
    loaded = hosted.until(Loaded)
    assert isinstance(loaded, Loaded)
    assert loaded.context_tokens == 2048
    assert loaded.device == "CPU, 1 thread"
    done = hosted.until(Done)
    assert isinstance(done, Done)
    assert done.finish is FinishReason.STOP


def test_a_cancel_between_two_steps_ends_the_job(hosted: Hosted, tiny_model: Path) -> None:
    hosted.tell(Load(str(tiny_model), 4096, threads=1), Start(1, chat(max_tokens=3000)))
    hosted.until(Delta)
    hosted.tell(Cancel(1), Start(2, chat(max_tokens=3)))
    done = hosted.until(Done)
    assert isinstance(done, Done)
    assert (done.id, done.tokens) == (2, 3)


def test_nonsense_is_answered_and_survived(hosted: Hosted, tiny_model: Path) -> None:
    hosted.tell(BadMessage("what?"), Start(1, chat()), CountTokens(2, "x"), Cancel(77))
    assert hosted.until(Rejected) == Rejected("what?")
    for _ in range(2):
        failed = hosted.until(Failed)
        assert isinstance(failed, Failed)
        assert "No model" in failed.message
    hosted.tell(Load(str(tiny_model), 2048, threads=1), CountTokens(3, "four"))
    assert hosted.until(Count) == Count(3, 4)


def test_a_model_can_be_unloaded_and_loaded_again(hosted: Hosted, tiny_model: Path) -> None:
    wish = Load(str(tiny_model), 2048, threads=1)
    hosted.tell(wish, Unload(), Start(1, chat()), wish, Start(2, chat(max_tokens=2)))
    failed = hosted.until(Failed)
    assert isinstance(failed, Failed)
    assert failed.id == 1
    done = hosted.until(Done)
    assert isinstance(done, Done)
    assert done.id == 2


def spawn(command: list[str] | None = None, folder: Path | None = None) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command or worker_command(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=folder,
    )


def talk(process: subprocess.Popen[bytes], *messages: bytes) -> tuple[list[FromWorker], str]:
    """Send everything, close stdin, and read all answers."""
    out, errors = process.communicate(b"".join(messages), timeout=60)
    return [decode_from_worker(line) for line in out.splitlines()], errors.decode()


def test_the_process_ends_when_its_stdin_does() -> None:
    process = spawn()
    said, _ = talk(process)
    assert [type(message) for message in said] == [Ready]
    assert process.returncode == 0


def test_the_process_ends_in_the_middle_of_an_answer_when_its_parent_is_gone(tiny_model: Path) -> None:
    process = spawn()
    said, _ = talk(
        process, encode(Load(str(tiny_model), 4096, threads=1)), encode(Start(1, chat(max_tokens=4000)))
    )
    assert process.returncode == 0
    assert not any(isinstance(message, Done) for message in said)


def test_a_worker_that_nobody_hears_any_more_still_lets_go_of_everything(tiny_model: Path) -> None:
    """Its parent is gone, and so is what it writes to: that must not keep it from ending in order."""
    inbox: list[ToWorker] = [Load(str(tiny_model), 512, threads=1), Start(1, chat(max_tokens=100))]
    said: list[FromWorker] = []

    def receive(_wait: bool) -> ToWorker | None:
        return inbox.pop(0) if inbox else None

    def send(message: FromWorker) -> None:
        if any(isinstance(earlier, Delta) for earlier in said):
            raise EOFError
        said.append(message)

    worker = Worker(receive, send)
    worker.run()
    assert worker._loaded is None
    assert worker._scheduler is None


def test_the_process_survives_broken_lines() -> None:
    process = spawn()
    said, _ = talk(process, b"what?\n", json.dumps({"kind": "dance"}).encode() + b"\n", encode(Shutdown()))
    assert [type(message) for message in said] == [Ready, Rejected, Rejected]
    assert process.returncode == 0


def test_what_native_code_prints_does_not_reach_the_protocol(tmp_path: Path) -> None:
    """The library is loaded after stdout was taken away; here its place is taken by one that prints."""
    noisy = tmp_path / "noise.py"
    noisy.write_text(
        "import os, sys\n"
        "from nexo_lsp.engines.llama import worker\n"
        "original = worker.Worker.run\n"
        "def run(self):\n"
        "    os.write(1, b'native noise\\n')\n"
        "    print('python noise', flush=True)\n"
        "    original(self)\n"
        "worker.Worker.run = run\n"
        "worker.main()\n"
    )
    boot = f"import sys, runpy; sys.path.append(sys.argv.pop(1)); runpy.run_path({str(noisy)!r})"
    process = spawn([sys.executable, "-P", "-c", boot, worker_command()[-1]])
    said, errors = talk(process, encode(Shutdown()))
    assert [type(message) for message in said] == [Ready]
    assert "native noise" in errors
    assert "python noise" in errors


def test_the_worker_does_not_import_from_the_folder_it_is_started_in(tmp_path: Path) -> None:
    """A workspace may hold anything, also a file that is called like a module."""
    (tmp_path / "jinja2.py").write_text("print('owned')\nraise SystemExit(3)\n")
    process = spawn(folder=tmp_path)
    said, errors = talk(process, encode(Load(str(tmp_path / "none.gguf"), 2048)), encode(Shutdown()))
    assert [type(message) for message in said] == [Ready, LoadFailed]
    assert "owned" not in errors

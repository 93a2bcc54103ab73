"""Work with llama.cpp that is done once, in a process of its own: how it is asked for, told about, ended.

The wish goes to the child's stdin as a line of JSON, and what it says comes as lines of JSON: any number
about how far it is, then one with the result or with what went wrong. The child's stdin stays open for as
long as somebody waits for it. When it closes the child ends itself, so nothing outlives a parent that was
killed.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from enum import StrEnum
from typing import Any

from nexo_lsp.engines.llama.hosting import claim_stdout, ignore_interrupts
from nexo_lsp.engines.llama.process import ROOT, python_command
from nexo_lsp.engines.llama.waiting import prepare_openmp
from nexo_lsp.errors import EngineCrashed, ModelWorkCancelled

_TICK_S = 0.1
_LOG_LINES = 20

Said = Mapping[str, Any]
Say = Callable[[Said], None]


class Trouble(StrEnum):
    """What kind of failure a child tells."""

    LOAD = "load"
    """The model could not be loaded."""
    REFUSED = "refused"
    """llama.cpp refused to do it."""
    DAMAGED = "damaged"
    """The model file is damaged, or none."""
    BROKEN = "broken"
    """The model computes no numbers."""


class ErrandFailed(Exception):
    """What a child could not do; the text is for people."""

    def __init__(self, trouble: Trouble, message: str) -> None:
        super().__init__(message)
        self.trouble = trouble


def _ignore(_said: Said) -> None:
    pass


def run(
    module: str,
    wish: Said,
    name: str,
    *,
    on_said: Say = _ignore,
    on_tick: Callable[[], None] = lambda: None,
    cancel: threading.Event | None = None,
    command: list[str] | None = None,
) -> Said:
    """Have `wish` done by `module` in another process, and give its result; blocks.

    `name` says what is done, for messages ("Quantising"). `on_said` gets what the child says meanwhile;
    `on_tick` is called some ten times a second. Whatever ends this call ends the process. Raises
    `ErrandFailed` with what the child says, `EngineCrashed` if it ends without a word, and
    `ModelWorkCancelled` once `cancel` is set.
    """
    said: queue.SimpleQueue[Said | None] = queue.SimpleQueue()
    words: deque[str] = deque(maxlen=_LOG_LINES)
    process = _start(command or python_command(module), name)
    readers = (
        threading.Thread(target=_read, args=(process, said), daemon=True),
        threading.Thread(target=lambda: words.extend(process.stderr or ()), daemon=True),
    )
    last: Said = {}
    try:
        for reader in readers:
            reader.start()
        _ask(process, wish)
        while True:
            if cancel is not None and cancel.is_set():
                raise ModelWorkCancelled(f"{name} was stopped; nothing of it is left.")
            on_tick()
            try:
                message = said.get(timeout=_TICK_S)
            except queue.Empty:
                continue
            if message is None:
                break
            last = message
            if "result" not in last and "trouble" not in last:
                on_said(last)
        process.wait()
    finally:
        process.kill()
        process.wait()
        for reader in readers:
            if reader.ident is not None:
                reader.join()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                # What could not be sent to a child that has gone is nobody's loss.
                with suppress(OSError):
                    pipe.close()
    if "trouble" in last:
        raise ErrandFailed(Trouble(last["trouble"]), str(last["message"]))
    if "result" not in last:
        raise EngineCrashed(f"{name} ended without a result: {_why(process.returncode, words)}.")
    return last["result"]


def _start(command: list[str], name: str) -> subprocess.Popen[str]:
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            cwd=ROOT,
            env={**os.environ, "PYTHONIOENCODING": "utf-8"},
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
    except OSError as error:
        raise EngineCrashed(f"{name} could not be started ({error.strerror}).") from error


def _ask(process: subprocess.Popen[str], wish: Said) -> None:
    if process.stdin is not None:
        # A child that is gone already is noticed by what it does not say.
        with suppress(OSError):
            process.stdin.write(json.dumps(wish) + "\n")
            process.stdin.flush()


def _read(process: subprocess.Popen[str], said: queue.SimpleQueue[Said | None]) -> None:
    for line in process.stdout or ():
        try:
            message = json.loads(line)
        except ValueError:
            continue
        if isinstance(message, dict):
            said.put(message)  # pyright: ignore[reportUnknownArgumentType]
    said.put(None)


def _why(code: int, words: deque[str]) -> str:
    if code < 0:
        return f"its process was ended by signal {-code} (the system does that when memory runs out)"
    told = [line.strip() for line in words if line.strip()]
    return told[-1].rstrip(".") if told else f"its process ended with exit code {code}"


def serve(work: Callable[[Said, Say], Said], on_abandoned: Callable[[], None] = lambda: None) -> None:
    """The child's side: do `work` of the wish on stdin, and tell its result or `ErrandFailed` on stdout.

    When whoever asked is gone, `on_abandoned` is called from another thread, and the process ends.
    """
    # Ctrl-C reaches the whole group; whoever started this ends it.
    ignore_interrupts()
    channel = claim_stdout()
    prepare_openmp(os.environ)
    wish = json.loads(sys.stdin.buffer.readline())

    def watch() -> None:
        # Not through Python's buffer, whose lock a thread must not hold when the interpreter ends.
        while os.read(0, 1):
            pass
        on_abandoned()
        os._exit(1)

    def say(said: Said) -> None:
        channel.write(json.dumps(said).encode("ascii") + b"\n")
        channel.flush()

    threading.Thread(target=watch, daemon=True).start()
    try:
        result = work(wish, say)
    except ErrandFailed as error:
        say({"trouble": error.trouble, "message": str(error)})
    else:
        say({"result": result})

"""The worker: a loop around llama.cpp that takes messages and sends messages.

`Worker` knows nothing of where its messages come from, so that a thread can host it where there are no
processes. `main` hosts it in a process of its own, with the protocol on the original stdout and everything
that native libraries print on stderr.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from nexo_lsp.engines.llama.budget import SWAP_BYTES
from nexo_lsp.engines.llama.draft_model import Draft, load_draft
from nexo_lsp.engines.llama.hosting import claim_stdout, ignore_interrupts, return_memory
from nexo_lsp.engines.llama.loading import LoadedModel, LoadError, load
from nexo_lsp.engines.llama.messages import (
    BadMessage,
    Cancel,
    Count,
    CountTokens,
    Failed,
    Failure,
    FromWorker,
    Heartbeat,
    Load,
    LoadFailed,
    LoadFailure,
    Ready,
    Rejected,
    Shutdown,
    Start,
    ToWorker,
    Unload,
    decode_to_worker,
    encode,
)
from nexo_lsp.engines.llama.native import Library, NativeError
from nexo_lsp.engines.llama.prefix_cache import PrefixCache
from nexo_lsp.engines.llama.prefix_store import PrefixStore
from nexo_lsp.engines.llama.scheduler import Scheduler
from nexo_lsp.engines.llama.waiting import Crowd, Waiting, find_patience, prepare_openmp, processors

_HEARTBEAT_S = 0.5
_STORE_BYTES = 128 * 2**20
"""What static prefixes of prompts may take on disk."""
_LIVE_SHARE = 0.5
"""The share of the context that finished sequences may hold; the rest is for those that come."""
# With its parent gone, a worker that is stuck in native code ends after this long.
_ORPHAN_GRACE_S = 5.0

Receive = Callable[[bool], ToWorker | BadMessage | None]
"""The next message; waits for it if True is given, else None says that there is none. `EOFError` ends it."""
Send = Callable[[FromWorker], None]


class Worker:
    """Serves messages until it is told to end or its transport ends."""

    def __init__(self, receive: Receive, send: Send, clock: Callable[[], float] = time.monotonic) -> None:
        self._receive = receive
        self._send = send
        self._clock = clock
        self._library: Library | None = None
        self._loaded: LoadedModel | None = None
        self._scheduler: Scheduler | None = None
        self._waiting: Waiting | None = None
        self._draft: Draft | None = None
        self._last_beat = clock()
        self._lock = threading.Lock()
        self._noticed = self._read = 0
        self._cancelled_at: float | None = None

    def notice(self, message: ToWorker | BadMessage | None) -> None:
        """A message is on its way to `receive` (None: the end is). To be called by the thread that brings it.

        If it is more urgent than the step under way, that step is given up. A host that never calls this is
        served at the end of each step.
        """
        with self._lock:
            self._noticed += 1
        scheduler = self._scheduler
        if scheduler is None:
            return
        if isinstance(message, Cancel) and scheduler.urgent(message):
            self._cancelled_at = self._clock()
        if message is None or isinstance(message, Shutdown | Unload) or scheduler.urgent(message):
            scheduler.interrupt()

    def run(self) -> None:
        """The loop: all messages that have come, then one step, and again."""
        self._send(Ready(os.getpid()))
        try:
            while self._messages():
                if self._scheduler is not None:
                    self._scheduler.step()
                self._care()
        except EOFError:
            pass
        finally:
            self._unload()

    def _messages(self) -> bool:
        """Handle every message that is there; waits for one only if there is nothing else to do."""
        while True:
            busy = self._scheduler is not None and self._scheduler.busy
            message = self._receive(not busy)
            if message is None:
                return True
            self._read += 1
            if isinstance(message, Shutdown):
                return False
            self._handle(message)

    def _handle(self, message: ToWorker | BadMessage) -> None:
        match message:
            case Load():
                self._load(message)
            case Start(id=job_id, request=request, client=client):
                if self._scheduler is None:
                    self._send(Failed(job_id, Failure.INTERNAL, "No model is loaded."))
                else:
                    self._scheduler.add(job_id, request, client)
            case Cancel(id=job_id):
                if self._scheduler is not None:
                    self._scheduler.cancel(job_id)
                    if self._cancelled_at is not None:
                        self._scheduler.gauges.cancel_ms.add(1000 * (self._clock() - self._cancelled_at))
                        self._cancelled_at = None
            case CountTokens(id=job_id, text=text):
                if self._loaded is None:
                    self._send(Failed(job_id, Failure.INTERNAL, "No model is loaded."))
                else:
                    self._send(Count(job_id, len(self._loaded.model.tokenize(text, special=False))))
            case BadMessage():
                self._send(Rejected(str(message)))
            case Unload():
                self._unload()
            case Shutdown():
                pass

    def _load(self, wish: Load) -> None:
        self._unload()
        try:
            if self._library is None:
                self._library = Library()
            self._loaded = load(self._library, wish, self._progress)
        except NativeError as error:
            self._send(LoadFailed(LoadFailure.LIBRARY, f"{error}."))
        except LoadError as error:
            self._send(LoadFailed(error.failure, str(error)))
        else:
            info = self._loaded.info
            self._waiting = Waiting(find_patience(), Crowd(), processors())
            if wish.draft_path:
                self._draft = load_draft(self._library, wish, self._loaded, self._has_unread)
                info = replace(info, notes=(*info.notes, self._draft.note))
            self._schedule(self._loaded, wish)
            self._send(info)

    def _schedule(self, loaded: LoadedModel, wish: Load) -> None:
        context = loaded.context
        store = None
        fingerprint = loaded.fingerprint() if wish.prefix_folder else None
        if fingerprint is not None:
            store = PrefixStore(Path(wish.prefix_folder), fingerprint, _STORE_BYTES)
        self._scheduler = Scheduler(
            loaded.model,
            context,
            self._send,
            self._clock,
            cache=PrefixCache(
                context,
                context.sequences,
                live_cells=int(context.tokens * _LIVE_SHARE),
                swap_bytes=SWAP_BYTES,
                store=store,
                clock=self._clock,
                alone=not context.flash_attention,
            ),
            unread=self._has_unread,
            waiting=self._waiting,
            draft=self._draft.model if self._draft is not None else None,
        )
        self._scheduler.prepare()

    def _has_unread(self) -> bool:
        return self._noticed > self._read

    def _care(self) -> None:
        """Between two steps: sign of life, and memory within its bound."""
        self._beat()
        if self._loaded is not None and self._scheduler is not None:
            over = self._loaded.memory.over()
            if over:
                self._scheduler.shrink(over)

    def _unload(self) -> None:
        if self._scheduler is not None:
            self._scheduler.close()
        if self._waiting is not None:
            self._waiting.close()
        for model in (self._draft, self._loaded):
            if model is not None:
                model.close()
        self._scheduler = self._loaded = self._waiting = self._draft = None

    def _progress(self, progress: float) -> bool:
        self._beat(progress)
        return True

    def _beat(self, progress: float | None = None) -> None:
        now = self._clock()
        if now - self._last_beat >= _HEARTBEAT_S:
            self._last_beat = now
            self._send(Heartbeat(progress))


def main() -> None:
    """Host a worker in this process: messages on stdin and on what was stdout."""
    ignore_interrupts()
    channel = claim_stdout()
    return_memory()
    prepare_openmp(os.environ)
    inbox: queue.SimpleQueue[ToWorker | BadMessage | None] = queue.SimpleQueue()
    ended = False

    def receive(wait: bool) -> ToWorker | BadMessage | None:
        nonlocal ended
        if ended:
            raise EOFError
        try:
            message = inbox.get(block=wait)
        except queue.Empty:
            return None
        if message is None:
            ended = True
            raise EOFError
        return message

    def send(message: FromWorker) -> None:
        try:
            channel.write(encode(message))
            channel.flush()
        except OSError as error:
            raise EOFError from error

    worker = Worker(receive, send)
    threading.Thread(target=_read, args=(0, inbox, worker.notice), daemon=True).start()
    worker.run()


def _read(
    descriptor: int,
    inbox: queue.SimpleQueue[ToWorker | BadMessage | None],
    notice: Callable[[ToWorker | BadMessage | None], None],
) -> None:
    # Not through `sys.stdin`: its lock, held by this thread for good, would stop the interpreter from ending.
    rest = b""
    while data := os.read(descriptor, 65536):
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            message: ToWorker | BadMessage
            try:
                message = decode_to_worker(line)
            except BadMessage as error:
                message = error
            notice(message)
            inbox.put(message)
    notice(None)
    inbox.put(None)
    # The parent is gone. The loop ends at its next step; if native code never comes back, this ends it.
    time.sleep(_ORPHAN_GRACE_S)
    sys.stderr.write(json.dumps({"worker": "stuck after its parent ended"}) + "\n")
    os._exit(1)


if __name__ == "__main__":
    main()

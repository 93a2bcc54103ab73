"""Many clients on one `Worker`: the worker sees one transport, each client sees a worker of its own.

Nothing here knows sockets or processes. Clients are served by threads that call `join`, `told` and `left`;
the worker calls `receive` and `send`, which never wait for a client.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from nexo_lsp.engines.llama.messages import (
    Cancel,
    Count,
    CountTokens,
    Delta,
    Done,
    Failed,
    FromWorker,
    Heartbeat,
    Load,
    Loaded,
    LoadFailed,
    LoadFailure,
    Ready,
    Rejected,
    Shutdown,
    Start,
    Stats,
    ToWorker,
    Unload,
)

_log = logging.getLogger(__name__)

OUTBOX_LIMIT = 10_000
"""A client that is so many messages behind does not read any more."""


class Outbox:
    """What waits to be sent to one client: bounded, so that a client that does not read costs nothing."""

    def __init__(self, limit: int = OUTBOX_LIMIT) -> None:
        self._limit = limit
        self._items: deque[FromWorker] = deque()
        self._news = threading.Condition()
        self._closed = False

    def put(self, message: FromWorker) -> bool:
        """Add something; False says that there is no room for it."""
        with self._news:
            if self._closed:
                return True
            if len(self._items) >= self._limit:
                return False
            self._items.append(message)
            self._news.notify()
            return True

    def take(self) -> FromWorker | None:
        """The next message, waiting for it; None when the outbox was closed and is empty."""
        with self._news:
            self._news.wait_for(lambda: self._items or self._closed)
            return self._items.popleft() if self._items else None

    def close(self, *, drop: bool) -> None:
        """Take nothing more; with `drop`, forget also what still waits."""
        with self._news:
            self._closed = True
            if drop:
                self._items.clear()
            self._news.notify_all()


@dataclass(eq=False, slots=True)
class Guest:
    """One client of the hub."""

    number: int
    outbox: Outbox
    sever: Callable[[], None]
    """Ends its connection, also while somebody is sending on it."""


class Hub:
    """Maps the requests of many clients to those of one worker, and back."""

    def __init__(self, limit: int = OUTBOX_LIMIT) -> None:
        self._limit = limit
        self._inbox: queue.SimpleQueue[ToWorker | None] = queue.SimpleQueue()
        self._ended = False
        self._notice: Callable[[ToWorker | None], None] | None = None
        self._unnoticed: list[ToWorker | None] = []
        # Guards all that follows; told when a client comes or goes. Held only for a moment: the worker's loop
        # needs it for every message.
        self._state = threading.Condition()
        self._guests: list[Guest] = []
        self._closed = False
        self._last_number = 0
        self._last_job = 0
        self._jobs: dict[int, tuple[Guest, int]] = {}
        self._job_of: dict[tuple[Guest, int], int] = {}
        self._wish: Load | None = None
        self._loading: set[Guest] = set()
        self._loaded: Loaded | None = None

    # What the worker calls.

    def receive(self, wait: bool) -> ToWorker | None:
        """The next message of any client; None says that there is none. Raises `EOFError` at the end."""
        if self._ended:
            raise EOFError
        try:
            message = self._inbox.get(block=wait)
        except queue.Empty:
            return None
        if message is None:
            self._ended = True
            raise EOFError
        return message

    def send(self, message: FromWorker) -> None:
        """Pass on what the worker says to those whom it concerns."""
        with self._state:
            match message:
                case Delta(id=job) | Done(id=job) | Failed(id=job) | Count(id=job):
                    self._answer(job, message)
                case Loaded():
                    self._loaded = message
                    self._tell_loading(message)
                case LoadFailed():
                    self._wish = None
                    self._tell_loading(message)
                case Heartbeat() | Stats():
                    for guest in list(self._guests):
                        self._put(guest, message)
                case Rejected():
                    _log.error("the worker did not understand the hub: %s", message.message)
                case Ready():
                    # Each client had its own when it joined.
                    pass

    def attach(self, notice: Callable[[ToWorker | None], None]) -> None:
        """Tell the worker's `notice` of each message before it is queued; at once of those queued already."""
        with self._state:
            for message in self._unnoticed:
                notice(message)
            self._unnoticed.clear()
            self._notice = notice

    def end(self) -> None:
        """Let the worker's loop end."""
        with self._state:
            self._pass_on(None)

    # What those who serve the clients call.

    def join(self, sever: Callable[[], None]) -> Guest | None:
        """A new client; None when the hub is ending and takes nobody in."""
        with self._state:
            if self._closed:
                return None
            self._last_number += 1
            guest = Guest(self._last_number, Outbox(self._limit), sever)
            guest.outbox.put(Ready(os.getpid()))
            self._guests.append(guest)
            self._state.notify_all()
            return guest

    def told(self, guest: Guest, message: ToWorker) -> bool:
        """Take a message of `guest`; False says that it has left with it."""
        with self._state:
            if guest not in self._guests:
                return False
            match message:
                case Load():
                    self._load(guest, message)
                case Start():
                    job = self._open(guest, message.id)
                    if job is not None:
                        self._pass_on(replace(message, id=job, client=guest.number))
                case CountTokens():
                    job = self._open(guest, message.id)
                    if job is not None:
                        self._pass_on(replace(message, id=job))
                case Cancel():
                    self._cancel(guest, message.id)
                case Unload() | Shutdown():
                    # The model and the worker are the others' too.
                    self._leave(guest, drop=False)
                    return False
            return True

    def left(self, guest: Guest, reason: str = "") -> None:
        """The client is gone, or is to go for `reason`: what it asked for is not made any more."""
        with self._state:
            if guest in self._guests:
                if reason:
                    _log.warning("client %d is dropped: %s", guest.number, reason)
                self._leave(guest, drop=True)

    def wait_until_deserted(self, first_s: float, grace_s: float) -> None:
        """Return, and take no more clients, when there was none for so long (`first_s` at first)."""
        patience, seen = first_s, 0
        with self._state:
            # By number, so that one who came and has left again is noticed.
            while self._state.wait_for(lambda seen=seen: self._last_number != seen, patience):
                self._state.wait_for(lambda: not self._guests)
                patience, seen = grace_s, self._last_number
            self._closed = True

    # All of these are called with the state held.

    def _pass_on(self, message: ToWorker | None) -> None:
        if self._notice is not None:
            self._notice(message)
        else:
            self._unnoticed.append(message)
        self._inbox.put(message)

    def _load(self, guest: Guest, wish: Load) -> None:
        if self._wish is None:
            self._wish = wish
            self._loaded = None
            self._loading.add(guest)
            self._pass_on(wish)
        elif replace(wish, path=self._wish.path, draft_path=self._wish.draft_path) != self._wish:
            # Who finds this hub by its endpoint wants the same; one file may have several names.
            text = "The shared engine runs with other options; set nexo.engine.shared to false."
            self._put(guest, LoadFailed(LoadFailure.LIBRARY, text))
        elif self._loaded is not None:
            self._put(guest, self._loaded)
        else:
            self._loading.add(guest)

    def _tell_loading(self, message: Loaded | LoadFailed) -> None:
        waiting, self._loading = self._loading, set()
        for guest in waiting:
            self._put(guest, message)

    def _open(self, guest: Guest, request: int) -> int | None:
        if (guest, request) in self._job_of:
            self._put(guest, Rejected(f"{request} is being answered already"))
            return None
        self._last_job += 1
        job = self._last_job
        self._jobs[job] = (guest, request)
        self._job_of[guest, request] = job
        return job

    def _answer(self, job: int, message: Delta | Done | Failed | Count) -> None:
        owner = self._jobs.get(job)
        if owner is None:
            return
        if not isinstance(message, Delta):
            del self._jobs[job], self._job_of[owner]
        guest, request = owner
        self._put(guest, replace(message, id=request))

    def _cancel(self, guest: Guest, request: int) -> None:
        job = self._job_of.pop((guest, request), None)
        if job is not None:
            del self._jobs[job]
            self._pass_on(Cancel(job))

    def _put(self, guest: Guest, message: FromWorker) -> None:
        if not guest.outbox.put(message):
            _log.warning("client %d is dropped: it does not read what it is told", guest.number)
            self._leave(guest, drop=True)

    def _leave(self, guest: Guest, *, drop: bool) -> None:
        if guest not in self._guests:
            return
        self._guests.remove(guest)
        self._loading.discard(guest)
        for owner, request in [key for key in self._job_of if key[0] is guest]:
            self._cancel(owner, request)
        guest.outbox.close(drop=drop)
        if drop:
            guest.sever()
        self._state.notify_all()

"""Where an engine that the client runs is plugged in: what it can do, what it is asked, what it says.

The client is a stranger. What it sends is put into order, bounded, and dropped where nobody waits for it.
What it is asked waits here for its turn, so that it never has more to do than it said it can.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Protocol

from nexo_lsp.errors import EngineClosed, EngineError, EngineUnavailable
from nexo_lsp.generation import Capabilities, EngineState, FinishReason, Priority, Request

_log = logging.getLogger(__name__)

NO_ENGINE: Final = "the editor offers no engine of its own"
_NONE: Final = "The editor offers no engine of its own; set nexo.engine.kind to another."
_GONE: Final = "The editor took its engine away."
_FLOOD: Final = "The editor's engine sent far more than can be read, and was cut off."
UNREAD_PIECES, UNREAD_CHARS = 4096, 2**20
"""What may wait to be read of one answer: a client may hand over a whole answer in one go, and not more."""


@dataclass(frozen=True, slots=True)
class Announcement:
    """What a client says of its engine. The defaults are those of a client that says nothing of it."""

    model: str | None = None
    device: str | None = None
    state: EngineState = EngineState.READY
    detail: str = ""
    """For people: what it is doing, why it failed."""
    context_tokens: int = 4096
    chat: bool = True
    infill: bool = False
    json_schema: bool = False
    answer_prefix: bool = False
    """Whether it can make an answer begin with a given text."""
    counts_tokens: bool = False
    parallel: int = 1
    """How many requests it wants at once."""
    local: bool = False
    """Whether everything stays on the user's machine. Nobody's word is taken for granted here."""

    @property
    def capabilities(self) -> Capabilities:
        """The same in the words of engines."""
        return Capabilities(
            chat=self.chat,
            infill=self.infill,
            json_schema=self.json_schema,
            context_tokens=self.context_tokens,
            local=self.local,
        )

    def differs(self, other: Announcement | None) -> bool:
        """Whether it is another engine than `other`, and not the same one in another state."""
        return (
            other is None
            or replace(self, state=other.state, detail=other.detail, device=other.device) != other
        )


@dataclass(frozen=True, slots=True)
class Part:
    """More text of an answer; `tokens` were made so far (0: the client does not say)."""

    text: str
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class End:
    """The answer is complete. Counts are 0 where the client does not say."""

    finish: FinishReason
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0


class ClientLink(Protocol):
    """How a client is reached."""

    def start(self, request_id: int, request: Request) -> None:
        """Ask for an answer; never blocks."""
        ...

    def cancel(self, request_id: int) -> None:
        """Nothing more is wanted of an answer; never blocks."""
        ...

    async def count_tokens(self, text: str) -> int | None:
        """How many tokens `text` is; None if the client does not say so in time."""
        ...


class PutBack(Exception):
    """A call gave way to a more urgent one before anything came for it: it waits for its turn again."""


class Call:
    """One request to the client: its turn, and what came for it, in order. One task reads it."""

    def __init__(self, request_id: int, priority: Priority, link: ClientLink) -> None:
        self.id = self.order = request_id
        self.priority = priority
        self.sent = self.over = False
        """Whether the client was asked, and whether it said its last word."""
        self.heard_at = 0.0
        """When the client last said something of it, in seconds of the loop's clock."""
        self._link = link
        self._granted = self._begun = False
        self._next = 0
        self._early: dict[int, Part | End] = {}
        self._ready: deque[Part | End] = deque()
        self._unread_chars = 0
        self._error: EngineError | None = None
        self._changed = asyncio.Event()

    async def turn(self) -> None:
        """Wait until the client may be asked. Raises what ended the call before."""
        while not self._granted:
            await self._news()

    def send(self, request: Request) -> None:
        """Ask the client. Raises what ended the call."""
        if self._error is not None:
            raise self._error
        self.sent = True
        self.touch()
        self._link.start(self.id, request)

    async def next(self) -> Part | End:
        """What comes next. Raises what ended the call, after all that came before it, and `PutBack`."""
        while not self._ready:
            if not self._granted:
                raise PutBack
            await self._news()
        item = self._ready.popleft()
        if isinstance(item, Part):
            self._unread_chars -= len(item.text)
        return item

    async def _news(self) -> None:
        if self._error is not None:
            raise self._error
        self._changed.clear()
        await self._changed.wait()

    # What happens to it.

    def grant(self) -> None:
        """It is its turn."""
        self._granted = True
        self._changed.set()

    @property
    def gives_way(self) -> bool:
        """Whether it can begin anew later and nobody sees a difference."""
        return self.priority is Priority.BACKGROUND and not self._begun and not self.over

    def put_back(self, request_id: int) -> None:
        """It has to wait for its turn again, and is then asked under another id."""
        if self.sent:
            self._link.cancel(self.id)
        self.id = request_id
        self.sent = self._granted = False
        self._next = 0
        self._early.clear()
        self._ready.clear()
        self._changed.set()

    def touch(self) -> None:
        """The client gave a sign of life."""
        self.heard_at = asyncio.get_running_loop().time()

    def put(self, sequence: int, item: Part | End) -> None:
        """Something came. What overtook others waits for them; what came twice is dropped."""
        over = self.over or self._error is not None
        if over or sequence < self._next or sequence in self._early:
            _log.debug("dropped number %d of request %d: it came before, or too late", sequence, self.id)
            return
        self.touch()
        if isinstance(item, Part):
            self._unread_chars += len(item.text)
        unread = len(self._ready) + len(self._early)
        if unread >= UNREAD_PIECES or self._unread_chars > UNREAD_CHARS:
            _log.warning("request %d: %d pieces are unread; it is ended", self.id, unread + 1)
            self._ready.clear()
            self.fail(EngineError(_FLOOD))
            return
        self._begun = self._begun or isinstance(item, End) or item.text != ""
        self._early[sequence] = item
        while (ready := self._early.pop(self._next, None)) is not None:
            self._next += 1
            self._ready.append(ready)
            self.over = self.over or isinstance(ready, End)
        self._changed.set()

    def fail(self, error: EngineError) -> None:
        """End it with `error`, unless it has ended; nothing that comes later counts."""
        if self._error is None and not self.over:
            self._error = error
            self._early.clear()
            self._changed.set()


class ClientPort:
    """One client's engine. Incoming things may be of any kind: ids that nobody knows are dropped."""

    def __init__(self) -> None:
        self.on_change: Callable[[], None] = lambda: None
        """Called when there is an engine, none any more, or another one."""
        self.announced: Announcement | None = None
        self._link: ClientLink | None = None
        self._last_id = 0
        self._waiting: list[Call] = []
        self._running: dict[int, Call] = {}
        self._watchers: set[Callable[[], None]] = set()

    def connect(self, link: ClientLink) -> None:
        """This is how the client is reached."""
        self._link = link

    def disconnect(self) -> None:
        """The client is gone; whoever waits for it gets `EngineClosed`."""
        self._link = None
        self.announce(None)

    def announce(self, announcement: Announcement | None) -> None:
        """The client says what its engine is like now; None: it has none (any more)."""
        before, self.announced = self.announced, announcement
        if announcement is None:
            for call in (*self._waiting, *self._running.values()):
                call.fail(EngineClosed(_GONE))
                call.over = True
        else:
            for call in self._running.values():
                call.touch()
            self._admit()
        changed = before is not None if announcement is None else announcement.differs(before)
        if changed:
            _log.info("the client's engine: %s", announcement or "none")
        for watcher in tuple(self._watchers):
            watcher()
        if changed:
            self.on_change()

    def require(self) -> Announcement:
        """What was announced. Raises `EngineUnavailable`."""
        if self.announced is None or self._link is None:
            raise EngineUnavailable(_NONE)
        return self.announced

    def watch(self, watcher: Callable[[], None]) -> Callable[[], None]:
        """Have `watcher` called at each announcement; gives what ends that."""
        self._watchers.add(watcher)
        return lambda: self._watchers.discard(watcher)

    async def count_tokens(self, text: str) -> int | None:
        """How many tokens the client says that `text` is, if it says so."""
        if self._link is None or self.announced is None or not self.announced.counts_tokens:
            return None
        return await self._link.count_tokens(text)

    # Requests.

    def call(self, priority: Priority) -> Call:
        """Stand in line for the client; `leave` has to follow. Raises `EngineUnavailable`."""
        if self.announced is None or self._link is None:
            raise EngineUnavailable(_NONE)
        call = Call(self._new_id(), priority, self._link)
        self._waiting.append(call)
        self._admit()
        return call

    def leave(self, call: Call) -> None:
        """Nobody waits for `call` any more; the client is told if it still works on it."""
        if call in self._waiting:
            self._waiting.remove(call)
        self._running.pop(call.id, None)
        if call.sent and not call.over and self._link is not None:
            self._link.cancel(call.id)
        self._admit()

    def is_running(self, call: Call) -> bool:
        """Whether the client has it."""
        return call.id in self._running

    def _admit(self) -> None:
        """Let in whoever is most urgent, and of these who came first, as long as there is room."""
        room = self.announced.parallel if self.announced is not None else 0
        while self._waiting:
            call = min(self._waiting, key=lambda call: (call.priority, call.order))
            if len(self._running) >= room and (len(self._running) > room or not self._make_room(call)):
                return
            self._waiting.remove(call)
            self._running[call.id] = call
            call.grant()

    def _make_room(self, urgent: Call) -> bool:
        """Put back work in the background of which nothing came yet, if somebody is typing."""
        if urgent.priority is not Priority.INTERACTIVE:
            return False
        victim = next((call for call in reversed(self._running.values()) if call.gives_way), None)
        if victim is None:
            return False
        del self._running[victim.id]
        victim.put_back(self._new_id())
        self._waiting.append(victim)
        return True

    def _new_id(self) -> int:
        self._last_id += 1
        return self._last_id

    # What the client says.

    def piece(self, request_id: int, sequence: int, text: str, tokens: int = 0) -> None:
        """More of an answer. Numbers count from 0; an empty text is a sign of life."""
        if (call := self._find(request_id)) is not None:
            call.put(sequence, Part(text, tokens))

    def ended(self, request_id: int, sequence: int, end: End) -> None:
        """An answer is complete; the end has the number after the last piece's."""
        if (call := self._find(request_id)) is not None:
            call.put(sequence, end)

    def failed(self, request_id: int, error: EngineError) -> None:
        """There is no (whole) answer."""
        if (call := self._find(request_id)) is not None:
            call.fail(error)
            call.over = True

    def _find(self, request_id: int) -> Call | None:
        call = self._running.get(request_id)
        if call is None or not call.sent:
            known = 0 < request_id <= self._last_id
            # After a cancel there are always some on their way.
            _log.log(
                logging.DEBUG if known else logging.WARNING,
                "dropped what the client says of request %d: nobody waits for it", request_id,
            )  # fmt: skip
            return None
        return call

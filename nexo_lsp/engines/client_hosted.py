"""An engine that the client runs: a browser's llama.cpp, or an editor's own language model.

What the client is not trusted with is done here: the turn of each request, its deadline, its length, its stop
strings, and an end to waiting for a client that says nothing.
"""

from __future__ import annotations

import asyncio
import codecs
from collections.abc import AsyncGenerator, Callable
from typing import Final

from nexo_lsp.engines.client_port import Announcement, Call, ClientPort, End, Part, PutBack
from nexo_lsp.engines.client_words import Fitted, Opening, fitted
from nexo_lsp.engines.llama.text_stream import TextStream
from nexo_lsp.errors import EngineClosed, EngineCrashed, EngineUnavailable
from nexo_lsp.generation import (
    Capabilities,
    EngineState,
    EngineStatus,
    FinishReason,
    Piece,
    Request,
    Usage,
)

SILENCE_S: Final = 60.0
"""A client that works on a request and says nothing of it for so long is taken for stuck. Pieces without text
show that it lives, where reading a prompt takes longer."""
_CHARS_PER_TOKEN: Final = 3.0
"""For clients that do not count; on the safe side for code."""
_LONGEST_TOKEN: Final = 32
"""Characters that a token has at the most, on average: whoever says that it has more counts wrongly."""
_SMOOTHING: Final = 0.3

Refusal = Callable[[], str | None]
"""Why prompts may not leave this machine now; None where they may."""


def stays_here() -> str | None:
    """The refusal of an engine that was chosen because everything stays on the machine."""
    return "it sends prompts to another machine now"


class ClientHostedEngine:
    """Implements `Engine` through a `ClientPort`, which several of them may share."""

    def __init__(
        self, port: ClientPort, refusal: Refusal = stays_here, *, silence_s: float = SILENCE_S
    ) -> None:
        """`refusal` is asked before each request, as soon as the client's engine is not local."""
        self.on_status: Callable[[EngineStatus], None] = lambda _status: None
        self._port = port
        self._refusal = refusal
        self._silence_s = silence_s
        self._calls: set[Call] = set()
        self._tokens_per_s: float | None = None
        self._closed = False
        self._unwatch = port.watch(self._changed)

    def capabilities(self) -> Capabilities:
        """What the client announced."""
        return (self._port.announced or Announcement()).capabilities

    def status(self) -> EngineStatus:
        """The present picture."""
        announced = self._port.announced
        running = sum(self._port.is_running(call) for call in self._calls)
        return EngineStatus(
            state=self._state(announced),
            name="client-hosted",
            model=announced.model if announced is not None else None,
            device=announced.device if announced is not None else None,
            queued=len(self._calls) - running,
            running=running,
            decode_tokens_per_s=self._tokens_per_s,
            detail=announced.detail if announced is not None else "The editor has no engine now.",
        )

    async def count_tokens(self, text: str) -> int:
        """The client's count, or an estimate where it does not count."""
        if self._closed:
            raise EngineClosed("The engine was closed.")
        self._require_permission()
        counted = await self._port.count_tokens(text)
        return counted if counted is not None else int(len(text) / _CHARS_PER_TOKEN) + 1

    async def stream(self, request: Request) -> AsyncGenerator[Piece, None]:
        """Make an answer; see `Engine.stream`."""
        if self._closed:
            raise EngineClosed("The engine was closed.")
        answer = _Answer(request, self._silence_s)
        call = self._port.call(request.priority)
        self._calls.add(call)
        self._changed()
        try:
            finished = False
            while not finished:
                if not call.sent and await answer.turn(call):
                    self._ask(call, request, answer)
                try:
                    piece = await answer.next(call)
                except PutBack:
                    continue
                finished = piece.finish is not None
                if finished:
                    self._learn(piece)
                    self._leave(call)
                yield piece
        finally:
            self._leave(call)

    async def close(self) -> None:
        """End what runs and what waits; the client's engine is the client's."""
        if not self._closed:
            self._closed = True
            for call in tuple(self._calls):
                call.fail(EngineClosed("The engine was closed."))
            self._unwatch()
            self._changed()

    def _ask(self, call: Call, request: Request, answer: _Answer) -> None:
        # Whatever was so when it stood in line: what counts is where the text would go now.
        self._require_permission()
        asked = fitted(request, self._port.require())
        call.send(asked.request)
        answer.begin(asked)
        self._changed()

    def _leave(self, call: Call) -> None:
        if call in self._calls:
            self._calls.remove(call)
            self._port.leave(call)
            self._changed()

    def _require_permission(self) -> None:
        """Raise `EngineUnavailable` if the client's engine is elsewhere and nothing may be sent there."""
        if not self._port.require().local and (reason := self._refusal()) is not None:
            raise EngineUnavailable(f"The editor's engine is not asked: {reason}.")

    def _learn(self, last: Piece) -> None:
        usage = last.usage
        if usage is not None and usage.decode_s > 0 and last.tokens > 1:
            speed = (last.tokens - 1) / usage.decode_s
            known = self._tokens_per_s
            self._tokens_per_s = speed if known is None else known + _SMOOTHING * (speed - known)

    def _state(self, announced: Announcement | None) -> EngineState:
        if self._closed:
            return EngineState.CLOSED
        if announced is None:
            return EngineState.FAILED
        usable = announced.state in (EngineState.READY, EngineState.BUSY)
        if usable:
            return EngineState.BUSY if self._calls else EngineState.READY
        return announced.state

    def _changed(self) -> None:
        self.on_status(self.status())


class _Answer:
    """From what a client sends to the pieces of one answer."""

    def __init__(self, request: Request, silence_s: float) -> None:
        self._silence_s = silence_s
        self._loop = asyncio.get_running_loop()
        self._asked_at = self._sent_at = self._loop.time()
        self._first_at: float | None = None
        limit = request.deadline_s
        self._deadline = None if limit is None else self._asked_at + limit
        self._max_tokens = request.max_tokens
        self._opening = Opening(())
        self._stream = TextStream()
        # JavaScript cuts text in the middle of what it takes for two characters; this puts it together.
        self._utf16 = codecs.getincrementaldecoder("utf-16-le")("replace")
        self._tokens = self._chars = 0
        self._late = False

    async def turn(self, call: Call) -> bool:
        """Wait for the turn of `call`; False if the deadline came first."""
        try:
            async with asyncio.timeout_at(self._deadline):
                await call.turn()
        except TimeoutError:
            self._late = True
            self._sent_at = self._loop.time()
        return not self._late

    def begin(self, asked: Fitted) -> None:
        """This was sent to the client."""
        self._sent_at = self._loop.time()
        self._opening = Opening(asked.openings)
        self._stream = TextStream(asked.stop)

    async def next(self, call: Call) -> Piece:
        """The next piece that has something to show, or the last one."""
        while True:
            item = await self._item(call)
            if item is None:
                return self._last(FinishReason.DEADLINE)
            if isinstance(item, End):
                return self._last(item.finish, item)
            piece = self._add(item)
            if piece is not None:
                return piece

    async def _item(self, call: Call) -> Part | End | None:
        """What comes next; None at the deadline. Raises `EngineCrashed` if the client says nothing."""
        while not self._late:
            silent_at = call.heard_at + self._silence_s
            until = silent_at if self._deadline is None else min(silent_at, self._deadline)
            try:
                async with asyncio.timeout_at(until):
                    return await call.next()
            except TimeoutError:
                self._late = self._deadline is not None and self._loop.time() >= self._deadline
                if not self._late and self._loop.time() >= call.heard_at + self._silence_s:
                    raise EngineCrashed(
                        f"The editor's engine said nothing for {self._silence_s:.0f} s; it is asked no more "
                        "for this answer."
                    ) from None
        return None

    def _add(self, part: Part) -> Piece | None:
        if not part.text:
            return None
        if self._first_at is None:
            self._first_at = self._loop.time()
        self._chars += len(part.text)
        self._tokens = max(self._tokens + 1, part.tokens, self._chars // _LONGEST_TOKEN)
        whole = self._utf16.decode(part.text.encode("utf-16-le", "surrogatepass"))
        shown = self._stream.feed(self._opening.feed(whole).encode())
        if self._stream.stopped:
            return self._last(FinishReason.STOP, shown=shown)
        if self._tokens >= self._max_tokens:
            return self._last(FinishReason.LENGTH, shown=shown)
        return Piece(shown, self._tokens) if shown else None

    def _last(self, finish: FinishReason, end: End | None = None, shown: str = "") -> Piece:
        if not self._stream.stopped:
            rest = self._opening.feed(self._utf16.decode(b"", final=True)) + self._opening.finish()
            shown += self._stream.feed(rest.encode()) + self._stream.finish()
        if self._stream.stopped:
            finish = FinishReason.STOP
        now = self._loop.time()
        first = self._first_at if self._first_at is not None else now
        tokens = self._tokens if end is None else max(self._tokens, end.completion_tokens)
        usage = Usage(
            prompt_tokens=end.prompt_tokens if end is not None else 0,
            cached_tokens=end.cached_tokens if end is not None else 0,
            completion_tokens=tokens,
            queue_s=self._sent_at - self._asked_at,
            prompt_s=first - self._sent_at,
            decode_s=now - first,
        )
        return Piece(shown, tokens, finish, usage)

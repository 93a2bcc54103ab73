"""Several engines as one: when one fails before anything was shown, the next takes over."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from nexo_lsp.engines.engine import Engine
from nexo_lsp.errors import BadAnswer, EngineClosed, EngineError, ModelError, NexoError, PromptTooLong
from nexo_lsp.generation import Capabilities, EngineStatus, FinishReason, Piece, Request
from nexo_lsp.runtime.breaker import Breaker

_log = logging.getLogger(__name__)

# They say something about the request, or about us, and nothing about the engine.
_NOT_ITS_FAULT = (PromptTooLong, BadAnswer, EngineClosed)


@dataclass(frozen=True, slots=True)
class Member:
    """One of the engines, made at its first use. Chains that share an engine share its breaker."""

    name: str
    make: Callable[[], Engine]
    breaker: Breaker = field(default_factory=Breaker)


class Fallback:
    """Implements `Engine` over a ranked list of engines.

    Who may be in the list was decided before (`selection.py`): nothing here ever widens it.
    """

    def __init__(
        self,
        members: Sequence[Member],
        notice: Callable[[str], None] = lambda _text: None,
    ) -> None:
        """`members`, the best first; at least one. `notice` is told when an engine begins to fail."""
        self._members = tuple(members)
        self._notice = notice
        self._last = self._members[0]

    def capabilities(self) -> Capabilities:
        """Those of the engine that would be asked now."""
        return self._first().make().capabilities()

    def status(self) -> EngineStatus:
        """That of the engine that answered last, with what rests and why."""
        status = self._last.make().status()
        resting = [
            f"{member.name} failed and rests for {member.breaker.seconds_left:.0f} s more"
            for member in self._members
            if member.breaker.seconds_left
        ]
        if not resting:
            return status
        notes = (*status.extra.get("notes", ()), *resting)
        return replace(status, extra={**status.extra, "notes": notes})

    async def count_tokens(self, text: str) -> int:
        """As the engine counts that would be asked now."""

        async def count(engine: Engine) -> int:
            return await engine.count_tokens(text)

        return await self._try_each(count)

    async def stream(self, request: Request) -> AsyncGenerator[Piece, None]:
        """See `Engine.stream`. An engine that failed after it had shown something is not replaced."""
        failures: list[NexoError] = []
        for member, trial in self._candidates():
            shown = False
            try:
                async with aclosing(member.make().stream(request)) as pieces:
                    async for piece in pieces:
                        if not shown:
                            self._spoke(member, piece)
                        shown = shown or bool(piece.text)
                        stands_in = piece.finish is not None and member is not self._members[0]
                        yield replace(piece, stand_in=True) if stands_in else piece
                return
            except _NOT_ITS_FAULT:
                raise
            except (EngineError, ModelError) as error:
                self._failed(member, error)
                if shown:
                    raise
                failures.append(error)
            finally:
                if trial:
                    member.breaker.left()
        raise self._all_failed(failures)

    async def close(self) -> None:
        """Whoever made the engines closes them."""

    async def _try_each(self, ask: Callable[[Engine], Awaitable[int]]) -> int:
        failures: list[NexoError] = []
        for member, trial in self._candidates():
            try:
                answer = await ask(member.make())
            except _NOT_ITS_FAULT:
                raise
            except (EngineError, ModelError) as error:
                self._failed(member, error)
                failures.append(error)
            else:
                self._worked(member)
                return answer
            finally:
                if trial:
                    member.breaker.left()
        raise self._all_failed(failures)

    def _candidates(self) -> Iterator[tuple[Member, bool]]:
        """Who is asked, in this order, and whether as a trial; where all rest the best one is asked."""
        asked = False
        for member in self._members:
            if (entered := member.breaker.enter()) is not None:
                asked = True
                yield member, entered == "trial"
        if not asked:
            yield self._members[0], False

    def _first(self) -> Member:
        awake = (member for member in self._members if not member.breaker.seconds_left)
        return next(awake, self._members[0])

    def _worked(self, member: Member) -> None:
        self._last = member
        if member.breaker.succeeded():
            _log.info("%s works again", member.name)

    def _spoke(self, member: Member, piece: Piece) -> None:
        if piece.text or piece.finish is not FinishReason.DEADLINE:
            self._worked(member)
        elif member.breaker.silent():
            self._tell(member, "it says nothing.")

    def _failed(self, member: Member, error: NexoError) -> None:
        news = member.breaker.fail()
        _log.warning("%s failed: %s", member.name, error)
        if news:
            self._tell(member, str(error))

    def _tell(self, member: Member, why: str) -> None:
        others = (other for other in self._members if other is not member and not other.breaker.seconds_left)
        stand_in = next(others, None)
        if stand_in is not None:
            self._notice(
                f"The engine {member.name} failed: {why} Until it works again, {stand_in.name} answers."
            )

    def _all_failed(self, failures: Sequence[NexoError]) -> NexoError:
        """One error for all; a lone engine's own error stays what it is, since callers know its kind."""
        if len(failures) == 1:
            return failures[0]
        return EngineError(" ".join(str(error) for error in failures))

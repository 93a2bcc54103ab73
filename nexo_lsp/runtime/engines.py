"""The engines of one server: chosen for each operation, made when needed, let go of between requests."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine, Hashable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from nexo_lsp.engines.engine import Engine
from nexo_lsp.errors import EngineClosed
from nexo_lsp.generation import Capabilities, EngineStatus, Operation, Piece, Request
from nexo_lsp.runtime.breaker import Breaker
from nexo_lsp.runtime.environment import Environment
from nexo_lsp.runtime.fallback import Fallback, Member
from nexo_lsp.runtime.needs import NEEDS, Policy
from nexo_lsp.runtime.providers.provider import Provider
from nexo_lsp.runtime.selection import Selection, select

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Offer:
    """A provider with the model and settings that it would use."""

    provider: Provider
    key: Hashable
    """Engines of equal keys are one and the same: operations share it, and a new plan keeps it."""


class Engines:
    """Makes, shares and retires engines."""

    def __init__(
        self,
        keep: Callable[[Coroutine[Any, Any, None]], None],
        on_status: Callable[[], None],
        notice: Callable[[str], None],
    ) -> None:
        """`keep` runs a coroutine in the background; `notice` tells the user that an engine fails."""
        self._keep = keep
        self._on_status = on_status
        self._notice = notice
        self._made: dict[Hashable, _Tracked] = {}
        self._retiring: set[_Tracked] = set()
        self._wanted: frozenset[Hashable] = frozenset()
        self._breakers: dict[Hashable, Breaker] = {}
        self._selections: dict[Operation, Selection] = {}
        self._chains: dict[Operation, Fallback] = {}
        self._members: dict[Operation, tuple[Hashable, ...]] = {}

    def plan(
        self,
        offers: Mapping[Operation, Sequence[Offer]],
        environment: Environment,
        policies: Mapping[Operation, Policy],
    ) -> None:
        """Choose anew.

        Engines that are no longer wanted finish what they are doing and are closed; those that send code away
        are closed at once, since what they were allowed may be what has changed.
        """
        for operation, these in offers.items():
            keys = {id(offer.provider): offer.key for offer in these}
            providers = [offer.provider for offer in these]
            found = select(providers, environment, NEEDS[operation], policies[operation])
            members = tuple(keys[id(candidate.provider)] for candidate in found.ranked)
            self._selections[operation] = found
            if self._members.get(operation) == members:
                continue
            # A chain remembers who failed; it is made anew only where its members are others.
            self._members[operation] = members
            self._chains.pop(operation, None)
            if members:
                self._chains[operation] = Fallback(
                    [
                        self._member(candidate.provider, key)
                        for candidate, key in zip(found.ranked, members, strict=True)
                    ],
                    self._notice,
                )
        self._wanted = frozenset(key for members in self._members.values() for key in members)
        self._breakers = {key: one for key, one in self._breakers.items() if key in self._wanted}
        for key in [key for key in self._made if key not in self._wanted]:
            made = self._made.pop(key)
            self._keep(made.close() if made.sends_code else self._retire(made))

    def selection(self, operation: Operation) -> Selection:
        """What was chosen for an operation, with reasons."""
        return self._selections[operation]

    def engine(self, operation: Operation) -> Engine:
        """The engine for an operation; raises `EngineUnavailable` with the reasons if there is none."""
        self._selections[operation].require()
        return self._chains[operation]

    def status(self, operation: Operation) -> EngineStatus | None:
        """How its engine is; None while none was made."""
        members = self._members.get(operation, ())
        if not any(key in self._made for key in members):
            return None
        return self._chains[operation].status()

    def drop(self) -> None:
        """Close every engine now; what runs ends with `EngineClosed`. The next use makes new ones."""
        for made in (*self._made.values(), *self._retiring):
            self._keep(made.close())
        self._made.clear()

    async def _retire(self, made: _Tracked) -> None:
        self._retiring.add(made)
        try:
            await made.retire()
        finally:
            self._retiring.discard(made)

    def _member(self, provider: Provider, key: Hashable) -> Member:
        def make() -> Engine:
            made = self._made.get(key)
            if made is None:
                if key not in self._wanted:
                    # A request that began under an older plan: it must not bring back what that one allowed.
                    raise EngineClosed("The settings changed meanwhile; ask again.")
                _log.info("making the engine %s", provider.name)
                engine = provider.create_engine(lambda _status: self._on_status())
                made = self._made[key] = _Tracked(engine, sends_code=provider.traits().sends_code)
            return made

        return Member(provider.name, make, self._breakers.setdefault(key, Breaker()))


class _Tracked:
    """An engine that knows how many of its streams are open, so that it can be retired between requests."""

    def __init__(self, engine: Engine, *, sends_code: bool) -> None:
        self.engine = engine
        self.sends_code = sends_code
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def capabilities(self) -> Capabilities:
        return self.engine.capabilities()

    def status(self) -> EngineStatus:
        return self.engine.status()

    async def count_tokens(self, text: str) -> int:
        return await self.engine.count_tokens(text)

    async def stream(self, request: Request) -> AsyncGenerator[Piece, None]:
        self._running += 1
        self._idle.clear()
        try:
            async with aclosing(self.engine.stream(request)) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()

    async def retire(self) -> None:
        """Wait until nothing runs, then close."""
        await self._idle.wait()
        await self.close()

    async def close(self) -> None:
        await self.engine.close()
        self._idle.set()

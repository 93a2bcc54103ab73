"""Where names are defined, in this file and in the other open ones."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from nexo_lsp.documents import Snapshot
from nexo_lsp.syntax.outline import Symbol


@dataclass(frozen=True, slots=True)
class Definition:
    """A symbol and the document that holds it."""

    snapshot: Snapshot
    symbol: Symbol


class DefinitionIndex:
    """Definitions by name. Each document's part is made once for each of its versions."""

    def __init__(self) -> None:
        self._parts: WeakKeyDictionary[Snapshot, dict[str, list[Symbol]]] = WeakKeyDictionary()

    def find(self, name: str, snapshots: Iterable[Snapshot]) -> tuple[Definition, ...]:
        """The definitions of `name` in `snapshots`, those of the first snapshot first."""
        return tuple(
            Definition(snapshot, symbol)
            for snapshot in snapshots
            for symbol in self._part(snapshot).get(name, ())
        )

    def _part(self, snapshot: Snapshot) -> dict[str, list[Symbol]]:
        known = self._parts.get(snapshot)
        if known is not None:
            return known
        part: dict[str, list[Symbol]] = {}
        if snapshot.tree is not None:
            for symbol in snapshot.tree.outline().symbols:
                part.setdefault(symbol.name, []).append(symbol)
        self._parts[snapshot] = part
        return part

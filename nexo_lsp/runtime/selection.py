"""Choosing a provider: first what the settings ask for, then what can be used; always with reasons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nexo_lsp.errors import EngineUnavailable
from nexo_lsp.runtime.providers.provider import Provider

# Never chosen unless the settings name them.
_ONLY_BY_NAME = frozenset({"mock"})


@dataclass(frozen=True, slots=True)
class Selection:
    """The chosen provider, or None, and what was found out about each candidate."""

    provider: Provider | None
    reasons: tuple[str, ...]

    def require(self) -> Provider:
        """The provider; raises `EngineUnavailable` with the reasons if there is none."""
        if self.provider is None:
            raise EngineUnavailable(" ".join(self.reasons))
        return self.provider


def select(wanted: str, providers: Sequence[Provider]) -> Selection:
    """Choose for the setting `engine.kind`: `auto` takes the first usable of `providers`."""
    reasons: list[str] = []
    for provider in providers:
        if wanted == "auto" and provider.name in _ONLY_BY_NAME:
            continue
        if wanted not in ("auto", provider.name):
            reasons.append(f"{provider.name}: not asked for (nexo.engine is '{wanted}').")
            continue
        found = provider.probe()
        if found.usable:
            chosen = "chosen by nexo.engine" if wanted != "auto" else "the first that can be used"
            return Selection(provider, (*reasons, f"{provider.name}: {chosen}; {found.reason}."))
        reasons.append(f"{provider.name}: {found.reason}.")
    return Selection(None, tuple(reasons))

"""Choosing a provider: first what may be used at all, then what suits best; always with reasons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nexo_lsp.errors import EngineUnavailable
from nexo_lsp.runtime.environment import Environment
from nexo_lsp.runtime.needs import Needs, Policy
from nexo_lsp.runtime.providers.provider import Provider, Traits
from nexo_lsp.runtime.scoring import Score, score

ORDER = ("native", "mobile", "client-hosted", "docker", "remote", "mock")
"""Who goes first among equals: what is nearest to the user's own machine."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A provider that may be used."""

    provider: Provider
    score: Score
    probe: str
    """What its probe said."""

    @property
    def reason(self) -> str:
        """Its reasons in one sentence, for people."""
        said = "; ".join((f"{self.score.points} points", self.probe, *self.score.reasons))
        return f"{self.provider.name}: {said}."


@dataclass(frozen=True, slots=True)
class Excluded:
    """A provider that may not be used."""

    name: str
    reason: str
    asked_for: bool = True
    """False if the settings name another one: then nobody wonders why it is not used."""


@dataclass(frozen=True, slots=True)
class Selection:
    """The providers for one need, the best first, and those that were left out."""

    ranked: tuple[Candidate, ...]
    excluded: tuple[Excluded, ...]

    @property
    def provider(self) -> Provider | None:
        """The best one, or None."""
        return self.ranked[0].provider if self.ranked else None

    @property
    def reasons(self) -> tuple[str, ...]:
        """What was found out about each, the best first."""
        left_out = (f"{one.name}: {one.reason}." for one in self.excluded)
        return (*(candidate.reason for candidate in self.ranked), *left_out)

    def require(self) -> Provider:
        """The best provider; raises `EngineUnavailable` with the reasons if there is none."""
        if not self.ranked:
            wanted = [one for one in self.excluded if one.asked_for] or self.excluded
            raise EngineUnavailable(" ".join(f"{one.name}: {one.reason}." for one in wanted))
        return self.ranked[0].provider


def select(
    providers: Sequence[Provider], environment: Environment, needs: Needs, policy: Policy
) -> Selection:
    """Rank `providers` for a need on a machine, within what the user permits."""
    ranked: list[Candidate] = []
    excluded: list[Excluded] = []
    for provider in providers:
        traits = provider.traits()
        against = _against(provider, traits, environment, policy)
        if against:
            asked_for = policy.kind in {"auto", provider.name}
            excluded.append(Excluded(provider.name, against, asked_for))
            continue
        found = provider.probe()
        # Whether it is there comes first: what is not there lacks everything else too.
        against = _lacking(provider, traits, environment, needs, policy) if found.usable else found.reason
        if against:
            excluded.append(Excluded(provider.name, against))
            continue
        ranked.append(Candidate(provider, score(traits, environment, needs), found.reason))
    ranked.sort(key=_rank)
    return Selection(tuple(ranked), tuple(excluded))


def _rank(candidate: Candidate) -> tuple[float, float, int]:
    name = candidate.provider.name
    place = ORDER.index(name) if name in ORDER else len(ORDER)
    return -candidate.score.points, -candidate.score.tokens_per_s, place


def _against(provider: Provider, traits: Traits, environment: Environment, policy: Policy) -> str:
    """Why a provider may not be used whatever it says itself; empty if it may.

    What keeps code on this machine is decided here, for all providers alike.
    """
    named = policy.kind == provider.name
    if policy.kind != "auto" and not named:
        return f"not asked for (nexo.engine is '{policy.kind}')"
    if traits.only_by_name and not named:
        return f"only if nexo.engine names it ('{provider.name}')"
    if traits.needs_trust and not policy.trusted:
        return f"this workspace is not trusted; nexo.{provider.name}.enabled allows it in your own settings"
    if traits.sends_code and not policy.remote:
        return "off: it would send code away; nexo.remote.enabled allows that, in your own settings"
    if traits.sends_code and not policy.trusted:
        return "it would send code away, and this workspace is not trusted"
    if traits.network and (policy.offline or not environment.network):
        return "it needs a network, and nexo.offline is on"
    if traits.processes and not environment.processes:
        return f"it needs processes, which {environment.platform.value} does not allow"
    return ""


def _lacking(
    provider: Provider, traits: Traits, environment: Environment, needs: Needs, policy: Policy
) -> str:
    """What a provider that is there lacks; empty if nothing."""
    bounds = ((policy.memory_bytes, "may be taken"), (environment.free_bytes, "are free"))
    room, how = min((bound for bound in bounds if bound[0]), default=(0, ""))
    if room and traits.memory_bytes > room:
        return f"it wants {traits.memory_bytes / 1e6:,.0f} MB of memory, and {room / 1e6:,.0f} MB {how}"
    if needs.infill and not provider.capabilities().infill:
        return "it cannot fill a gap in code"
    return ""

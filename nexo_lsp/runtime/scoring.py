"""How well a provider that may be used suits a machine and a need, in points with reasons."""

from __future__ import annotations

from dataclasses import dataclass

from nexo_lsp.runtime.environment import Environment
from nexo_lsp.runtime.needs import Needs
from nexo_lsp.runtime.providers.provider import Traits

PLATFORM, PERFORMANCE, RESOURCES, OFFLINE = 100, 50, 30, 20
"""What each question is worth at the most: to be at home on a platform as much as all others together."""

_UNKNOWN = 0.8
"""The part of the points that something gets which was never measured: less than what is known to be enough,
more than what is known not to be."""
_TIGHT = 0.8
"""A provider that wants more than this part of the free memory gets only half of the points for it."""


@dataclass(frozen=True, slots=True)
class Score:
    """The points of one provider. Larger is better; what was measured decides between equals."""

    points: int
    tokens_per_s: float
    """0 where it was not measured."""
    reasons: tuple[str, ...]
    """One for each question, with its points: "at home on linux (100)"."""


def score(traits: Traits, environment: Environment, needs: Needs) -> Score:
    """What `traits` are worth on a machine for a need."""
    answers = (
        _platform(traits, environment),
        _performance(traits, needs),
        _resources(traits, environment),
        _offline(traits),
    )
    points = sum(worth for worth, _ in answers)
    reasons = tuple(f"{reason} ({worth})" for worth, reason in answers)
    return Score(points, traits.tokens_per_s or 0.0, reasons)


def _platform(traits: Traits, environment: Environment) -> tuple[int, str]:
    name = environment.platform.value
    if not traits.platforms:
        return PLATFORM, f"works on any platform, so on {name}"
    if environment.platform in traits.platforms:
        return PLATFORM, f"at home on {name}"
    return 0, f"not made for {name}"


def _performance(traits: Traits, needs: Needs) -> tuple[int, str]:
    """All or nothing; where something was never measured, most of it."""
    found = (
        _met(traits.tokens_per_s, needs.tokens_per_s, "tokens/s"),
        _met(traits.parameters, needs.parameters, "billion parameters"),
    )
    said = ", ".join(why for _, why in found if why) or f"{needs.operation.value} asks for nothing special"
    verdicts = {verdict for verdict, _ in found}
    if False in verdicts:
        return 0, said
    return (round(PERFORMANCE * _UNKNOWN) if None in verdicts else PERFORMANCE), said


def _met(found: float | None, wanted: float, unit: str) -> tuple[bool | None, str]:
    """Whether a need is met (None: not known), and what to say about it."""
    if not wanted:
        return True, ""
    if found is None:
        return None, f"{unit} unknown, {wanted:g} wanted"
    return found >= wanted, f"{found:.3g} {unit}, {wanted:g} wanted"


def _resources(traits: Traits, environment: Environment) -> tuple[int, str]:
    wanted = traits.memory_bytes
    if not wanted:
        return RESOURCES, "takes nothing of this machine"
    if not environment.free_bytes:
        return round(RESOURCES * _UNKNOWN), f"wants {_megabytes(wanted)}; what is free is not known"
    have = f"wants {_megabytes(wanted)} of {_megabytes(environment.free_bytes)}"
    if wanted > _TIGHT * environment.free_bytes:
        return RESOURCES // 2, f"{have}, which is tight"
    return RESOURCES, have


def _offline(traits: Traits) -> tuple[int, str]:
    return (0, "needs a network") if traits.network else (OFFLINE, "needs no network")


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"

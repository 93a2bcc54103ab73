"""Settings from several places, merged and checked."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast, get_args

from pydantic import ValidationError
from pydantic.alias_generators import to_camel

from nexo_lsp.settings.names import (
    FIELDS,
    PREFIX,
    SECTIONS,
    SHORT_VARIABLES,
    default,
    names,
    users_own,
    variable,
)
from nexo_lsp.settings.sections import Settings

# Keys that clients keep in the same section for themselves; the server neither knows nor rejects them.
_CLIENT_KEYS = frozenset({"trace", "server", "path", "trusted", "userSettings"})

_NO_SETTINGS = frozenset({"NEXO_MODELS_EMBEDDED"})
"""Variables that begin like those of a section and stand for themselves."""

KEY_VARIABLE = "NEXO_REMOTE_API_KEY"
"""Begins the names of variables that hold keys: those are no settings, and are shown nowhere."""


@dataclass(frozen=True, slots=True)
class Layer:
    """Settings from one place, as nested data under the section `nexo`."""

    origin: str
    """For people: `environment`, `initializationOptions`, …"""
    data: Mapping[str, Any]
    variables: Mapping[str, str] = field(default_factory=dict[str, str])
    """The environment variable that each setting came from, by the setting's name; empty elsewhere."""
    users_own: bool = True
    """Whether the user alone can have written it. What an editor sends may come from the workspace."""

    def origin_of(self, name: str) -> str:
        """Where the setting `name` came from, for people: `environment (NEXO_MODEL)`."""
        variable = self.variables.get(name)
        return f"{self.origin} ({variable})" if variable is not None else self.origin


@dataclass(frozen=True, slots=True)
class Problem:
    """A wrong setting: what it is, and what is used instead."""

    name: str
    message: str

    def __str__(self) -> str:
        return f"{self.name}: {self.message}"


@dataclass(frozen=True, slots=True)
class Resolved:
    """Effective settings, where each came from, and what was wrong."""

    settings: Settings
    origins: Mapping[str, str]
    """Full name (`nexo.review.trigger`) to origin; settings at their default are absent."""
    problems: tuple[Problem, ...]


_ONLY_THE_USER = (
    "nexo.{} counts only where a workspace cannot set it: in your settings file (`nexo-lsp config` names "
    "it), in the environment, or in `userSettings` of the initializationOptions"
)


_DOWNLOADS = ("never", "ask", "always")
_TIGHTENS: Mapping[str, Callable[[Any, Any], Any]] = {
    "enable": lambda own, other: own and other,
    "offline": lambda own, other: own or other,
    "disabledLanguages": lambda own, other: tuple(dict.fromkeys((*own, *other))),
    "disabledGlobs": lambda own, other: tuple(dict.fromkeys((*own, *other))),
    "models.autoDownload": lambda own, other: min(own, other, key=_DOWNLOADS.index),
}
"""What keeps code on this machine, or the machine off the network: whoever is not the user can make it
stricter than the user's own settings, and not looser."""


def resolve(layers: Sequence[Layer]) -> Resolved:
    """Merge `layers` (later ones win). A wrong value is left out and named; the layer below it counts."""
    values: dict[str, Any] = {}
    own: dict[str, Any] = {}
    origins: dict[str, str] = {}
    problems: list[Problem] = []
    for layer in layers:
        for name, value in _flatten(layer.data):
            problem = _check(name, value)
            if problem is None and not layer.users_own and users_own(name):
                problem = _ONLY_THE_USER.format(name)
            if problem is not None:
                problems.append(Problem(f"{PREFIX}.{name}", f"{problem} (from {layer.origin_of(name)})"))
                continue
            if layer.users_own:
                own[name] = value
            counts = value
            if not layer.users_own and name in own and name in _TIGHTENS:
                counts = _TIGHTENS[name](own[name], value)
                if counts == own[name]:
                    # What the user said of themselves is at least as strict.
                    continue
            values[name] = counts
            origins[f"{PREFIX}.{name}"] = layer.origin_of(name)
    return Resolved(Settings.model_validate(_nest(values)), origins, tuple(problems))


def from_environment(environ: Mapping[str, str]) -> Layer:
    """The settings that `NEXO_*` variables name; lists are separated by commas.

    An empty variable is one that is not set, except for lists, which it empties. A variable that begins like
    those of a section and names no setting is passed on, so that `resolve` names it.
    """
    data: dict[str, Any] = {}
    variables: dict[str, str] = {}
    known = {variable(name): name for name in names()}
    for key, raw in environ.items():
        name = known.get(key) or SHORT_VARIABLES.get(key) or _misspelt(key)
        text = raw.strip()
        if name is None or not (text or _is_list(name)):
            continue
        if key in SHORT_VARIABLES and environ.get(variable(name), "").strip():
            continue
        data[name] = _parse(name, text)
        variables[name] = key
    return Layer("environment", _nest(data), variables)


def _misspelt(key: str) -> str | None:
    """The name that a variable would stand for if its section had such a setting; None without a section."""
    if key.startswith(KEY_VARIABLE) or key in _NO_SETTINGS:
        return None
    for section in SECTIONS:
        start = f"NEXO_{section.upper()}_"
        if key.startswith(start):
            return f"{section}.{to_camel(key[len(start) :].lower())}"
    return None


def _flatten(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        name = prefix + key
        if not prefix and key in _CLIENT_KEYS:
            continue
        if name in SECTIONS and isinstance(value, Mapping):
            yield from _flatten(cast("Mapping[str, Any]", value), name + ".")
        elif name == "engine" and isinstance(value, str):
            yield "engine.kind", value
        else:
            yield name, value


def _nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in flat.items():
        *sections, last = name.split(".")
        here = out
        for section in sections:
            here = here.setdefault(section, {})
        here[last] = value
    return out


def _check(name: str, value: object) -> str | None:
    if name not in FIELDS:
        close = difflib.get_close_matches(name, [*FIELDS, *SECTIONS], n=1)
        hint = f"; did you mean {PREFIX}.{close[0]}?" if close else ""
        expected = " must be an object" if name in SECTIONS else " is not a setting"
        return f"{PREFIX}.{name}{expected}{hint if name not in SECTIONS else ''}"
    try:
        Settings.model_validate(_nest({name: value}))
    except ValidationError as error:
        # A setting that may be a word or a number has a reason against each.
        reason = ", or ".join(found["msg"].removeprefix("Input ") for found in error.errors())
        return f"{value!r} {reason}; using {default(name)!r} unless it is set elsewhere"
    return None


def _parse(name: str, raw: str) -> object:
    if name not in FIELDS:
        return raw
    if _is_list(name):
        return tuple(part.strip() for part in raw.split(",") if part.strip())
    if type(None) in get_args(FIELDS[name].annotation) and raw.lower() in {"null", "none", "auto"}:
        return None
    return raw


def _is_list(name: str) -> bool:
    return name in FIELDS and FIELDS[name].annotation == tuple[str, ...]

"""Every setting, once.

A setting has one name everywhere: `nexo.review.trigger` in an editor, `NEXO_REVIEW_TRIGGER` in the
environment. The JSON schema, the documentation page and the checks come from the models below.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, cast, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic.alias_generators import to_camel

PREFIX = "nexo"

Severity = Literal["error", "warning", "information", "hint"]


class _Section(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, extra="forbid", frozen=True, populate_by_name=True)


class EngineSettings(_Section):
    """How tokens are made."""

    kind: Literal["auto", "native", "mock"] = Field(
        default="auto",
        description="Which engine answers: `native` runs the model on this machine, `mock` gives scripted "
        "answers (for tests), `auto` takes the best one available. `nexo.engine` may be this word too.",
    )
    idle_unload_minutes: float = Field(
        default=10,
        ge=0,
        description="After so many minutes without use the model is let go of to free memory; 0 keeps it.",
    )
    context_tokens: int = Field(
        default=8192, ge=1024, le=32768, description="How many tokens the engine keeps in memory at once."
    )
    threads: int = Field(
        default=0,
        ge=0,
        le=256,
        description="CPU threads for inference; 0 takes what `nexo-lsp doctor --tune` measured, else the "
        "number of cores.",
    )
    shared: bool = Field(
        default=True,
        description="Whether all editors and commands of one user that want the same model share one engine, "
        "so that it is in memory once. Off gives this server one of its own.",
    )
    memory_limit_mb: int = Field(
        default=0,
        ge=0,
        description="What the engine may take in all, in MiB; its context is made smaller, and its cache "
        "compressed, to stay within it. 0 sets no limit: then only what is free when the model is loaded "
        "counts.",
    )
    gpu_layers: Literal["auto", "none", "all"] | Annotated[int, Field(ge=0, le=1000)] = Field(
        default="auto",
        description="How many of the model's layers go to a GPU where llama.cpp was built for one: `auto` "
        "takes as many as fit, `none`, `all`, or so many.",
    )
    unpack_weights: bool = Field(
        default=True,
        description="Whether a copy of the model is kept whose weights take whole bytes: the same values, "
        "which a processor reads prompts up to a third faster with, for more disk and memory (the default "
        "model: 0.6 GB of disk, 0.1 GB of memory). It is made once, in some seconds, for models with weights "
        "in five bits on x86-64 processors, where no GPU is used.",
    )


class ModelsSettings(_Section):
    """Where model files come from."""

    auto_download: Literal["ask", "always", "never"] = Field(
        default="ask",
        description="Whether a missing model is fetched at its first use: ask once with the size named, "
        "always, or never.",
    )


class ReviewSettings(_Section):
    """Review as diagnostics."""

    enabled: bool = Field(default=True, description="Whether code is reviewed at all.")
    trigger: Literal["onOpen", "onSave", "onType", "manual"] = Field(
        default="onSave",
        description="When a file is reviewed: when it is opened (and saved), when it is saved, while typing "
        "(after a pause), or only on command.",
    )
    max_severity: Severity = Field(
        default="warning", description="The highest severity that a finding may be shown with."
    )
    debounce_ms: int = Field(
        default=1500, ge=0, le=60_000, description="The pause in typing after which `onType` reviews."
    )
    max_findings: int = Field(
        default=3, ge=1, le=20, description="How many findings one function may get at the most."
    )


class CompletionSettings(_Section):
    """Inline completion (ghost text)."""

    enabled: bool = Field(default=True, description="Whether completions are offered.")
    debounce_ms: int | None = Field(
        default=None,
        ge=0,
        le=10_000,
        description="The pause in typing before the engine is asked. Null adapts it to the typing rhythm and "
        "the measured latency; a number fixes it; 0 switches it off.",
    )
    as_completion_items: bool = Field(
        default=False,
        description="Offer the same by `textDocument/completion`, for editors without inline completion.",
    )
    max_tokens: int = Field(default=64, ge=4, le=512, description="The longest completion, in tokens.")


class HoverSettings(_Section):
    """Docs as hover."""

    enabled: bool = Field(default=True, description="Whether hovers are answered.")
    explain: bool = Field(
        default=True, description="Whether the model adds a short explanation to the signature and docs."
    )
    wait_ms: int = Field(
        default=400,
        ge=0,
        le=20_000,
        description="How long a hover waits for the explanation before it says that it is coming.",
    )


class Settings(_Section):
    """The settings of one server. `Settings()` is what a new user has."""

    enable: bool = Field(
        default=True, description="Off means off: no request to any model, and no model loaded."
    )
    model: str = Field(
        default="auto",
        description="Which model answers: a name of the catalogue (`nexo-lsp models list`), the path of a "
        "GGUF file, or `auto` for the default model.",
    )
    disabled_languages: tuple[str, ...] = Field(
        default=(), description="Language identifiers (`markdown`, `yaml`, …) for which nothing is asked."
    )
    disabled_globs: tuple[str, ...] = Field(
        default=(),
        description="Patterns in `.gitignore` syntax, relative to the workspace: files that match are never "
        "shown to a model.",
    )
    engine: EngineSettings = Field(default_factory=EngineSettings)
    models: ModelsSettings = Field(default_factory=ModelsSettings)
    review: ReviewSettings = Field(default_factory=ReviewSettings)
    completion: CompletionSettings = Field(default_factory=CompletionSettings)
    hover: HoverSettings = Field(default_factory=HoverSettings)

    @field_validator("engine", mode="before")
    @classmethod
    def _engine_word(cls, value: object) -> object:
        return {"kind": value} if isinstance(value, str) else value


SHORT_VARIABLES = {"NEXO_ENGINE": "engine.kind"}
"""Variables beside the regular ones, and what they set; the regular one counts more."""

# Keys that clients keep in the same section for themselves; the server neither knows nor rejects them.
_CLIENT_KEYS = frozenset({"trace", "server", "path", "trusted"})


@dataclass(frozen=True, slots=True)
class Layer:
    """Settings from one place, as nested data under the section `nexo`."""

    origin: str
    """For people: `environment`, `initializationOptions`, …"""
    data: Mapping[str, Any]
    variables: Mapping[str, str] = field(default_factory=dict[str, str])
    """The environment variable that each setting came from, by the setting's name; empty elsewhere."""

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


def resolve(layers: Sequence[Layer]) -> Resolved:
    """Merge `layers` (later ones win). A wrong value is left out and named; the layer below it counts."""
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    problems: list[Problem] = []
    for layer in layers:
        for name, value in _flatten(layer.data):
            problem = _check(name, value)
            if problem is not None:
                problems.append(Problem(f"{PREFIX}.{name}", f"{problem} (from {layer.origin_of(name)})"))
                continue
            values[name] = value
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
    for section in _SECTIONS:
        start = f"NEXO_{section.upper()}_"
        if key.startswith(start):
            return f"{section}.{to_camel(key[len(start) :].lower())}"
    return None


def names() -> tuple[str, ...]:
    """Every setting's name without the prefix: `enable`, `review.trigger`, …"""
    return tuple(_FIELDS)


def description(name: str) -> str:
    """What the setting `name` does, in Markdown."""
    return _FIELDS[name].description or ""


def default(name: str) -> Any:
    """The value that `name` has when nobody sets it."""
    return value_of(Settings(), name)


def value_of(settings: Settings, name: str) -> Any:
    """The value of `name` (for example `review.trigger`) in `settings`."""
    value: Any = settings
    for part in name.split("."):
        value = getattr(value, _snake(part))
    return value


def variable(name: str) -> str:
    """The environment variable of a setting: `review.maxFindings` is `NEXO_REVIEW_MAX_FINDINGS`."""
    return "NEXO_" + _snake(name).replace(".", "_").upper()


def json_schema() -> dict[str, Any]:
    """The JSON schema of the section `nexo`."""
    return Settings.model_json_schema(by_alias=True)


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])([A-Z])", lambda match: "_" + match.group(1).lower(), name)


def _fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for field_name, info in model.model_fields.items():
        name = prefix + to_camel(field_name)
        if isinstance(info.annotation, type) and issubclass(info.annotation, _Section):
            yield from _fields(info.annotation, name + ".")
        else:
            yield name, info


_FIELDS: dict[str, Any] = dict(_fields(Settings))
_SECTIONS = frozenset(name.rsplit(".", 1)[0] for name in _FIELDS if "." in name)


def _flatten(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        name = prefix + key
        if not prefix and key in _CLIENT_KEYS:
            continue
        if name in _SECTIONS and isinstance(value, Mapping):
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
    if name not in _FIELDS:
        close = difflib.get_close_matches(name, [*_FIELDS, *_SECTIONS], n=1)
        hint = f"; did you mean {PREFIX}.{close[0]}?" if close else ""
        expected = " must be an object" if name in _SECTIONS else " is not a setting"
        return f"{PREFIX}.{name}{expected}{hint if name not in _SECTIONS else ''}"
    try:
        Settings.model_validate(_nest({name: value}))
    except ValidationError as error:
        # A setting that may be a word or a number has a reason against each.
        reason = ", or ".join(found["msg"].removeprefix("Input ") for found in error.errors())
        return f"{value!r} {reason}; using {default(name)!r} unless it is set elsewhere"
    return None


def _parse(name: str, raw: str) -> object:
    if name not in _FIELDS:
        return raw
    if _is_list(name):
        return tuple(part.strip() for part in raw.split(",") if part.strip())
    if type(None) in get_args(_FIELDS[name].annotation) and raw.lower() in {"null", "none", "auto"}:
        return None
    return raw


def _is_list(name: str) -> bool:
    return name in _FIELDS and _FIELDS[name].annotation == tuple[str, ...]

"""The settings by name: `review.trigger` in an editor, `NEXO_REVIEW_TRIGGER` in the environment."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.alias_generators import to_camel

from nexo_lsp.settings.sections import USERS_OWN, Section, Settings

PREFIX = "nexo"

SHORT_VARIABLES = {"NEXO_ENGINE": "engine.kind"}
"""Variables beside the regular ones, and what they set; the regular one counts more."""


def names() -> tuple[str, ...]:
    """Every setting's name without the prefix: `enable`, `review.trigger`, …"""
    return tuple(FIELDS)


def description(name: str) -> str:
    """What the setting `name` does, in Markdown."""
    return FIELDS[name].description or ""


def default(name: str) -> Any:
    """The value that `name` has when nobody sets it."""
    return value_of(Settings(), name)


def value_of(settings: Settings, name: str) -> Any:
    """The value of `name` (for example `review.trigger`) in `settings`."""
    value: Any = settings
    for part in name.split("."):
        value = getattr(value, snake(part))
    return value


def variable(name: str) -> str:
    """The environment variable of a setting: `review.maxFindings` is `NEXO_REVIEW_MAX_FINDINGS`."""
    return "NEXO_" + snake(name).replace(".", "_").upper()


def users_own(name: str) -> bool:
    """Whether the setting counts only where the user wrote it, never where a workspace may have."""
    extra = FIELDS[name].json_schema_extra
    return isinstance(extra, dict) and extra.items() >= USERS_OWN.items()


def json_schema() -> dict[str, Any]:
    """The JSON schema of the section `nexo`."""
    return Settings.model_json_schema(by_alias=True)


def snake(name: str) -> str:
    """The Python name of a setting's: `maxFindings` is `max_findings`."""
    return re.sub(r"(?<=[a-z0-9])([A-Z])", lambda match: "_" + match.group(1).lower(), name)


def _fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for field_name, info in model.model_fields.items():
        name = prefix + to_camel(field_name)
        if isinstance(info.annotation, type) and issubclass(info.annotation, Section):
            yield from _fields(info.annotation, name + ".")
        else:
            yield name, info


FIELDS: dict[str, Any] = dict(_fields(Settings))
"""Each setting's name, and pydantic's description of it."""
SECTIONS = frozenset(name.rsplit(".", 1)[0] for name in FIELDS if "." in name)
"""The names of the sections: `review`, …"""

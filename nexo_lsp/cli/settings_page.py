"""The documentation page of the settings, made from their declaration (`docs/settings.md` is its output)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

from nexo_lsp import settings

_HEAD = """# Settings

This page is made by `nexo-lsp config --markdown`.

A setting has one name everywhere. An editor sends `nexo.review.trigger` in its section `nexo`, by
`initializationOptions`, `workspace/configuration` or `workspace/didChangeConfiguration`; the
environment says `NEXO_REVIEW_TRIGGER`, which counts more than the editor. Your own file
`settings.toml` (`nexo-lsp config` says where it is) says `trigger = "onSave"` under `[review]`, for
every editor, and counts less. Settings that decide what leaves your machine, or what is run on it,
are marked "Yours only": they count in that file, in the environment, and in `userSettings` of the
`initializationOptions`, where a client puts what no workspace can have set. Lists in the
environment are separated by commas; an empty variable is one that is not set, but empties a list. A
wrong value is named, with what is used instead. `nexo-lsp config` shows what is in force and where
each value came from.
"""

_ENVIRONMENT = """
## Environment only

| variable | what it does |
|---|---|
| `NEXO_HOME` | Keeps models, database and logs under this one folder, instead of the platform's own places. |
| `NEXO_LOG` | The level of the log: `debug`, `info`, `warning`, `error`. |
| `NEXO_WS_TOKEN` | What a web socket has to present (`nexo-lsp serve --ws`). |
| `NEXO_MODEL_DIR`, `NEXO_MODEL_URL` | A folder, or an address, that models are taken from first. |
| `NEXO_MODELS_EMBEDDED` | A folder of models that came with the program; used where they lie. |
| `NEXO_PLATFORM` | `console`: what an embedder says of a machine that does not tell it. |
| `NEXO_REMOTE_API_KEY`, `NEXO_REMOTE_API_KEY_HOST` | The key of remote servers, or of one (docs/remote.md). |
| `HF_ENDPOINT`, `HF_TOKEN`, `HF_HUB_OFFLINE` | Where and whether models are fetched from the Hub. |
"""


def settings_page() -> str:
    """The page, in Markdown."""
    schema = settings.json_schema()
    parts = [_HEAD]
    for name in settings.names():
        default = json.dumps(settings.default(name))
        parts.append(
            f"\n## `nexo.{name}`\n\n{settings.description(name)}\n\n"
            f"Value: {allowed(property_of(schema, name))}. Default: `{default}`. "
            f"Environment: {_variables(name)}.{' Yours only.' if settings.users_own(name) else ''}\n"
        )
    return "".join(parts) + _ENVIRONMENT


def _variables(name: str) -> str:
    also = (short for short, of in settings.SHORT_VARIABLES.items() if of == name)
    return " or ".join(f"`{variable}`" for variable in (settings.variable(name), *also))


def property_of(schema: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The JSON schema of the setting `name` inside the schema of all."""
    here: Mapping[str, Any] = schema
    for part in name.split("."):
        reference = cast("str", here.get("$ref", ""))
        if reference:
            here = schema["$defs"][reference.rpartition("/")[2]]
        here = here["properties"][part]
    return here


def allowed(schema: Mapping[str, Any]) -> str:
    """What a value may be, in words."""
    if "enum" in schema:
        return ", ".join(f"`{json.dumps(value)}`" for value in schema["enum"])
    if "anyOf" in schema:
        return " or ".join(allowed(part) for part in schema["anyOf"])
    kind = cast("str", schema.get("type", "any"))
    words = {
        "array": "a list of strings",
        "boolean": "`true` or `false`",
        "integer": "a whole number",
        "null": "`null`",
        "number": "a number",
        "string": "a text",
    }
    text = words.get(kind, kind)
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and high is not None:
        return f"{text} from {low} to {high}"
    if low is not None:
        return f"{text}, {low} or more"
    return text

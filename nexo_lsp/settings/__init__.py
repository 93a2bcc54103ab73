"""Every setting, once.

A setting has one name everywhere: `nexo.review.trigger` in an editor, `NEXO_REVIEW_TRIGGER` in the
environment. The JSON schema, the documentation page and the checks come from the sections.
"""

from nexo_lsp.settings.file import effective, from_file
from nexo_lsp.settings.layers import Layer, Problem, Resolved, from_environment, resolve
from nexo_lsp.settings.names import (
    PREFIX,
    SHORT_VARIABLES,
    default,
    description,
    json_schema,
    names,
    users_own,
    value_of,
    variable,
)
from nexo_lsp.settings.sections import (
    CompletionSettings,
    DockerSettings,
    EngineKind,
    EngineSettings,
    HoverSettings,
    ModelsSettings,
    RemoteSettings,
    ReviewSettings,
    Settings,
    Severity,
)

__all__ = [
    "PREFIX",
    "SHORT_VARIABLES",
    "CompletionSettings",
    "DockerSettings",
    "EngineKind",
    "EngineSettings",
    "HoverSettings",
    "Layer",
    "ModelsSettings",
    "Problem",
    "RemoteSettings",
    "Resolved",
    "ReviewSettings",
    "Settings",
    "Severity",
    "default",
    "description",
    "effective",
    "from_environment",
    "from_file",
    "json_schema",
    "names",
    "resolve",
    "users_own",
    "value_of",
    "variable",
]

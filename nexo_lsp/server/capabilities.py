"""What the server announces, as plain JSON data.

It is data, not lsprotocol's classes, because `stdio.py` sends it before lsprotocol is imported: that import
alone takes longer than an editor should wait for its first answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, cast

from nexo_lsp import __version__

ACTION_COMMAND: Final = "nexo.action"
DISMISS_COMMAND: Final = "nexo.dismiss"
REVIEW_COMMAND: Final = "nexo.review"
STOP_COMMAND: Final = "nexo.stop"
ACCEPTED_COMMAND: Final = "nexo.completion.accepted"
COMMANDS: Final = (ACTION_COMMAND, DISMISS_COMMAND, REVIEW_COMMAND, STOP_COMMAND, ACCEPTED_COMMAND)

REWRITE_KIND: Final = "refactor.rewrite.nexo"
QUICKFIX_KIND: Final = "quickfix.nexo"
DISMISS_KIND: Final = "quickfix.nexo.dismiss"
ACTION_KINDS: Final = (
    *(f"{REWRITE_KIND}.{word}" for word in ("generate", "optimize", "document", "tests", "explain")),
    QUICKFIX_KIND,
    DISMISS_KIND,
)

_ENCODINGS: Final = ("utf-8", "utf-16", "utf-32")
_TRUE: Final = frozenset({"1", "true", "yes", "on", "t", "y"})


def initialize_result(params: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    """The answer to `initialize`, for its `params` as they came over the wire."""
    capabilities: dict[str, Any] = {
        "positionEncoding": position_encoding(params),
        "textDocumentSync": {"openClose": True, "change": 2, "save": {"includeText": False}},
        "hoverProvider": True,
        "codeActionProvider": {"codeActionKinds": list(ACTION_KINDS), "resolveProvider": False},
        "executeCommandProvider": {"commands": list(COMMANDS)},
        "inlineCompletionProvider": {},
        "workspace": {"workspaceFolders": {"supported": True, "changeNotifications": True}},
        "experimental": {"nexo": {"proposals": True, "status": True, "review": True}},
    }
    if announces_completion(params, environ):
        capabilities["completionProvider"] = completion_options()
    return {"capabilities": capabilities, "serverInfo": {"name": "nexo-lsp", "version": __version__}}


def position_encoding(params: Mapping[str, Any]) -> str:
    """The first encoding that the client prefers and the server knows; LSP's default is UTF-16."""
    offered = dig(params, "capabilities", "general", "positionEncodings")
    if isinstance(offered, list):
        for encoding in cast("list[object]", offered):
            if encoding in _ENCODINGS:
                return str(encoding)
    return "utf-16"


def completion_options() -> dict[str, Any]:
    """Options of `textDocument/completion`; no trigger characters, since ghost text has no natural ones."""
    return {"resolveProvider": False}


def announces_completion(params: Mapping[str, Any], environ: Mapping[str, str]) -> bool:
    """Whether `textDocument/completion` is announced at once.

    A client that can register dynamically hears of it later, when its settings ask for it; another one has
    to say so in its `initializationOptions`, or its user in the environment.
    """
    if dig(params, "capabilities", "textDocument", "completion", "dynamicRegistration") is True:
        return False
    word = environ.get("NEXO_COMPLETION_AS_COMPLETION_ITEMS")
    if word is not None:
        return word.strip().lower() in _TRUE
    return dig(section(params.get("initializationOptions")), "completion", "asCompletionItems") is True


def section(options: object) -> Mapping[str, Any]:
    """The settings in `initializationOptions`: the content of the section `nexo`, or that section itself."""
    if not isinstance(options, Mapping):
        return {}
    data = cast("Mapping[str, Any]", options)
    inner = data.get("nexo")
    return cast("Mapping[str, Any]", inner) if len(data) == 1 and isinstance(inner, Mapping) else data


def dig(data: object, *path: str) -> object:
    """The value at `path` in nested JSON objects, or None where one is missing or is not an object."""
    for key in path:
        if not isinstance(data, Mapping):
            return None
        data = cast("Mapping[str, object]", data).get(key)
    return data

"""What the connected client can do, read once from its `initialize` request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from nexo_lsp.server.capabilities import dig, position_encoding
from nexo_lsp.text import PositionEncoding


@dataclass(frozen=True, slots=True)
class ClientFeatures:
    """The capabilities that change what the server sends. The defaults are a client that can do nothing."""

    name: str = "unknown client"
    encoding: PositionEncoding = PositionEncoding.UTF16
    progress: bool = False
    """`window/workDoneProgress/create` is understood."""
    configuration: bool = False
    """`workspace/configuration` is answered."""
    registers_configuration: bool = False
    """`workspace/didChangeConfiguration` can be registered."""
    registers_completion: bool = False
    document_changes: bool = False
    """Edits may name the version that they are for."""
    create_files: bool = False
    show_document: bool = False
    action_literals: bool = False
    """Code actions may be more than bare commands."""
    hover_markdown: bool = False
    diagnostic_data: bool = False
    proposals: bool = False
    """`nexo/proposal` is understood: generated code is shown before it is applied."""
    status: bool = False
    """`nexo/status` notifications are wanted."""

    @classmethod
    def of(cls, params: Mapping[str, Any]) -> ClientFeatures:
        """Read the `params` of an `initialize` request, as they came over the wire."""

        def has(*path: str) -> bool:
            return dig(params, "capabilities", *path) is True

        resources = dig(params, "capabilities", "workspace", "workspaceEdit", "resourceOperations")
        literals = dig(params, "capabilities", "textDocument", "codeAction", "codeActionLiteralSupport")
        return cls(
            name=f"{dig(params, 'clientInfo', 'name') or 'unknown client'}",
            encoding=PositionEncoding(position_encoding(params)),
            progress=has("window", "workDoneProgress"),
            configuration=has("workspace", "configuration"),
            registers_configuration=has("workspace", "didChangeConfiguration", "dynamicRegistration"),
            registers_completion=has("textDocument", "completion", "dynamicRegistration"),
            document_changes=has("workspace", "workspaceEdit", "documentChanges"),
            create_files=isinstance(resources, list) and "create" in resources,
            show_document=has("window", "showDocument", "support"),
            action_literals=literals is not None,
            hover_markdown=_prefers_markdown(params),
            diagnostic_data=has("textDocument", "publishDiagnostics", "dataSupport"),
            proposals=has("experimental", "nexo", "proposals"),
            status=has("experimental", "nexo", "status"),
        )


def _prefers_markdown(params: Mapping[str, Any]) -> bool:
    formats = dig(params, "capabilities", "textDocument", "hover", "contentFormat")
    if not isinstance(formats, list):
        return False
    known = [word for word in cast("list[object]", formats) if word in ("markdown", "plaintext")]
    return bool(known) and known[0] == "markdown"

"""The same completions through `textDocument/completion`, for editors without inline completion."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lsprotocol import types

from nexo_lsp.server.capabilities import completion_options
from nexo_lsp.server.convert import to_range
from nexo_lsp.server.features.inline_completion import accepted_command, complete

if TYPE_CHECKING:
    from nexo_lsp.server.language_server import NexoServer

_REGISTRATION: Final = "nexo-completion"


def settings_changed(server: NexoServer) -> None:
    """Register or take back the feature with clients that allow it; others heard of it in `initialize`."""
    wanted = server.app.settings.completion.as_completion_items
    if server.client.registers_completion and wanted != server.completion_registered:
        server.completion_registered = wanted
        server.spawn(_register(server) if wanted else _unregister(server), "registration of completion")


async def _register(server: NexoServer) -> None:
    from nexo_lsp.server.features.settings import register

    registration = types.Registration(
        id=_REGISTRATION,
        method=types.TEXT_DOCUMENT_COMPLETION,
        register_options={"documentSelector": None, **completion_options()},
    )
    await register(server, registration)


async def _unregister(server: NexoServer) -> None:
    params = types.UnregistrationParams(
        unregisterations=[types.Unregistration(id=_REGISTRATION, method=types.TEXT_DOCUMENT_COMPLETION)]
    )
    await server.client_unregister_capability_async(params)


async def completion(server: NexoServer, params: types.CompletionParams) -> types.CompletionList | None:
    """`textDocument/completion`. The list is incomplete, so that the client asks again as the user types."""
    await server.settings.ready()
    if not server.app.settings.completion.as_completion_items:
        return None
    context = params.context
    explicit = context is None or context.trigger_kind is types.CompletionTriggerKind.Invoked
    found = await complete(server, params.text_document.uri, params.position, explicit=explicit)
    if found is None:
        return types.CompletionList(is_incomplete=True, items=[])
    snapshot, answer = found
    first = answer.text.strip().partition("\n")[0].strip()
    item = types.CompletionItem(
        label=first,
        label_details=types.CompletionItemLabelDetails(description="nexo"),
        kind=types.CompletionItemKind.Snippet if "\n" in answer.text else types.CompletionItemKind.Text,
        documentation=answer.text if "\n" in answer.text.strip() else None,
        # Clients filter by the word before the cursor; what the user typed of the line always matches itself.
        filter_text=snapshot.text[answer.span.start : answer.span.end] or answer.text,
        insert_text_format=types.InsertTextFormat.PlainText,
        insert_text_mode=types.InsertTextMode.AsIs,
        text_edit=types.TextEdit(to_range(snapshot.lines, answer.span, server.encoding), answer.text),
        command=accepted_command(answer),
    )
    return types.CompletionList(is_incomplete=True, items=[item])

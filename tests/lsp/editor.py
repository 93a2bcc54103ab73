"""A small editor for tests: it keeps buffers, applies edits as a real one does, and remembers what came.

Its own arithmetic of columns goes through encoded bytes, independent of the server's.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lsprotocol import types
from pytest_lsp import LanguageClient

WAIT_S = 30.0
"""How long a test waits for something before it fails; passing tests never wait so long."""

_UNIT = {"utf-8": ("utf-8", 1), "utf-16": ("utf-16-le", 2), "utf-32": ("utf-32-le", 4)}


class Buffer:
    """A text with its version."""

    def __init__(self, text: str, language_id: str, version: int = 1) -> None:
        self.text = text
        self.language_id = language_id
        self.version = version

    def lines(self) -> list[str]:
        return re.split(r"(?<=\n)|(?<=\r)(?!\n)", self.text)


class Editor:
    """One client session with its buffers."""

    def __init__(
        self, client: LanguageClient, capabilities: dict[str, Any], folder: Path, mock_log: Path
    ) -> None:
        self.client = client
        self.patience_s = WAIT_S
        self.capabilities = capabilities
        self.folder = folder
        self.mock_log = mock_log
        self.encoding = "utf-16"
        self.result: types.InitializeResult | None = None
        self.buffers: dict[str, Buffer] = {}
        self.published: list[types.PublishDiagnosticsParams] = []
        self.applied: list[types.ApplyWorkspaceEditParams] = []
        self.refusals: list[str] = []
        """Reasons with which the next edits are refused."""
        self.before_apply: Callable[[], None] | None = None
        """Called when an edit arrives, before its version is checked."""
        self.questions: list[types.ShowMessageRequestParams] = []
        self.reply: str | None = None
        """The title of the button that is pressed on questions; None dismisses them."""
        self.registered: dict[str, types.Registration] = {}
        self.configuration_requests = 0
        self.notifications: list[tuple[str, Any]] = []
        self._news = asyncio.Event()
        self._listen()

    # What the server sends.

    def _listen(self) -> None:
        client = self.client
        replace = client.protocol.fm.features

        def on(method: str) -> Callable[[Callable[[Any], Any]], None]:
            def register(handler: Callable[[Any], Any]) -> None:
                replace.pop(method, None)

                def heard(params: Any) -> Any:
                    answer = handler(params)
                    self._news.set()
                    return answer

                client.feature(method)(heard)

            return register

        def keep(method: str, also: Callable[[Any, Any], Any]) -> None:
            on(method)(lambda params: also(client, params))

        for method in (types.PROGRESS, types.WINDOW_SHOW_MESSAGE, types.WINDOW_LOG_MESSAGE):
            known = replace[method]
            keep(method, lambda _client, params, known=known: known(params))
        show = replace[types.WINDOW_SHOW_DOCUMENT]
        keep(types.WINDOW_SHOW_DOCUMENT, lambda _client, params: show(params))
        on(types.TEXT_DOCUMENT_PUBLISH_DIAGNOSTICS)(self._publish)
        on(types.WORKSPACE_APPLY_EDIT)(self._apply)
        on(types.WINDOW_SHOW_MESSAGE_REQUEST)(self._question)
        on(types.CLIENT_REGISTER_CAPABILITY)(self._register)
        on(types.CLIENT_UNREGISTER_CAPABILITY)(self._unregister)
        for method in ("nexo/status", "nexo/proposal"):
            on(method)(lambda params, method=method: self.notifications.append((method, params)))

    def _publish(self, params: types.PublishDiagnosticsParams) -> None:
        self.client.diagnostics[params.uri] = params.diagnostics
        self.published.append(params)

    def _question(self, params: types.ShowMessageRequestParams) -> types.MessageActionItem | None:
        self.questions.append(params)
        return types.MessageActionItem(self.reply) if self.reply else None

    def _register(self, params: types.RegistrationParams) -> None:
        self.registered.update({item.method: item for item in params.registrations})

    def _unregister(self, params: types.UnregistrationParams) -> None:
        for item in params.unregisterations:
            self.registered.pop(item.method, None)

    def _apply(self, params: types.ApplyWorkspaceEditParams) -> types.ApplyWorkspaceEditResult:
        if self.before_apply is not None:
            hook, self.before_apply = self.before_apply, None
            hook()
        reason = self.refusals.pop(0) if self.refusals else self._stale(params.edit)
        if reason is not None:
            return types.ApplyWorkspaceEditResult(applied=False, failure_reason=reason)
        self.applied.append(params)
        for change in params.edit.document_changes or ():
            if isinstance(change, types.CreateFile):
                assert change.uri not in self.buffers, "a file that exists was created"
                self.buffers[change.uri] = Buffer("", "", 0)
            elif isinstance(change, types.TextDocumentEdit):
                self._edit(change.text_document.uri, change.edits)
        for uri, edits in (params.edit.changes or {}).items():
            self._edit(uri, edits)
        return types.ApplyWorkspaceEditResult(applied=True)

    def _stale(self, edit: types.WorkspaceEdit) -> str | None:
        for change in edit.document_changes or ():
            if isinstance(change, types.TextDocumentEdit) and change.text_document.version is not None:
                version = self.buffers[change.text_document.uri].version
                if change.text_document.version != version:
                    return f"version {change.text_document.version} is not {version}"
        return None

    def _edit(self, uri: str, edits: Sequence[Any]) -> None:
        buffer = self.buffers.setdefault(uri, Buffer("", "", 0))
        places = [
            (self.offset(buffer, edit.range.start), self.offset(buffer, edit.range.end)) for edit in edits
        ]
        ordered = sorted(zip(places, edits, strict=True), key=lambda pair: pair[0], reverse=True)
        text = buffer.text
        for (start, end), edit in ordered:
            text = text[:start] + edit.new_text + text[end:]
        if buffer.version == 0:
            buffer.text = text
            return
        self.replace(uri, text)

    # Columns.

    def offset(self, buffer: Buffer, position: types.Position) -> int:
        codec, size = _UNIT[self.encoding]
        lines = buffer.lines()
        if position.line >= len(lines):
            return len(buffer.text)
        before = sum(len(line) for line in lines[: position.line])
        content = lines[position.line].rstrip("\r\n")
        encoded = content.encode(codec)
        assert position.character * size <= len(encoded), "a column beyond the line"
        return before + len(encoded[: position.character * size].decode(codec))

    def position(self, uri: str, offset: int) -> types.Position:
        codec, size = _UNIT[self.encoding]
        at = 0
        for number, line in enumerate(self.buffers[uri].lines()):
            if offset < at + len(line) or offset == at + len(line) == len(self.buffers[uri].text):
                return types.Position(number, len(line[: offset - at].encode(codec)) // size)
            at += len(line)
        raise AssertionError(f"no offset {offset}")

    def find(self, uri: str, text: str, *, end: bool = False) -> types.Position:
        """Where `text` stands in the buffer."""
        at = self.buffers[uri].text.index(text)
        return self.position(uri, at + (len(text) if end else 0))

    def range(self, uri: str, text: str) -> types.Range:
        return types.Range(self.find(uri, text), self.find(uri, text, end=True))

    def text_at(self, uri: str, range_: types.Range) -> str:
        buffer = self.buffers[uri]
        return buffer.text[self.offset(buffer, range_.start) : self.offset(buffer, range_.end)]

    # What the user does.

    def uri(self, name: str) -> str:
        return (self.folder / name).as_uri()

    def open(self, name: str, text: str, language_id: str = "python", version: int = 1) -> str:
        """Open a buffer; `name` is a file of the workspace, or a whole URI of another scheme."""
        uri = name if re.match(r"[a-z-]{2,}:", name) else self.uri(name)
        self.buffers[uri] = Buffer(text, language_id, version)
        item = types.TextDocumentItem(uri, language_id, version, text)
        self.client.text_document_did_open(types.DidOpenTextDocumentParams(item))
        return uri

    def close(self, uri: str) -> None:
        del self.buffers[uri]
        self.client.text_document_did_close(
            types.DidCloseTextDocumentParams(types.TextDocumentIdentifier(uri))
        )

    def save(self, uri: str) -> None:
        self.client.text_document_did_save(types.DidSaveTextDocumentParams(types.TextDocumentIdentifier(uri)))

    def insert(self, uri: str, at: int, text: str) -> None:
        """Type `text` at an offset."""
        position = self.position(uri, at)
        buffer = self.buffers[uri]
        buffer.text = buffer.text[:at] + text + buffer.text[at:]
        self._changed(uri, types.TextDocumentContentChangePartial(types.Range(position, position), text))

    def replace(self, uri: str, text: str) -> None:
        """Make the buffer's whole text `text`."""
        self.buffers[uri].text = text
        self._changed(uri, types.TextDocumentContentChangeWholeDocument(text))

    def _changed(self, uri: str, change: Any) -> None:
        buffer = self.buffers[uri]
        buffer.version += 1
        document = types.VersionedTextDocumentIdentifier(uri=uri, version=buffer.version)
        self.client.text_document_did_change(types.DidChangeTextDocumentParams(document, [change]))

    async def request(self, method: str, params: Any = None) -> Any:
        return await self.client.protocol.send_request_async(method, params)

    def start(self, method: str, params: Any, identity: int) -> asyncio.Task[Any]:
        """Send a request under an id of our own, so that it can be cancelled."""
        return asyncio.ensure_future(self.client.protocol.send_request_async(method, params, msg_id=identity))

    def cancel(self, identity: int) -> None:
        self.client.cancel_request(types.CancelParams(id=identity))

    async def review(self, uri: str) -> Any:
        return await self.request("nexo/review", {"textDocument": {"uri": uri}})

    async def hover(self, uri: str, text: str) -> types.Hover | None:
        params = types.HoverParams(types.TextDocumentIdentifier(uri), self.find(uri, text))
        return await self.client.text_document_hover_async(params)

    def inline_params(self, uri: str, position: types.Position, *, explicit: bool = True) -> Any:
        kind = types.InlineCompletionTriggerKind
        return types.InlineCompletionParams(
            context=types.InlineCompletionContext(kind.Invoked if explicit else kind.Automatic),
            text_document=types.TextDocumentIdentifier(uri),
            position=position,
        )

    async def actions(self, uri: str, text: str, only: Sequence[str] | None = None) -> list[types.CodeAction]:
        answer = await self.client.text_document_code_action_async(
            types.CodeActionParams(
                text_document=types.TextDocumentIdentifier(uri),
                range=self.range(uri, text),
                context=types.CodeActionContext(diagnostics=[], only=only),
            )
        )
        return list(answer or ())  # type: ignore[arg-type]

    async def action(self, uri: str, text: str, kind: str) -> types.CodeAction:
        """The one action of `kind` at `text`."""
        found = [action for action in await self.actions(uri, text, [kind]) if action.kind == kind]
        assert len(found) == 1, [action.title for action in found]
        return found[0]

    async def execute(self, command: types.Command) -> Any:
        return await self.client.workspace_execute_command_async(
            types.ExecuteCommandParams(command.command, command.arguments)
        )

    # Waiting.

    async def until(self, condition: Callable[[], Any], what: str = "the condition") -> Any:
        """Wait until `condition` is true; it is looked at whenever the server sends something."""

        async def wait() -> Any:
            while not (value := condition()):
                self._news.clear()
                await self._news.wait()
            return value

        try:
            return await asyncio.wait_for(wait(), self.patience_s)
        except TimeoutError:
            raise AssertionError(f"never happened: {what}; messages: {self.messages()}") from None

    def messages(self) -> list[str]:
        """What the user was shown."""
        return [message.message for message in self.client.messages]

    def engine_events(self, event: str | None = None) -> list[dict[str, Any]]:
        """What the mock engine wrote down: `start`, `finish`, `cancel` of each request."""
        if not self.mock_log.exists():
            return []
        lines = [json.loads(line) for line in self.mock_log.read_text(encoding="utf-8").splitlines()]
        return [line for line in lines if event is None or line["event"] == event]

    async def until_engine(self, event: str, count: int = 1) -> list[dict[str, Any]]:
        """Wait until the mock engine, which is in another process, wrote down `count` of `event`."""

        async def wait() -> list[dict[str, Any]]:
            # A file that another process writes can only be looked at again and again.
            while len(found := self.engine_events(event)) < count:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            return found

        try:
            return await asyncio.wait_for(wait(), WAIT_S)
        except TimeoutError:
            raise AssertionError(f"the engine never wrote {event!r}: {self.engine_events()}") from None

"""pygls's protocol, narrowed to what this server wants.

pygls keeps its own text documents, answers `initialize` from its own registry, sends tracebacks in error
answers, and leaves malformed or late requests unanswered. Here every built-in handler is taken out; the
table in `language_server.py` is the only one, and every request gets exactly one answer.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, cast

from cattrs import Converter, transform_error
from lsprotocol import types
from pygls.exceptions import JsonRpcException
from pygls.protocol import JsonRPCRequestMessage, JsonRPCResponseMessage, LanguageServerProtocol
from pygls.protocol.json_rpc import JsonRPCNotification

from nexo_lsp.errors import DocumentError
from nexo_lsp.server.capabilities import initialize_result
from nexo_lsp.server.custom_messages import PARAMS

if TYPE_CHECKING:
    from nexo_lsp.server.language_server import NexoServer

log = logging.getLogger(__name__)

_Id = int | str


class NexoProtocol(LanguageServerProtocol):
    """One connection's protocol state."""

    _server: NexoServer  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, server: NexoServer, converter: Converter) -> None:
        super().__init__(server, converter)
        self._begun = False
        self.fm.builtin_features.clear()  # pyright: ignore[reportUnknownMemberType] - pygls types it as dict

    @property
    def shutting_down(self) -> bool:
        """Whether the client asked for `shutdown`."""
        return self._shutdown

    @shutting_down.setter
    def shutting_down(self, value: bool) -> None:
        self._shutdown = value

    def _knows(self, method: str) -> bool:
        return method in self.fm.features  # pyright: ignore[reportUnknownMemberType] - as above

    def begin(self, params: Mapping[str, Any]) -> None:
        """Take in an `initialize` request's params, without answering."""
        self._begun = True
        self._server.begin(params)

    def receive(self, data: object) -> None:
        """Handle one decoded message."""
        if not isinstance(data, dict) or cast("dict[str, Any]", data).get("jsonrpc") != "2.0":
            log.warning("a message that is not JSON-RPC was ignored")
            self._refuse(None, types.ErrorCodes.InvalidRequest, "This is not a JSON-RPC 2.0 message")
            return
        message = cast("dict[str, Any]", data)
        method, identity = message.get("method"), cast("_Id | None", message.get("id"))
        if isinstance(method, str) and identity is not None:
            self._request(identity, method, message)
        elif isinstance(method, str):
            self._notification(method, message)
        elif identity is not None:
            self._response(identity, message)

    def refuse_garbage(self) -> None:
        """Answer a body that is not JSON."""
        self._refuse(None, types.ErrorCodes.ParseError, "The message's body is not JSON")

    def _request(self, identity: _Id, method: str, message: dict[str, Any]) -> None:
        params = message.setdefault("params", None)
        if method == types.INITIALIZE:
            if self._begun:
                self._refuse(identity, types.ErrorCodes.InvalidRequest, "The server is initialized already")
                return
            self.begin(params or {})
            self._send_response(identity, initialize_result(params or {}, self._server.environ))
        elif not self._begun:
            self._refuse(identity, types.ErrorCodes.ServerNotInitialized, "Send `initialize` first")
        elif self._shutdown:
            self._refuse(identity, types.ErrorCodes.InvalidRequest, "The server is shutting down")
        elif not self._knows(method):
            self._refuse(identity, types.ErrorCodes.MethodNotFound, f"Unknown method {method!r}")
        elif (structured := self._structured(message)) is None:
            self._refuse(identity, types.ErrorCodes.InvalidParams, f"Wrong parameters for {method!r}")
        else:
            self.handle_message(structured)

    def _notification(self, method: str, message: dict[str, Any]) -> None:
        if method == types.EXIT:
            self._server.leave()
        elif self._begun and not self._shutdown:
            if not self._knows(method) and method != types.CANCEL_REQUEST:
                log.debug("ignored the notification %s", method)
            elif (structured := self._structured(message)) is not None:
                self.handle_message(structured)

    def _response(self, identity: _Id, message: dict[str, Any]) -> None:
        if self._shutdown:
            # Whatever waited for it was ended.
            return
        if "error" not in message:
            # Some clients leave a null result out; what is structured next must have the key.
            message.setdefault("result", None)
        structured = self._structured(message)
        if structured is not None:
            self.handle_message(structured)
        elif (future := self._request_futures.pop(identity, None)) is not None:
            future.set_exception(JsonRpcException("The client's answer could not be understood"))

    def _structured(self, message: dict[str, Any]) -> Any | None:
        """Make typed values of a message; None if it does not fit its method's type."""
        try:
            return self.structure_message(message)
        except Exception as error:  # noqa: BLE001 - cattrs raises groups of whatever went wrong
            # What is wrong and where, without the message itself, which may hold the user's code.
            what = "; ".join(transform_error(error))
            log.warning("a message does not fit %s: %s", message.get("method", "its request"), what)
            return None

    def structure_message(self, data: dict[str, Any]) -> Any:
        """pygls's work without its logging of whole messages; our own messages are typed too."""
        method = data.get("method")
        if method is None:
            kind = types.ResponseErrorMessage if "error" in data else self._result_types.pop(data["id"], None)
            return self._converter.structure(data, kind or JsonRPCResponseMessage)
        params_class = PARAMS.get((method, "request" if "id" in data else "notification"))
        if params_class is not None:
            params = self._converter.structure(data.get("params"), params_class)
            if "id" in data:
                return JsonRPCRequestMessage(id=data["id"], method=method, jsonrpc="2.0", params=params)
            return JsonRPCNotification(method=method, jsonrpc="2.0", params=params)
        generic = JsonRPCRequestMessage if "id" in data else JsonRPCNotification
        return self._converter.structure(data, self.get_message_type(method) or generic)

    def _refuse(self, identity: _Id | None, code: types.ErrorCodes, message: str) -> None:
        error = types.ResponseError(code=code.value, message=message)
        self._send_data(types.ResponseErrorMessage(id=identity, error=error))

    def _send_handler_result(self, future: Future[Any], *, msg_id: _Id) -> None:
        self._request_futures.pop(msg_id, None)
        if future.cancelled():
            code = types.LSPErrorCodes.RequestCancelled.value
            self._send_response(
                msg_id, error=types.ResponseError(code=code, message="The request was cancelled")
            )
        elif (failure := future.exception()) is not None:
            self._send_response(msg_id, error=self._server.failures.response(failure))
        else:
            self._send_response(msg_id, future.result())

    def _check_handler_result(self, future: Future[Any]) -> None:
        if future.cancelled() or (error := future.exception()) is None:
            return
        if isinstance(error, DocumentError):
            # A client that speaks of documents which it did not open: nothing that its user could mend.
            log.warning("%s", error)
        else:
            self._server.failures.tell_once(error)

    def cancel_pending(self) -> None:
        """Cancel every request that is being worked on, and every answer that is waited for."""
        current = self.msg_id
        for identity, future in list(self._request_futures.items()):
            if identity != current and not future.done():
                future.cancel()

"""Bytes in and out: threads for pipes, asyncio for TCP, `websockets` for web sockets."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import os
import queue
import secrets
import signal
import sys
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import parse_qs, urlsplit

from nexo_lsp.server import logs
from nexo_lsp.server.framing import FrameError, FrameParser
from nexo_lsp.server.language_server import NexoServer, create_server
from nexo_lsp.server.stdio import write_all

if TYPE_CHECKING:
    from websockets.asyncio.server import ServerConnection
    from websockets.http11 import Request, Response
    from websockets.typing import Subprotocol

log = logging.getLogger(__name__)

_CHUNK: Final = 65536
_END_S: Final = 10.0
_SUBPROTOCOL: Final = "nexo-lsp"
_TOKEN_SUBPROTOCOL: Final = "nexo-token."  # noqa: S105 - a prefix, not a secret


class ThreadWriter:
    """Writes to a pipe from a thread, in order: a client that reads slowly must not stop the loop."""

    def __init__(self, sink: int, loop: asyncio.AbstractEventLoop, lost: Callable[[], None]) -> None:
        self._sink = sink
        self._loop = loop
        self._lost = lost
        self._queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="nexo-writer", daemon=True)
        self._thread.start()

    def write(self, data: bytes) -> None:
        """Put `data` in line."""
        self._queue.put(data)

    def close(self) -> None:
        """Write what is in line, then nothing more."""
        self._queue.put(None)

    def finish(self, timeout_s: float = 2.0) -> None:
        """`close`, and wait for it."""
        self.close()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while (data := self._queue.get()) is not None:
            try:
                write_all(self._sink, data)
            except OSError as error:
                log.info("the client reads no more: %s", error)
                with contextlib.suppress(RuntimeError):
                    self._loop.call_soon_threadsafe(self._lost)
                return


def receive_body(server: NexoServer, body: bytes | str) -> None:
    """Give one message body to the protocol. An error of ours never ends the connection."""
    try:
        message: object = json.loads(body)
    except ValueError:
        server.protocol.refuse_garbage()
        return
    try:
        server.protocol.receive(message)
    except Exception:
        log.exception("a message could not be handled")


def read_in_thread(server: NexoServer, source: int, parser: FrameParser, waiting: Sequence[bytes]) -> None:
    """Read a pipe from a thread until its end; `waiting` are bodies that were read before."""
    loop = asyncio.get_running_loop()
    for body in waiting:
        loop.call_soon(receive_body, server, body)

    def run() -> None:
        with contextlib.suppress(RuntimeError):  # the loop may be closed before the client closes its end
            try:
                while data := os.read(source, _CHUNK):
                    for body in parser.feed(data):
                        loop.call_soon_threadsafe(receive_body, server, body)
            except (OSError, FrameError):
                log.exception("reading from the client failed")
            loop.call_soon_threadsafe(server.leave)

    threading.Thread(target=run, name="nexo-reader", daemon=True).start()


def leave_on_signals(server: NexoServer) -> None:
    """End in an orderly way on SIGTERM and SIGINT, where the platform has them."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(NotImplementedError, RuntimeError):
            loop.add_signal_handler(number, server.leave)


def end_soon() -> None:
    """See to it that this process ends, even if a thread hangs: an editor's server must not linger."""

    def end() -> None:
        print("nexo-lsp: ended by force, a thread did not stop", file=sys.stderr)
        os._exit(1)

    timer = threading.Timer(_END_S, end)
    timer.daemon = True
    timer.start()


def serve_tcp(host: str, port: int, environ: Mapping[str, str] | None = None) -> int:
    """See `nexo_lsp.server.serve_tcp`."""
    environ = os.environ if environ is None else environ
    server_log = logs.start(environ)
    return _run(_serve_tcp(host, port, environ, server_log), server_log)


def serve_websocket(
    host: str,
    port: int,
    token: str | None = None,
    allowed_origins: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
) -> int:
    """See `nexo_lsp.server.serve_websocket`."""
    environ = os.environ if environ is None else environ
    gate = Gate(token or secrets.token_urlsafe(24), frozenset(allowed_origins))
    server_log = logs.start(environ)
    return _run(_serve_websocket(host, port, gate, environ, server_log), server_log)


def _run(main: Coroutine[Any, Any, None], server_log: logs.ServerLog) -> int:
    try:
        asyncio.run(main)
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        print(f"nexo-lsp: cannot listen: {error}", file=sys.stderr)
        return 1
    finally:
        server_log.close()
    return 0


def _announce(kind: str, host: str, port: int, extra: str = "") -> None:
    shown = f"[{host}]" if ":" in host else host
    print(f"nexo-lsp listens on {kind}://{shown}:{port}{extra}", file=sys.stderr, flush=True)


async def _serve_tcp(host: str, port: int, environ: Mapping[str, str], server_log: logs.ServerLog) -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server = create_server(environ, log_file=server_log.file)
        server.protocol.set_writer(writer)  # pyright: ignore[reportArgumentType]
        reading = asyncio.create_task(_read_stream(server, reader))
        try:
            await server.left.wait()
        finally:
            reading.cancel()
            await server.aclose()
            writer.close()

    listener = await asyncio.start_server(connected, host, port)
    _announce("tcp", host, listener.sockets[0].getsockname()[1])
    async with listener:
        await listener.serve_forever()


async def _read_stream(server: NexoServer, reader: asyncio.StreamReader) -> None:
    parser = FrameParser()
    try:
        while data := await reader.read(_CHUNK):
            for body in parser.feed(data):
                receive_body(server, body)
    except (OSError, FrameError):
        log.exception("reading from the client failed")
    server.leave()


class Gate:
    """Who may open a web socket: whoever knows the token, and, from a browser, an allowed page only.

    Any web page may open a socket to this machine, and browsers say which page it is (`Origin`). Programs
    send no origin; the token is what keeps other users of the machine out.
    """

    def __init__(self, token: str, allowed_origins: frozenset[str]) -> None:
        self.token = token
        self._origins = allowed_origins

    def refusal(self, path: str, headers: Mapping[str, str]) -> HTTPStatus | None:
        """Why a connection is refused, or None."""
        origin = headers.get("Origin")
        if origin is not None and origin not in self._origins:
            log.warning("a web socket from the origin %s was refused", origin)
            return HTTPStatus.FORBIDDEN
        if not any(
            hmac.compare_digest(offer.encode(), self.token.encode()) for offer in _offers(path, headers)
        ):
            log.warning("a web socket without the token was refused")
            return HTTPStatus.UNAUTHORIZED
        return None


def _offers(path: str, headers: Mapping[str, str]) -> list[str]:
    """Every token that a connection brings: in the query, the Authorization header, or a subprotocol."""
    offers = parse_qs(urlsplit(path).query).get("token", [])
    scheme, _, value = headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        offers.append(value.strip())
    for name in headers.get("Sec-WebSocket-Protocol", "").split(","):
        if name.strip().startswith(_TOKEN_SUBPROTOCOL):
            offers.append(name.strip().removeprefix(_TOKEN_SUBPROTOCOL))
    return offers


class SocketWriter:
    """Writes messages to a web socket in their order."""

    def __init__(self, socket: ServerConnection) -> None:
        self._socket = socket
        self._queue: asyncio.Queue[str] = asyncio.Queue()

    def write(self, data: bytes) -> None:
        """Put a message in line; JSON travels as text."""
        self._queue.put_nowait(data.decode())

    def close(self) -> None:
        """Nothing to do: the connection's handler closes it."""

    async def run(self) -> None:
        """Send what is in line, until cancelled or the socket closes."""
        from websockets.exceptions import ConnectionClosed

        with contextlib.suppress(ConnectionClosed):
            while True:
                await self._socket.send(await self._queue.get())


async def _serve_websocket(
    host: str, port: int, gate: Gate, environ: Mapping[str, str], server_log: logs.ServerLog
) -> None:
    from websockets.asyncio.server import serve

    def check(connection: ServerConnection, request: Request) -> Response | None:
        status = gate.refusal(request.path, request.headers)
        return None if status is None else connection.respond(status, f"{status.phrase}\n")

    async def connected(socket: ServerConnection) -> None:
        server = create_server(environ, log_file=server_log.file)
        writer = SocketWriter(socket)
        server.protocol.set_writer(writer, include_headers=False)
        sending = asyncio.create_task(writer.run())
        reading = asyncio.create_task(_read_socket(server, socket))
        try:
            await server.left.wait()
        finally:
            # The tasks are not the server's own, since closing the server must not cut its last answer off.
            reading.cancel()
            sending.cancel()
            await server.aclose()

    async with serve(
        connected, host, port, process_request=check, select_subprotocol=_subprotocol, max_size=None
    ) as listener:
        bound = next(iter(listener.sockets)).getsockname()[1]
        _announce("ws", host, bound, f"/?token={gate.token}")
        await listener.serve_forever()


def _subprotocol(connection: ServerConnection, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    # A browser drops a connection whose server chooses none of the subprotocols that it offered.
    ours = cast("Subprotocol", _SUBPROTOCOL)
    return ours if ours in offered else next(iter(offered), None)


async def _read_socket(server: NexoServer, socket: ServerConnection) -> None:
    from websockets.exceptions import ConnectionClosed

    with contextlib.suppress(ConnectionClosed):
        while True:
            receive_body(server, await socket.recv())
    server.leave()

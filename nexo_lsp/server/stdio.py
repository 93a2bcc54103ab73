"""Serving one client on standard input and output.

`initialize` is answered before pygls, lsprotocol and the rest are imported (together most of a second on a
slow machine), so that the editor goes on at once; what it sends meanwhile waits in the pipe. This module must
therefore import nothing but the standard library's small modules and `capabilities`, `framing`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from nexo_lsp.server.capabilities import initialize_result
from nexo_lsp.server.framing import FrameError, FrameParser, frame

if TYPE_CHECKING:
    from nexo_lsp.server.logs import ServerLog

_CHUNK = 65536


@dataclass(slots=True)
class _Door:
    """The client's two streams, and what was read from them so far."""

    source: int
    sink: int
    parser: FrameParser = field(default_factory=FrameParser)
    waiting: list[bytes] = field(default_factory=list[bytes])


def serve(environ: Mapping[str, str] | None = None) -> int:
    """Serve until the client leaves. The exit code is LSP's: 0 after `shutdown`, else 1."""
    environ = os.environ if environ is None else environ
    source, sink = take_streams()
    door = _Door(source, sink)
    try:
        params = _answer_initialize(door, environ)
    except (FrameError, BrokenPipeError) as error:
        print(f"nexo-lsp: {error}", file=sys.stderr)
        return 1
    if params is None:
        return 1
    import asyncio

    from nexo_lsp.server import logs

    log = logs.start(environ)
    try:
        return asyncio.run(_serve(door, params, environ, log))
    except KeyboardInterrupt:
        return 130
    finally:
        log.close()


def take_streams() -> tuple[int, int]:
    """Private descriptors of the client's streams; gives (source, sink).

    Descriptor 1 then leads to stderr and 0 to nothing, so that neither a library that prints nor a child
    process that reads can get between the client and us.
    """
    source, sink = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    try:
        os.dup2(2, 1)
    except OSError:
        os.dup2(nothing, 1)
    os.close(nothing)
    return source, sink


def _answer_initialize(door: _Door, environ: Mapping[str, str]) -> dict[str, Any] | None:
    """Read up to `initialize`, answer it, and give its params. None when the client left first."""
    while True:
        data = os.read(door.source, _CHUNK)
        if not data:
            return None
        door.waiting += door.parser.feed(data)
        while door.waiting:
            message = _object(door.waiting.pop(0))
            if message.get("method") == "exit":
                return None
            if "id" not in message:
                continue
            if message.get("method") == "initialize":
                params = cast("dict[str, Any]", message.get("params") or {})
                _answer(door.sink, message["id"], {"result": initialize_result(params, environ)})
                return params
            error = {"code": -32002, "message": "Send `initialize` first"}
            _answer(door.sink, message["id"], {"error": error})


def _object(body: bytes) -> dict[str, Any]:
    try:
        value: object = json.loads(body)
    except ValueError:
        return {}
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _answer(sink: int, identity: object, outcome: dict[str, Any]) -> None:
    write_all(sink, frame({"jsonrpc": "2.0", "id": identity, **outcome}))


def write_all(sink: int, data: bytes) -> None:
    """Write all of `data`; a pipe takes it in parts."""
    view = memoryview(data)
    while view:
        view = view[os.write(sink, view) :]


async def _serve(door: _Door, params: dict[str, Any], environ: Mapping[str, str], log: ServerLog) -> int:
    import asyncio

    from nexo_lsp.server.language_server import create_server
    from nexo_lsp.server.lifecycle import watch_parent
    from nexo_lsp.server.transports import ThreadWriter, end_soon, leave_on_signals, read_in_thread

    server = create_server(environ, log_file=log.file)
    writer = ThreadWriter(door.sink, asyncio.get_running_loop(), server.leave)
    server.protocol.set_writer(writer)
    leave_on_signals(server)
    server.protocol.begin(params)
    if isinstance(pid := params.get("processId"), int):
        server.spawn(watch_parent(server, pid), "watch of the client's process")
    read_in_thread(server, door.source, door.parser, door.waiting)
    await server.left.wait()
    end_soon()
    code = 0 if server.protocol.shutting_down else 1
    await server.aclose()
    writer.finish()
    return code

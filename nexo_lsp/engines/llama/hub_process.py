"""The process of the hub: opens the door, lets clients in, and ends some seconds after the last one left.

It is started by `shared.py` and outlives whoever started it. Its standard output says one line, when clients
can come; everything that is printed later goes to its log.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from nexo_lsp.engines.llama.channel import Channel, ChannelError, Door
from nexo_lsp.engines.llama.endpoint import Endpoint, EndpointFile
from nexo_lsp.engines.llama.hosting import claim_stdout, ignore_interrupts, return_memory
from nexo_lsp.engines.llama.hub import Guest, Hub
from nexo_lsp.engines.llama.messages import BadMessage, decode_to_worker, encode
from nexo_lsp.engines.llama.waiting import prepare_openmp

_log = logging.getLogger(__name__)

READY = b"ready\n"
LOG_LIMIT = 1024 * 1024
"""When the log is longer than this (bytes), only its end is kept."""
_LOG_KEEP = 64 * 1024
_LOG_LOOK_S = 10.0
_HANDSHAKE_S = 10.0
# How long a worker that does not notice that it is to end is waited for.
_END_GRACE_S = 5.0


@dataclass(frozen=True, slots=True)
class HubOptions:
    """What the hub's starter tells it, as JSON in its only argument."""

    folder: str
    """Where the endpoint file and the socket go; the user's alone."""
    key: str
    log: str
    grace_s: float = 3.0
    """How long after the last client it ends."""
    first_s: float = 20.0
    """How long it waits for its first client."""

    def argument(self) -> str:
        """Itself as one argument of a command line."""
        return json.dumps(asdict(self))


def main() -> None:
    """Host a worker for many clients in this process."""
    options = HubOptions(**json.loads(sys.argv[1]))
    ignore_interrupts()
    _start_log(Path(options.log))
    starter = claim_stdout()
    if sys.platform != "win32":
        os.umask(0o077)
    return_memory()
    prepare_openmp(os.environ)
    hub = Hub()
    door = Door(Path(options.folder))
    endpoint = Endpoint(door.address, os.getpid(), secrets.token_hex(32))
    file = EndpointFile(Path(options.folder), options.key)
    file.write(endpoint)
    _thread("door", lambda: _receive_clients(door, hub, bytes.fromhex(endpoint.token)))
    with suppress(OSError):
        starter.write(READY)
        starter.close()
    # Clients can come while these are read: the library of the models is large.
    from nexo_lsp.engines.llama.worker import Worker

    def keep() -> None:
        hub.wait_until_deserted(options.first_s, options.grace_s)
        file.withdraw(endpoint)
        hub.end()
        time.sleep(_END_GRACE_S)
        _log.error("the worker does not end by itself")
        door.close()
        os._exit(1)

    _thread("keeper", keep)
    try:
        worker = Worker(hub.receive, hub.send)
        hub.attach(worker.notice)
        worker.run()
    finally:
        file.withdraw(endpoint)
        door.close()
    _log.info("the last client has left")


def _receive_clients(door: Door, hub: Hub, token: bytes) -> None:
    while True:
        try:
            channel = door.accept()
        except (OSError, EOFError) as error:
            _log.warning("nobody could be let in: %s", error)
            time.sleep(0.1)
            continue
        _thread("client", lambda channel=channel: _serve(channel, hub, token))


def _serve(channel: Channel, hub: Hub, token: bytes) -> None:
    """One client, from its handshake to its end; this thread reads, another one writes."""
    try:
        channel.demand(token, _HANDSHAKE_S)
    except ChannelError as error:
        _log.warning("somebody was not let in: %s", error)
        channel.close()
        return
    guest = hub.join(channel.sever)
    if guest is None:
        channel.close()
        return
    writer = _thread("writer", lambda: _write(channel, hub, guest))
    _read(channel, hub, guest)
    # What was said before it left is not worth waiting for.
    hub.left(guest)
    channel.sever()
    writer.join()
    channel.close()


def _read(channel: Channel, hub: Hub, guest: Guest) -> None:
    try:
        while hub.told(guest, decode_to_worker(channel.receive())):
            pass
    except BadMessage as error:
        hub.left(guest, str(error))
    except EOFError:
        _log.debug("client %d hung up", guest.number)


def _write(channel: Channel, hub: Hub, guest: Guest) -> None:
    try:
        while (message := guest.outbox.take()) is not None:
            channel.send(encode(message))
    except OSError:
        hub.left(guest)


def _thread(name: str, work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, name=name, daemon=True)
    thread.start()
    return thread


# The log.


def _start_log(path: Path) -> None:
    """Let descriptor 2 append to `path`, whoever prints there, and keep that file small."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    # What a crash in native code says is all that there will be of it.
    faulthandler.enable()
    _thread("log", lambda: _bound_log(path))


def _bound_log(path: Path) -> None:
    while True:
        time.sleep(_LOG_LOOK_S)
        with suppress(OSError):
            trim(path)


def trim(path: Path, limit: int = LOG_LIMIT, keep: int = _LOG_KEEP) -> None:
    """Cut `path` down to its last `keep` bytes if it has more than `limit`. Raises `OSError`."""
    if path.stat().st_size <= limit:
        return
    with path.open("r+b") as file:
        file.seek(-keep, os.SEEK_END)
        end = file.read()
        file.truncate(0)
        file.seek(0)
        file.write(end)


if __name__ == "__main__":
    main()

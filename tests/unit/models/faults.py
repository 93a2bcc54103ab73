"""What can go wrong between a model and the disk, made to happen: servers that cut, disks that are full."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Generator
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from nexo_lsp.models.catalog import CatalogEntry
from tests.conftest import IN_CI

ROOT = Path(__file__).parents[3]
WAIT_S = 60


@dataclass
class FaultyServer:
    """Serves files over HTTP, with Range, until it is told to do wrong."""

    files: dict[str, bytes] = field(default_factory=dict[str, bytes])
    pages: dict[str, str] = field(default_factory=dict[str, str])
    """HTML, which is never cut or held."""
    cuts: list[int] = field(default_factory=list[int])
    """One answer each: after so many bytes of its body the connection is closed."""
    seen: threading.Event | None = None
    """If set, a connection that is to be cut stays open until somebody has seen its bytes."""
    hold_after: int | None = None
    """After so many bytes it waits for the gate."""
    gate: threading.Event = field(default_factory=threading.Event)
    sent: threading.Event = field(default_factory=threading.Event)
    """Set when what comes before a hold was sent."""
    announced: str = ""
    """The SHA-256 that is told of every file to those who ask for its head, as the Hub does."""
    requests: list[str] = field(default_factory=list[str])
    """Paths of files that were asked for."""
    url: str = ""

    def announce(self, handler: BaseHTTPRequestHandler) -> None:
        body = self.files.get(handler.path)
        handler.send_response(200 if body is not None else 404)
        handler.send_header("Content-Length", str(len(body or b"")))
        handler.send_header("X-Linked-Size", str(len(body or b"")))
        handler.send_header("X-Linked-ETag", f'"{self.announced}"')
        handler.end_headers()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        if (page := self.pages.get(handler.path)) is not None:
            self._head(handler, 200, len(page), "text/html")
            handler.wfile.write(page.encode())
            return
        body = self.files.get(handler.path)
        if body is None:
            self._head(handler, 404, 0, "text/plain")
            return
        self.requests.append(handler.path)
        match = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("range", ""))
        start = int(match[1]) if match is not None else 0
        handler.send_response(206 if match is not None else 200)
        if match is not None:
            handler.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        handler.send_header("Content-Length", str(len(body) - start))
        handler.send_header("Content-Type", "application/octet-stream")
        handler.end_headers()
        self._send(handler, body[start:])

    def _send(self, handler: BaseHTTPRequestHandler, rest: bytes) -> None:
        if self.cuts:
            handler.wfile.write(rest[: self.cuts.pop(0)])
            handler.wfile.flush()
            if self.seen is not None:
                self.seen.wait(WAIT_S)
                self.seen.clear()
            handler.close_connection = True
        elif self.hold_after is not None:
            handler.wfile.write(rest[: self.hold_after])
            handler.wfile.flush()
            self.sent.set()
            self.gate.wait(WAIT_S)
            handler.wfile.write(rest[self.hold_after :])
        else:
            handler.wfile.write(rest)

    def _head(self, handler: BaseHTTPRequestHandler, status: int, length: int, kind: str) -> None:
        handler.send_response(status)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(length))
        handler.end_headers()


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        # A client that is killed in the middle is what these tests are about.
        assert isinstance(sys.exception(), OSError), sys.exception()


@contextlib.contextmanager
def served() -> Generator[FaultyServer, None, None]:
    """A running server."""
    faulty = FaultyServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            faulty.answer(self)

        def do_HEAD(self) -> None:
            faulty.announce(self)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            pass

    server = _Quiet(("127.0.0.1", 0), Handler)
    faulty.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield faulty
    finally:
        faulty.gate.set()
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Generator[Path, None, None]:
    """A real file system of `size` bytes at `folder`.

    Only root may mount one: others skip what needs it. In CI, where everybody is root, that fails.
    """
    folder.mkdir()
    try:
        _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder))
    except (OSError, subprocess.CalledProcessError) as error:
        if IN_CI and os.name == "posix" and os.geteuid() == 0:
            pytest.fail(f"no tmpfs can be mounted: {error}")
        pytest.skip("no tmpfs can be mounted here; it takes root on Linux")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextlib.contextmanager
def read_only(folder: Path) -> Generator[None, None, None]:
    """The small disk at `folder`, which root cannot write either meanwhile."""
    _mount("-o", "remount,ro", str(folder))
    try:
        yield
    finally:
        _mount("-o", "remount,rw", str(folder))


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True)


_PULL = """
import json, os, signal, sys
from pathlib import Path
from nexo_lsp.models.catalog import CatalogEntry, MirrorPart
from nexo_lsp.models.references import is_reference
from nexo_lsp.models.store import ModelStore

values = json.loads(sys.argv[2])
values["mirror"] = tuple(MirrorPart(*part) for part in values["mirror"])
entry = CatalogEntry(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})
todo = sys.argv[3]

def report(at):
    global todo
    print(at.done_bytes, at.note, flush=True)
    if todo and at.phase == "download" and at.done_bytes > 0:
        sign, todo = todo, ""
        os.kill(os.getpid(), getattr(signal, sign))

catalog = () if is_reference(entry.name) else (entry,)
print(ModelStore(Path(sys.argv[1]), os.environ, catalog=catalog).pull(entry.name, report), flush=True)
"""


class Pullers:
    """Other processes that pull; each prints `BYTES NOTE` as it goes and the path at the end."""

    def __init__(self, folder: Path, environ: dict[str, str]) -> None:
        self._folder = folder
        self._environ = environ
        self._started: list[subprocess.Popen[str]] = []

    def start(self, entry: CatalogEntry, sign: str = "") -> subprocess.Popen[str]:
        """`sign` is a signal (`SIGSTOP`, `SIGKILL`) that it sends itself at the first bytes that come."""
        process = subprocess.Popen(
            [sys.executable, "-c", _PULL, str(self._folder), json.dumps(asdict(entry)), sign],
            env={**self._environ, "NO_PROXY": "127.0.0.1", "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._started.append(process)
        return process

    def end(self) -> None:
        for process in self._started:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()

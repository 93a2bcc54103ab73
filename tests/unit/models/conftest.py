"""What the tests of model files share: a web server that can misbehave, small models, wheels with parts."""

from __future__ import annotations

import base64
import hashlib
import os
import random
import re
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from nexo_lsp.models.catalog import CatalogEntry, MirrorPart
from nexo_lsp.models.files import CHUNK

PAYLOAD = random.Random(7).randbytes(5 * CHUNK + 321)
FILE = "tiny-coder.gguf"
HUB_PATH = f"/org/tiny-GGUF/resolve/main/{FILE}"


@dataclass
class WebServer:
    """Serves bytes over HTTP with Range, and does wrong what a test asks it to."""

    files: dict[str, bytes] = field(default_factory=dict[str, bytes])
    requests: list[tuple[str, Mapping[str, str]]] = field(default_factory=list)
    heads: list[str] = field(default_factory=list[str])
    statuses: list[int] = field(default_factory=list[int])
    """Answered instead, one for each request, while there are any."""
    drops: list[int] = field(default_factory=list[int])
    """After so many bytes of the body the connection is closed, one for each request."""
    redirect: str = ""
    commit: str = ""
    """If set, requests for heads are answered like the Hub does: by saying what the file is."""
    headers: dict[str, str] = field(default_factory=dict[str, str])
    ranges: bool = True
    silent: bool = False
    """Takes the request and answers nothing until the gate opens."""
    hold_after: int | None = None
    """Sends so many bytes and then waits for the gate."""
    started: threading.Event = field(default_factory=threading.Event)
    gate: threading.Event = field(default_factory=threading.Event)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def ranges_asked(self) -> list[str | None]:
        return [headers.get("range") for _, headers in self.requests]

    def announce(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer a request for a head as the Hub does for a large file."""
        self.heads.append(handler.path)
        self.started.set()
        if self.silent:
            self.gate.wait()
            return
        body = self.files.get(handler.path)
        status = self.statuses.pop(0) if self.statuses else 302 if body is not None else 404
        handler.send_response(status)
        handler.send_header("Content-Length", "0")
        if body is not None and self.commit:
            handler.send_header(
                "Location", f"{self.url.replace('127.0.0.1', 'localhost')}/blobs{handler.path}"
            )
            handler.send_header("X-Linked-Size", str(len(body)))
            handler.send_header("X-Linked-ETag", f'"{hashlib.sha256(body).hexdigest()}"')
            handler.send_header("X-Repo-Commit", self.commit)
        handler.end_headers()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        headers = {key.lower(): value for key, value in handler.headers.items()}
        self.requests.append((handler.path, headers))
        self.started.set()
        if self.silent:
            self.gate.wait()
            return
        body = self.files.get(handler.path)
        status = self.statuses.pop(0) if self.statuses else 200 if body is not None else 404
        if self.redirect:
            handler.send_response(302)
            handler.send_header("Location", self.redirect + handler.path)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        if status != 200 or body is None:
            handler.send_response(status)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        self._send(handler, body, headers.get("range"))

    def _send(self, handler: BaseHTTPRequestHandler, body: bytes, wanted: str | None) -> None:
        start = 0
        if wanted is not None and self.ranges:
            match = re.fullmatch(r"bytes=(\d+)-", wanted)
            assert match is not None
            start = int(match[1])
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            handler.send_response(200)
        handler.send_header("Content-Length", str(len(body) - start))
        for name, value in self.headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        rest = body[start:]
        if self.drops:
            handler.wfile.write(rest[: self.drops.pop(0)])
            handler.close_connection = True
        elif self.hold_after is not None:
            handler.wfile.write(rest[: self.hold_after])
            handler.wfile.flush()
            self.gate.wait()
            handler.wfile.write(rest[self.hold_after :])
        else:
            handler.wfile.write(rest)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        # A client that turns away in the middle is what several tests are about.
        assert isinstance(sys.exception(), OSError), sys.exception()


def _serve() -> Iterator[WebServer]:
    web = WebServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            web.answer(self)

        def do_HEAD(self) -> None:
            web.announce(self)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            pass

    server = _Server(("127.0.0.1", 0), Handler)
    web.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield web
    finally:
        web.gate.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    """Plays Hugging Face; nothing is served until a test says so."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield from _serve()


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    """Plays any other web server."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield from _serve()


@pytest.fixture
def payload() -> bytes:
    return PAYLOAD


@pytest.fixture
def hub_path() -> str:
    return HUB_PATH


@pytest.fixture
def make_entry() -> Callable[..., CatalogEntry]:
    def make(
        data: bytes = PAYLOAD, mirror: tuple[MirrorPart, ...] = (), urls: tuple[str, ...] = ()
    ) -> CatalogEntry:
        return CatalogEntry(
            name="tiny-coder",
            file=FILE,
            size=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            hub_repo="org/tiny-GGUF",
            hub_file=FILE,
            mirror=mirror,
            urls=urls,
            license="Apache-2.0",
            description="For tests.",
            context_tokens=1024,
        )

    return make


@pytest.fixture
def environ(tmp_path: Path, hub: WebServer) -> dict[str, str]:
    """This process's environment, with the Hub and pip's index played by the test, and no token."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "NEXO_", "PIP_"))}
    kept.pop("TRANSFORMERS_OFFLINE", None)
    wheels = tmp_path / "index"
    wheels.mkdir()
    return {
        **kept,
        "HF_ENDPOINT": hub.url,
        "HF_HUB_CACHE": str(tmp_path / "hub-cache"),
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(wheels),
        "PIP_CONFIG_FILE": os.devnull,
    }


@pytest.fixture
def publish(environ: dict[str, str]) -> Callable[[str, bytes], MirrorPart]:
    """Put a wheel that holds one part into the folder that pip looks in."""
    numbers = iter(range(1, 100))

    def write(dist: str, data: bytes) -> MirrorPart:
        part = f"{dist}/data/part{next(numbers):02}.bin"
        info = f"{dist}-1.0.dist-info"
        files = {
            f"{dist}/__init__.py": b"raise AssertionError('a part must never be imported')\n",
            part: data,
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {dist}\nVersion: 1.0\n".encode(),
            f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }
        record = "".join(f"{name},sha256={_urlsafe(body)},{len(body)}\n" for name, body in files.items())
        files[f"{info}/RECORD"] = (record + f"{info}/RECORD,,\n").encode()
        wheel = Path(environ["PIP_FIND_LINKS"]) / f"{dist}-1.0-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, body in files.items():
                archive.writestr(name, body)
        return MirrorPart(dist, "1.0", len(data))

    return write


def _urlsafe(body: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(body).digest()).rstrip(b"=").decode()


_PULL = """
import sys, os
from pathlib import Path
from nexo_lsp.models.catalog import CatalogEntry
from nexo_lsp.models.store import ModelStore

folder, size, sha256 = sys.argv[1:]
entry = CatalogEntry(
    name="tiny-coder", file="tiny-coder.gguf", size=int(size), sha256=sha256, hub_repo="org/tiny-GGUF",
    hub_file="tiny-coder.gguf", mirror=(), urls=(), license="", description="", context_tokens=1,
)
store = ModelStore(Path(folder), os.environ, catalog=(entry,))
print(store.pull("tiny-coder", lambda at: print(at.done_bytes, at.note, flush=True)))
"""


@pytest.fixture
def pulling_process(
    environ: dict[str, str],
) -> Iterator[Callable[[Path, CatalogEntry], subprocess.Popen[str]]]:
    """Start another process that pulls; it prints `BYTES NOTE` as it goes and the path at the end."""
    started: list[subprocess.Popen[str]] = []

    def start(folder: Path, entry: CatalogEntry) -> subprocess.Popen[str]:
        root = Path(__file__).parents[3]
        process = subprocess.Popen(
            [sys.executable, "-c", _PULL, str(folder), str(entry.size), entry.sha256],
            env={**environ, "NO_PROXY": "127.0.0.1", "PYTHONPATH": str(root)},
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()

"""A registry of one image, on the loopback interface: what `docker pull` asks for, and no more."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
_CONFIG = "application/vnd.docker.container.image.v1+json"
_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
_LAYER_BYTES = 4_000_000


def _layer() -> bytes:
    """Bytes that do not compress, so that there is something to be fetched."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        entry = tarfile.TarInfo("data")
        entry.size = _LAYER_BYTES
        archive.addfile(entry, io.BytesIO(os.urandom(_LAYER_BYTES)))
    return buffer.getvalue()


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _described(kind: str, data: bytes) -> dict[str, str | int]:
    return {"mediaType": kind, "size": len(data), "digest": _digest(data)}


@contextmanager
def registry() -> Iterator[tuple[str, threading.Event]]:
    """The name of the image, and an event: the second half of the layer is sent when it is set."""
    layer = _layer()
    packed = gzip.compress(layer, 1)
    config = json.dumps(
        {"architecture": "amd64", "os": "linux", "config": {"Entrypoint": ["/absent"]}}
        | {"rootfs": {"type": "layers", "diff_ids": [_digest(layer)]}}
    ).encode()
    manifest = json.dumps(
        {"schemaVersion": 2, "mediaType": _MANIFEST, "config": _described(_CONFIG, config)}
        | {"layers": [_described(_LAYER, packed)]}
    ).encode()
    blobs = {_digest(config): config, _digest(packed): packed}
    go_on = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            word = self.path.rpartition("/")[2]
            data = manifest if "/manifests/" in self.path else blobs.get(word, b"{}")
            self.send_response(200)
            self.send_header("Docker-Distribution-Api-Version", "registry/2.0")
            self.send_header("Docker-Content-Digest", _digest(data))
            self.send_header("Content-Type", _MANIFEST if data is manifest else "application/octet-stream")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if body:
                half = len(data) // 2 if data is packed else 0
                self.wfile.write(data[:half])
                if half:
                    go_on.wait(60)
                self.wfile.write(data[half:])

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}/nexo/tiny:1", go_on
    finally:
        go_on.set()
        server.shutdown()
        thread.join()
        server.server_close()

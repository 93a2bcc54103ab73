"""The LSP face: the only place that knows pygls and lsprotocol.

The starters below import what they need when they are called, so that a process started by an editor answers
its first message before anything large is imported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def serve_stdio(environ: Mapping[str, str] | None = None) -> int:
    """Serve one client on standard input and output until it leaves; gives the process's exit code."""
    from nexo_lsp.server.stdio import serve

    return serve(environ)


def serve_tcp(host: str = "127.0.0.1", port: int = 0, environ: Mapping[str, str] | None = None) -> int:
    """Serve any number of clients over TCP until interrupted; port 0 takes a free one (named on stderr)."""
    from nexo_lsp.server.transports import serve_tcp as serve

    return serve(host, port, environ)


def serve_websocket(
    host: str = "127.0.0.1",
    port: int = 0,
    token: str | None = None,
    allowed_origins: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
) -> int:
    """Serve any number of clients over web sockets until interrupted.

    A connection needs `token` (made up and printed on stderr when None), and, if it comes from a browser, an
    origin among `allowed_origins`.
    """
    from nexo_lsp.server.transports import serve_websocket as serve

    return serve(host, port, token, allowed_origins, environ)

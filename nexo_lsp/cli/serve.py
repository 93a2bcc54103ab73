"""`nexo-lsp serve`: the language server, over standard input and output or over a socket."""

from __future__ import annotations

import os
from ipaddress import ip_address
from typing import Annotated

import typer

from nexo_lsp.cli.exit_codes import complain, reported
from nexo_lsp.errors import UsageError

_DEFAULT_HOST = "127.0.0.1"


def serve(
    stdio: Annotated[
        bool, typer.Option("--stdio", help="Standard input and output: the default; editors add it.")
    ] = False,
    tcp: Annotated[
        str | None,
        typer.Option(metavar="[HOST:]PORT", help="Listen for TCP connections (port 0: any free one)."),
    ] = None,
    ws: Annotated[
        str | None, typer.Option(metavar="[HOST:]PORT", help="Listen for web sockets (port 0: any free one).")
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="NEXO_WS_TOKEN",
            help="What a web socket has to present; without it one is made up and printed on stderr.",
        ),
    ] = None,
    origin: Annotated[
        list[str] | None,
        typer.Option(help="A web page's origin that may connect by web socket; may be given several times."),
    ] = None,
) -> None:
    """Run the language server.

    Sockets listen on this machine only, unless HOST says otherwise.
    """
    with reported():
        if sum((stdio, tcp is not None, ws is not None)) > 1:
            raise UsageError("give one of --stdio, --tcp and --ws")
        from nexo_lsp import server

        if tcp is not None:
            host, port = address(tcp)
            raise typer.Exit(server.serve_tcp(host, port, os.environ))
        if ws is not None:
            host, port = address(ws)
            raise typer.Exit(server.serve_websocket(host, port, token, tuple(origin or ()), os.environ))
        raise typer.Exit(server.serve_stdio(os.environ))


def address(text: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT`, `[IPv6]:PORT` or `PORT`. Raises `UsageError`."""
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") or _DEFAULT_HOST
    if not port.isdecimal() or int(port) > 65535:
        raise UsageError(f"{text!r} is not HOST:PORT, such as 127.0.0.1:2087")
    if not _is_loopback(host):
        complain(f"warning: {host} can be reached from other machines")
    return host, int(port)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False

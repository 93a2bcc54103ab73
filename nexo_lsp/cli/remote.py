"""`nexo-lsp remote`: keys of servers, and whether they answer.

Exit codes: 0 done, 1 a server does not answer (or there is no keyring), 2 no such address.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nexo_lsp import settings
from nexo_lsp.cli.exit_codes import ExitCode, reported
from nexo_lsp.cli.terminal import visible
from nexo_lsp.engines.remote.endpoint import Address, Endpoint, RemoteOptions
from nexo_lsp.engines.remote.engine import RemoteEngine
from nexo_lsp.errors import EngineError, SettingsError, UsageError
from nexo_lsp.folders import folders
from nexo_lsp.generation import ChatPrompt, InfillPrompt, InfillTemplate, Message, Request, Role
from nexo_lsp.runtime.keys import Key, Keys, variables
from nexo_lsp.runtime.providers.remote import options_of

app = typer.Typer(
    help="Keys of servers that answer for this machine, and whether they do.", no_args_is_help=True
)

_Url = Annotated[str, typer.Argument(metavar="URL", help="The server's address: https://host/v1")]


@app.command()
def login(url: _Url) -> None:
    """Ask for the key of a server, and keep it in the system's keyring."""
    with reported():
        host = _host(url)
        # A script may hand it in.
        asked = sys.stdin.isatty()
        key = typer.prompt(f"The key of {host}", hide_input=True) if asked else sys.stdin.readline()
        key = key.strip()
        if not key:
            raise UsageError("There is no key in what was entered; nothing was kept.")
        keys().store(host, key)
        typer.echo(f"The key of {host} is in your keyring.")


@app.command()
def logout(url: _Url) -> None:
    """Take the key of a server out of the system's keyring."""
    with reported():
        host = _host(url)
        found = keys().remove(host)
        typer.echo(f"The key of {host} is gone." if found else f"There was no key of {host} in your keyring.")
        left = [name for name in variables(host) if os.environ.get(name)]
        if left:
            typer.echo(f"The variable {left[0]} still holds one.")


@app.command()
def test(
    url: Annotated[
        str, typer.Argument(metavar="[URL]", help="A server; without it those of nexo.remote.endpoints.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Ask each server what it is and for one token. Nothing of yours is sent."""
    with reported():
        remote = settings.effective(folders(os.environ).settings_file, os.environ).settings.remote
        urls = (url,) if url else remote.endpoints
        if not urls:
            raise UsageError("There is no server to test; name one, or set nexo.remote.endpoints.")
        for one in urls:
            _host(one)
        tried = asyncio.run(try_all(urls, replace(options_of(remote), attempts=1)))
        if as_json:
            typer.echo(json.dumps([asdict(one) for one in tried], indent=2))
        else:
            _print(tried)
            if not remote.enabled:
                typer.echo("nexo.remote.enabled is off: nothing is sent to any server while you work.")
        if not all(one.ok for one in tried):
            raise typer.Exit(ExitCode.FOUND)


def keys() -> Keys:
    """Where keys are."""
    return Keys(os.environ)


@dataclass(frozen=True, slots=True)
class Tried:
    """What came of asking one server."""

    host: str
    key: str
    """Where its key came from; never the key."""
    ok: bool = False
    problem: str = ""
    kind: str = ""
    model: str = ""
    models: tuple[str, ...] = ()
    context_tokens: int | None = None
    infill: str = ""
    first_token_ms: float | None = None


async def try_all(urls: tuple[str, ...], options: RemoteOptions) -> list[Tried]:
    """Ask each server for one token. Raises `UsageError` for what is no address."""
    return list(await asyncio.gather(*(_try(url, options) for url in urls)))


async def _try(url: str, options: RemoteOptions) -> Tried:
    host = _host(url)
    # The keyring may ask the user to unlock it.
    key = await asyncio.to_thread(keys().find, host, general=not Address.of(url).exposed)
    tried = Tried(host, _origin(key))
    engine = RemoteEngine([Endpoint(url, key.value if key is not None else None)], options)
    try:
        begun = time.monotonic()
        hello = ChatPrompt((Message(Role.USER, "Say: ok"),))
        async for _ in engine.stream(Request(hello, max_tokens=1)):
            tried = replace(tried, first_token_ms=tried.first_token_ms or (time.monotonic() - begun) * 1000)
        tried = replace(tried, ok=True)
        await _try_gap(engine)
    except EngineError as error:
        tried = replace(tried, problem=str(error))
    finally:
        picture: dict[str, Any] = engine.status().extra["endpoints"][0]
        await engine.close()
    return replace(
        tried,
        kind=picture.get("kind", ""),
        model=picture.get("model", ""),
        models=picture.get("models", ()),
        context_tokens=picture.get("contextTokens"),
        infill=picture.get("infill", ""),
    )


async def _try_gap(engine: RemoteEngine) -> None:
    """Whether it fills gaps is found out by asking; what it cannot do is no failure."""
    gap = InfillPrompt("one = 1\ntwo = ", "\nthree = 3\n", InfillTemplate(("{prefix}", "{suffix}")))
    try:
        async for _ in engine.stream(Request(gap, max_tokens=1)):
            pass
    except EngineError:
        return


def _print(tried: list[Tried]) -> None:
    table = Table("Server", "State", "Program", "Model", "Context", "Gaps", "Key", "First token", box=None)
    for one in tried:
        table.add_row(
            one.host,
            Text("answers", "green") if one.ok else Text("no answer", "bold red"),
            one.kind,
            Text(visible(one.model)),
            f"{one.context_tokens:,}" if one.context_tokens else "",
            one.infill or ("no" if one.ok else ""),
            one.key,
            f"{one.first_token_ms:.0f} ms" if one.first_token_ms is not None else "",
        )
    console = Console(highlight=False)
    console.print(table)
    for one in tried:
        if one.problem:
            console.print(Text(f"{one.host}: {visible(one.problem)}"), soft_wrap=True)
        others = [name for name in one.models if name != one.model]
        if others:
            console.print(Text(visible(f"{one.host} has also: {', '.join(others)}")), soft_wrap=True)


def _origin(key: Key | None) -> str:
    if key is None:
        return "none"
    return f"environment ({key.variable})" if key.origin == "environment" else "keyring"


def _host(url: str) -> str:
    try:
        return Address.of(url).host
    except SettingsError as error:
        raise UsageError(str(error)) from error

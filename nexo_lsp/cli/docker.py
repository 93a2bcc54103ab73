"""`nexo-lsp docker`: what containers leave behind when a server dies.

Exit codes: 0 done, 3 neither Docker nor Podman can be used.
"""

from __future__ import annotations

import os

import typer

from nexo_lsp.cli.exit_codes import reported
from nexo_lsp.folders import folders
from nexo_lsp.runtime.providers.containers.server import open_daemon, tidy
from nexo_lsp.settings import effective

app = typer.Typer(help="Containers in which an engine runs (nexo.docker).", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keep `prune` a word of its own, also while it is the only one."""


@app.command()
def prune() -> None:
    """Remove containers and networks whose server is gone.

    The next container that is started does so too. What belongs to a process that runs, or to another user,
    is left alone.
    """
    with reported():
        resolved = effective(folders(os.environ).settings_file, os.environ)
        daemon = open_daemon(resolved.settings.docker.socket, os.environ)
        try:
            names = tidy(daemon)
        finally:
            daemon.close()
        for name in names:
            typer.echo(f"removed {name}")
        if not names:
            typer.echo("nothing was left behind")

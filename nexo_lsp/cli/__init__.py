"""The command line: one file a command."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from nexo_lsp import __version__


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that `arguments` (by default the process's own) name; ends the process."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    # An editor waits for its server, and a script for a version: these need no command-line library.
    if words in (["serve"], ["serve", "--stdio"]):
        from nexo_lsp.server import serve_stdio

        sys.exit(serve_stdio(os.environ))
    if words == ["--version"]:
        sys.stdout.write(f"nexo-lsp {__version__}\n")
        sys.exit()
    from nexo_lsp.cli.program import build

    build(words)(words, prog_name="nexo-lsp")

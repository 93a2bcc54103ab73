"""The command line: one file a command."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Sequence

from nexo_lsp import __version__

# What writing into a file on a full or failing disk ends with.
_UNWRITABLE = frozenset({errno.ENOSPC, errno.EIO, getattr(errno, "EDQUOT", errno.ENOSPC)})


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that `arguments` (by default the process's own) name; ends the process."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _run(words)
    except KeyboardInterrupt:
        # The commands end by Ctrl-C in their own way; this is for the moments before and after them.
        sys.stderr.write("nexo-lsp: stopped\n")
        sys.exit(130)
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        sys.stderr.write(f"nexo-lsp: the output cannot be written ({error.strerror})\n")
        sys.exit(1)


def _run(words: list[str]) -> None:
    # An editor waits for its server, and a script for a version: these need no command-line library.
    if words in (["serve"], ["serve", "--stdio"]):
        from nexo_lsp.server import serve_stdio

        sys.exit(serve_stdio(os.environ))
    if words == ["--version"]:
        sys.stdout.write(f"nexo-lsp {__version__}\n")
        sys.stdout.flush()
        sys.exit()
    _forgive_encodings()
    from nexo_lsp.cli.program import build

    build(words)(words, prog_name="nexo-lsp")


def _forgive_encodings() -> None:
    """Let a character that the terminal or a pipe cannot write become `?` instead of an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")

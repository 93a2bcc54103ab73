"""Asks the installed llama.cpp what it can do, in a process of its own (`probe.py` is its other side)."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping
from typing import Any, cast

from nexo_lsp.engines.llama.messages import Load, encode
from nexo_lsp.engines.llama.process import python_command

_TIMEOUT_S = 120.0

Probe = Callable[[Load], Mapping[str, Any]]
"""The report of `probe.py`. Raises `ProbeFailed`."""


class ProbeFailed(Exception):
    """The library could not be asked; the text is for people."""


def probe(wish: Load) -> Mapping[str, Any]:
    """Ask in another process: a library that crashes takes its process along. Blocks for about a second."""
    command = python_command("nexo_lsp.engines.llama.probe", encode(wish).decode("ascii").strip())
    flags = getattr(subprocess, "CREATE_NO_WINDOW", 0)
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
            check=False,
            creationflags=flags,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ProbeFailed(str(error)) from error
    last = (done.stdout.strip().splitlines() or [""])[-1]
    try:
        said: Any = json.loads(last)
    except ValueError:
        said = None
    if done.returncode == 0 and isinstance(said, Mapping):
        return cast("Mapping[str, Any]", said)
    raise ProbeFailed((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1])

"""The user's own settings file: the same for every editor, and beyond the reach of any workspace."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from nexo_lsp.settings.layers import Layer, Problem, Resolved, from_environment, resolve


def from_file(path: Path) -> tuple[Layer, tuple[Problem, ...]]:
    """The settings in the TOML file `path`, without the prefix of their names, and what is wrong.

    A file that is not there is empty; one that cannot be read is told as a problem, and empty too.
    """
    origin = str(path)
    try:
        return Layer(origin, tomllib.loads(path.read_text(encoding="utf-8-sig"))), ()
    except FileNotFoundError:
        return Layer(origin, {}), ()
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return Layer(origin, {}), (
            Problem(origin, f"the settings file cannot be read ({reason}); none of it counts"),
        )


def effective(path: Path, environ: Mapping[str, str], layers: Sequence[Layer] = ()) -> Resolved:
    """What is in force: the user's file, then `layers` (an editor's), then the environment."""
    file, problems = from_file(path)
    resolved = resolve([file, *layers, from_environment(environ)])
    return replace(resolved, problems=(*problems, *resolved.problems))

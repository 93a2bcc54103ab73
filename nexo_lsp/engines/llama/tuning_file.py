"""Where the figures of `nexo-lsp doctor --tune` are remembered, and for what."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from nexo_lsp.engines.llama.tuning import Drafting, Figures, best_threads, drafting
from nexo_lsp.engines.llama.waiting import processors

_log = logging.getLogger(__name__)

_FILE = "tuning.json"
_VERSION = 2
_MOST = 32
"""So many models are remembered; the one whose figures are oldest goes first."""


@dataclass(frozen=True, slots=True)
class Tuned:
    """Figures of one model, and when they were taken."""

    on: date
    figures: Figures
    draft: str = ""
    """Which second model was measured, as `identity` has it."""

    @property
    def threads(self) -> int:
        """The best thread count."""
        return best_threads(self.figures)

    def drafting(self, draft: Path) -> Drafting | None:
        """What the model at `draft` is expected to bring; None if it was not measured."""
        return drafting(self.figures) if self.draft and self.draft == identity(draft) else None


class TuningFile:
    """The file in the state folder. A file that cannot be read, or is none of ours, counts as empty."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / _FILE

    def find(self, model: Path) -> Tuned | None:
        """What is known of the model at this path, with this build of llama.cpp, on so many processors."""
        return self._read().get(key_of(model))

    def remember(self, model: Path, tuned: Tuned) -> None:
        """Write it down in place of what was known. Raises `OSError`."""
        entries = {**self._read(), key_of(model): tuned}
        newest = sorted(entries.items(), key=lambda item: item[1].on, reverse=True)[:_MOST]
        content = {"version": _VERSION, "models": {key: _plain(entry) for key, entry in newest}}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f"{_FILE}.", dir=self.path.parent)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump(content, file, indent=1)
            Path(name).replace(self.path)
        except OSError:
            with suppress(OSError):
                Path(name).unlink()
            raise

    def _read(self) -> dict[str, Tuned]:
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            _log.warning("What doctor --tune remembered in %s cannot be read: %s", self.path, error)
            return {}
        try:
            content: Any = json.loads(text)
            if not isinstance(content, Mapping) or content.get("version") != _VERSION:  # pyright: ignore[reportUnknownMemberType]
                raise ValueError("of another version")
            return _entries_type().validate_python(content.get("models"))  # pyright: ignore[reportUnknownMemberType]
        except (ValueError, RecursionError) as error:
            why = "of another form" if isinstance(error, ValidationError) else str(error)
            _log.warning("What doctor --tune remembered in %s is ignored: %s", self.path, why)
            return {}


def key_of(model: Path) -> str:
    """What figures depend on: the file, the build, and how many processors there are."""
    return f"{identity(model)}, llama-cpp-python {_build()}, {processors()} processors"


@cache
def _build() -> str:
    # Looked up once: it is found by parsing a file of some hundred lines.
    try:
        return importlib.metadata.version("llama-cpp-python")
    except importlib.metadata.PackageNotFoundError:
        return "?"


def identity(model: Path) -> str:
    """A model file, by name, size and time: to read it would take longer than what is remembered saves."""
    try:
        status = model.stat()
    except OSError:
        return model.name
    return f"{model.name} {status.st_size} {status.st_mtime_ns}"


def _plain(tuned: Tuned) -> dict[str, Any]:
    return {**asdict(tuned), "on": tuned.on.isoformat()}


@cache
def _entries_type() -> TypeAdapter[dict[str, Tuned]]:
    return TypeAdapter(dict[str, Tuned])

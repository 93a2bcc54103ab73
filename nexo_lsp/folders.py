"""Where the project keeps its files. `NEXO_HOME` moves all of them under one folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import platformdirs

_APP = "nexo-lsp"
UNPACKED = "unpacked"
"""The folder inside the models folder for copies that an engine makes of models for itself."""


@dataclass(frozen=True, slots=True)
class Folders:
    """The folders of one user. None of them is made before something is written there."""

    models: Path
    """Model files: large, and fetched again if they are lost."""
    state: Path
    """The database and what must survive an update."""
    logs: Path
    config: Path
    """What the user writes: settings and a catalogue of their own."""

    @property
    def settings_file(self) -> Path:
        """The user's own settings, for every editor."""
        return self.config / "settings.toml"

    @property
    def catalog_file(self) -> Path:
        """Models that the user adds to the catalogue."""
        return self.config / "models.toml"

    @property
    def prefixes(self) -> Path:
        """Evaluated prompts that hold nothing of the user's: made again if they are lost."""
        return self.models.parent / "prefixes"

    @property
    def unpacked(self) -> Path:
        """Copies of models in the form that an engine computes with: made again if they are lost."""
        return self.models / UNPACKED


def expanded(text: str) -> Path:
    """The path that a person wrote, `~` and `~name` resolved.

    Where such a home is not known the text stays as it is, so that whoever looks for it can name it.
    """
    path = Path(text)
    try:
        return path.expanduser()
    except RuntimeError:
        return path


def folders(environ: Mapping[str, str]) -> Folders:
    """The folders for an environment: under `NEXO_HOME` if it is set, else where the platform wants them."""
    home = environ.get("NEXO_HOME", "").strip()
    if home:
        root = expanded(home)
        return Folders(
            models=root / "models", state=root / "state", logs=root / "logs", config=root / "config"
        )
    dirs = platformdirs.PlatformDirs(_APP, appauthor=False)
    return Folders(
        models=Path(dirs.user_cache_dir) / "models",
        state=Path(dirs.user_state_dir),
        logs=Path(dirs.user_log_dir),
        config=Path(dirs.user_config_dir),
    )

"""What a check of `nexo-lsp doctor` says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warning", "problem"]


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    area: str
    name: str
    state: State
    value: str
    mend: str = ""
    """A command, or a sentence, that puts it right; empty if nothing has to be done."""

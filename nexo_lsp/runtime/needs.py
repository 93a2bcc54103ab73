"""What an operation needs of an engine, and what the user permits."""

from __future__ import annotations

from dataclasses import dataclass

from nexo_lsp.generation import Operation


@dataclass(frozen=True, slots=True)
class Needs:
    """What one kind of operation needs."""

    operation: Operation
    infill: bool = False
    """Whether it cannot do without fill-in-the-middle."""
    json_schema: bool = False
    """Whether its answers have to follow a schema."""
    tokens_per_s: float = 0.0
    """A slower engine does not meet the need."""
    parameters: float = 0.0
    """Billions; a smaller model does not meet the need."""


NEEDS: dict[Operation, Needs] = {
    # A suggestion of 16 tokens that takes more than a second comes when the next keys are typed already.
    Operation.COMPLETION: Needs(Operation.COMPLETION, infill=True, tokens_per_s=15),
    # Somebody waits for 50 to 150 tokens.
    Operation.ACTION: Needs(Operation.ACTION, tokens_per_s=8),
    # Nobody waits, and what is found depends on the model: with 0.5B most of it comes from the examples in
    # the prompt (benchmarks/results/review.md).
    Operation.REVIEW: Needs(Operation.REVIEW, json_schema=True, tokens_per_s=2, parameters=3),
}
"""Speeds are rules of thumb for what people put up with, not measurements."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What the user permits."""

    kind: str = "auto"
    """The engine that the settings name."""
    offline: bool = False
    """Whether nothing may need a network."""
    remote: bool = False
    """Whether the user's own settings let prompts leave this machine."""
    trusted: bool = False
    """Whether the user trusts the workspace."""
    memory_bytes: int = 0
    """What an engine may take of this machine's memory; 0 leaves it to what is free."""

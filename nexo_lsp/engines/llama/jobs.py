"""One request inside the worker, as far as it has come."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from nexo_lsp.engines.llama.drafting import Lookup, Source
from nexo_lsp.engines.llama.native import Slice
from nexo_lsp.engines.llama.sampling import Sampler
from nexo_lsp.engines.llama.text_stream import TextStream
from nexo_lsp.generation import Request, Usage


@dataclass(slots=True, eq=False)
class Job:
    """A request, its tokens so far, and the sequence that holds the evaluated ones."""

    id: int
    client: int
    request: Request
    tokens: list[int]
    """The prompt, and behind it what was made."""
    prompt_tokens: int
    static_tokens: int
    end_tokens: frozenset[int]
    sampler: Sampler
    lookup: Lookup | None
    text: TextStream
    arrived: float
    order: int
    sequence: int | None = None
    evaluated: int = 0
    """How many of `tokens` the sequence holds."""
    cached: int = 0
    made: int = 0
    started: float | None = None
    prompt_s: float = 0.0
    decode_s: float = 0.0
    json_text: str = ""
    rank: tuple[int, int] = field(init=False)
    """The smaller, the more urgent."""

    def __post_init__(self) -> None:
        self.rank = (self.request.priority, self.order)

    @property
    def session(self) -> str:
        """The request's session, told apart by client: two windows type in two places."""
        return f"{self.request.session}:{self.client}" if self.request.session else ""

    @property
    def pending(self) -> int:
        """Tokens that are known and not evaluated yet."""
        return len(self.tokens) - self.evaluated

    @property
    def writes(self) -> bool:
        """Whether the next step gives a token."""
        return self.sequence is not None and self.pending == 1

    @property
    def reads(self) -> bool:
        """Whether a prompt (or, after it lost its sequence, all that it had) is being evaluated."""
        return self.sequence is not None and self.pending > 1

    @property
    def room(self) -> int:
        """Cells that it may come to need, with some for tokens that only write the prompt's end again."""
        return self.prompt_tokens + self.request.max_tokens + 4

    def expired(self, now: float) -> bool:
        """Whether its deadline has passed."""
        limit = self.request.deadline_s
        return limit is not None and now - self.arrived >= limit

    def usage(self, now: float) -> Usage:
        """What it cost so far."""
        return Usage(
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached,
            completion_tokens=self.made,
            queue_s=(now if self.started is None else self.started) - self.arrived,
            prompt_s=self.prompt_s,
            decode_s=self.decode_s,
        )

    def completes(self, text: str) -> bool:
        """Whether with `text` an answer in JSON is whole: its grammar would allow nothing but the end."""
        if self.request.json_schema is None:
            return False
        self.json_text += text
        if not self.json_text.endswith(("}", "]")):
            return False
        try:
            json.loads(self.json_text)
        except ValueError:
            return False
        return True


@dataclass(frozen=True, slots=True)
class Part:
    """What one job gets evaluated in a step, and in which row of the batch it begins."""

    job: Job
    tokens: Sequence[int]
    guesses: Sequence[int]
    row: int
    at_end: bool
    source: Source = Source.PREDICTION
    """Where the guesses come from."""

    def slice(self) -> Slice:
        """What llama.cpp is asked for."""
        assert self.job.sequence is not None  # noqa: S101 -- only jobs with a sequence are planned
        wanted = 1 + len(self.guesses) if self.at_end else 0
        return Slice(self.job.sequence, self.job.evaluated, (*self.tokens, *self.guesses), wanted)

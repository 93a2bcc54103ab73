"""From a request to a job: its tokens, its sampler, and what may be guessed of its answer."""

from __future__ import annotations

from collections.abc import Sequence

from nexo_lsp.engines.llama.drafting import Lookup
from nexo_lsp.engines.llama.healing import Healing, HealingState
from nexo_lsp.engines.llama.jobs import Job
from nexo_lsp.engines.llama.messages import Failure
from nexo_lsp.engines.llama.native import Model
from nexo_lsp.engines.llama.prompts import PromptError, Prompts
from nexo_lsp.engines.llama.sampling import GrammarError, Sampler
from nexo_lsp.engines.llama.text_stream import TextStream
from nexo_lsp.generation import InfillPrompt, Request


class Refused(Exception):
    """A request that cannot be served; the text is for the user."""

    def __init__(self, failure: Failure, message: str) -> None:
        super().__init__(message)
        self.failure = failure


class Intake:
    """Makes jobs for one model and a context of so many tokens."""

    def __init__(self, model: Model, context_tokens: int) -> None:
        self._model = model
        self._context_tokens = context_tokens
        self._prompts = Prompts(model)
        self._healing = Healing(model)
        self._arrivals = 0

    def prepare(self) -> None:
        """Begin in the background what the first completion would wait for."""
        self._healing.prepare()

    def close(self) -> None:
        """End the work in the background: the model may go away now."""
        self._healing.close()

    def job(self, job_id: int, request: Request, client: int, now: float) -> Job:
        """The job of `request`. Raises `Refused`."""
        try:
            tokens, rest = self._prompts.healed(request.prompt, self._healing)
            if not tokens:
                raise PromptError("An empty prompt cannot be answered.")
            if len(tokens) + request.max_tokens > self._context_tokens:
                raise Refused(Failure.PROMPT_TOO_LONG, self._too_long(len(tokens), request))
            ends = self._prompts.end_tokens(request.prompt)
            static = self._prompts.static_tokens(request.prompt)
            sampler = Sampler(self._model, request, HealingState(self._healing, rest))
        except (PromptError, GrammarError) as error:
            raise Refused(Failure.BAD_REQUEST, str(error)) from error
        self._arrivals += 1
        return Job(
            id=job_id,
            client=client,
            request=request,
            tokens=tokens,
            prompt_tokens=len(tokens),
            static_tokens=static,
            end_tokens=ends,
            sampler=sampler,
            lookup=self._lookup(request, tokens, rest),
            text=TextStream(request.stop),
            arrived=now,
            order=self._arrivals,
        )

    def _lookup(self, request: Request, tokens: Sequence[int], rest: bytes) -> Lookup | None:
        """What may be guessed: the prediction, and for completions what the code around repeats.

        An answer that has to repeat the prompt's last bytes begins with them, and so does its prediction.
        """
        if not self._model.can_forget:
            return None
        known = ""
        if request.prediction:
            known = rest.decode("utf-8", "ignore") + request.prediction
        prompt = tokens if isinstance(request.prompt, InfillPrompt) else ()
        if not known and not prompt:
            return None
        return Lookup(self._model.tokenize(known, special=False) if known else (), prompt)

    def _too_long(self, tokens: int, request: Request) -> str:
        return (
            f"The prompt ({tokens} tokens) and the answer (up to {request.max_tokens}) do not fit into the "
            f"engine's context of {self._context_tokens} tokens; nexo.engine.contextTokens sets it."
        )

"""Which token comes next: greedy or drawn, free or held to a grammar."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from nexo_lsp.engines.llama.grammar import UnsupportedSchema, grammar
from nexo_lsp.engines.llama.healing import HealingState
from nexo_lsp.engines.llama.native import Context, Library, Model, NativeError
from nexo_lsp.generation import Request

# The usual defaults of the field (llama.cpp's own `common_params_sampling`).
_TOP_K = 40
_TOP_P = 0.95
# A grammar is asked about this many of the best candidates before it is asked about the whole vocabulary:
# 152,000 candidates take it some 20 ms and more, these far less than one.
_SHORTLIST = 256
_SEED_MASK = 0xFFFFFFFF

_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


class GrammarError(Exception):
    """A JSON schema that cannot be made into a grammar; the text is for the user."""


class Sampler:
    """Chooses the tokens of one answer; remembers what a grammar needs to remember."""

    def __init__(self, model: Model, request: Request, healing: HealingState) -> None:
        """Raises `GrammarError` for a schema that cannot be used."""
        self._model = model
        self._healing = healing
        self._library: Library = model.library
        self._c = model.library.c
        self._vocab_size = model.vocab_size
        self._chain: Any = None
        self._grammar: Any = None
        self._bias = _bias(model, request.logit_bias)
        if request.json_schema is not None:
            self._grammar = _grammar(model, request.json_schema)
        if request.temperature > 0:
            self._chain = self._make_chain(request.temperature, request.seed)

    def close(self) -> None:
        """Free the native parts."""
        for sampler in (self._chain, self._grammar):
            if sampler is not None:
                self._c.llama_sampler_free(sampler)
        self._chain = self._grammar = None

    def sample(self, context: Context, row: int) -> tuple[int, bytes]:
        """The token after `row` of the last evaluation, and what it adds to the answer.

        Rows are asked for in the answer's order, each once. A token adds nothing while it only writes the end
        of the prompt again.
        """
        logits = context.logits(row)
        if self._bias is not None:
            ids, values = self._bias
            logits = logits.copy()
            logits[ids] += values
        if self._healing:
            # What is written again is written greedily: it is not the answer yet.
            allowed = self._healing.allowed()
            if not len(allowed):
                raise NativeError("no token of this vocabulary goes on with what the prompt ends with")
            token = int(allowed[np.argmax(logits[allowed])])
        else:
            token = self._choose(logits)
        if self._grammar is not None:
            self._c.llama_sampler_accept(self._grammar, token)
        return token, self._healing.advance(self._model.piece(token))

    def _choose(self, logits: npt.NDArray[np.float32]) -> int:
        if self._chain is None:
            best = int(np.argmax(logits))
            if self._grammar is None or self._fits(best, logits):
                return best
        elif self._grammar is None:
            return self._draw(_candidates(logits, _shortlist(logits)))
        # The grammar refuses the best one, or a token is drawn: take the best that it does not refuse.
        for ids in (_shortlist(logits), np.arange(self._vocab_size, dtype=np.int32)):
            candidates = _candidates(logits, ids)
            self._apply(self._grammar, candidates)
            allowed = candidates[np.isfinite(candidates["logit"])]
            if len(allowed):
                return self._draw(allowed)
        raise NativeError("the grammar allows no token at all")

    def _fits(self, token: int, logits: npt.NDArray[np.float32]) -> bool:
        candidate = _candidates(logits, np.array([token], dtype=np.int32))
        self._apply(self._grammar, candidate)
        return bool(np.isfinite(candidate["logit"][0]))

    def _draw(self, candidates: npt.NDArray[Any]) -> int:
        if self._chain is None:
            return int(candidates["id"][np.argmax(candidates["logit"])])
        view = self._apply(self._chain, candidates)
        return int(view.data[view.selected].id)

    def _apply(self, sampler: Any, candidates: npt.NDArray[Any]) -> Any:
        """Run a native sampler over `candidates`, in place; the view that it filled is returned."""
        c = self._c
        view = c.llama_token_data_array(
            data=candidates.ctypes.data_as(c.llama_token_data_p),
            size=len(candidates),
            selected=-1,
            sorted=False,
        )
        c.llama_sampler_apply(sampler, ctypes.byref(view))
        return view

    def _make_chain(self, temperature: float, seed: int) -> Any:
        c = self._c
        chain = c.llama_sampler_chain_init(c.llama_sampler_chain_default_params())
        for sampler in (
            c.llama_sampler_init_top_k(_TOP_K),
            c.llama_sampler_init_top_p(_TOP_P, 1),
            c.llama_sampler_init_temp(temperature),
            c.llama_sampler_init_dist(seed & _SEED_MASK),
        ):
            c.llama_sampler_chain_add(chain, sampler)
        return chain


def _shortlist(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.int32]:
    if len(logits) <= _SHORTLIST:
        return np.arange(len(logits), dtype=np.int32)
    return np.argpartition(logits, -_SHORTLIST)[-_SHORTLIST:].astype(np.int32)


def _candidates(logits: npt.NDArray[np.float32], ids: npt.NDArray[np.int32]) -> npt.NDArray[Any]:
    candidates = np.zeros(len(ids), dtype=_CANDIDATE)
    candidates["id"] = ids
    candidates["logit"] = logits[ids]
    return candidates


def _bias(
    model: Model, wishes: Sequence[tuple[str, float]]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]] | None:
    tokens = [(model.tokenize(text, special=False), value) for text, value in wishes]
    single = {ids[0]: value for ids, value in tokens if len(ids) == 1}
    if not single:
        return None
    return np.fromiter(single.keys(), np.int32), np.fromiter(single.values(), np.float32)


def _grammar(model: Model, schema: str) -> Any:
    try:
        text = grammar(schema).encode()
    except (UnsupportedSchema, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise GrammarError(f"The answer's JSON schema cannot be used: {error}.") from error
    native = model.library.c.llama_sampler_init_grammar(model.vocab, text, b"root")
    if not native:
        raise GrammarError("The answer's JSON schema gives a grammar that llama.cpp does not accept.")
    return native

"""Token healing: letting the model write the last token of a prompt again.

A prompt that ends inside a token shows the model something it never saw in training: after ` val` it expects
what follows the whole token ` val`, which is hardly ever `ue`. So the last tokens are taken back, and the
first tokens of the answer are held to those that repeat the bytes taken back, or go beyond them. What goes
beyond is the answer. (The idea is known from the "guidance" project.)

Spaces are the usual case: Qwen's vocabulary writes an indented `return` as three spaces and ` return`, so the
four spaces in front of a cursor are a token that no statement follows.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Protocol

import numpy as np
import numpy.typing as npt

# A longer run of tokens is never the beginning of one token in any vocabulary worth the search.
_MOST_TOKENS = 4

TokenIds = npt.NDArray[np.int32]


class Vocabulary(Protocol):
    """What of a model is needed here (`native.Model` is one)."""

    vocab_size: int

    def piece(self, token: int) -> bytes:
        """The bytes that a token stands for; empty for special tokens."""
        ...


class Healing:
    """The tokens of one vocabulary, found by the bytes that they begin with. One per model.

    The index takes about 0.3 s for 152,000 tokens. `prepare` makes it in a thread; whoever needs it earlier
    waits for it.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._index: _Index | None = None
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closing = False

    def prepare(self) -> None:
        """Make the index in the background. `close` has to be called before the model goes away."""
        if self._index is None and self._thread is None:
            self._thread = threading.Thread(target=self._make, name="nexo-healing", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """End the work in the background: the vocabulary is not asked any more."""
        self._closing = True
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def taken_back(self, tokens: Sequence[int]) -> tuple[int, bytes]:
        """How many tokens at the end of `tokens` to take back, and their bytes: (0, b"") if none.

        Only as many as could be the beginning of a longer token: otherwise nothing would change.
        """
        index = self._ready()
        best, data = (0, b""), b""
        for count, token in enumerate(reversed(tokens[-_MOST_TOKENS:]), start=1):
            piece = self._vocabulary.piece(token)
            if not piece:
                # A special token is a border that no other token spans.
                break
            data = piece + data
            first, last = index.beginning_with(data)
            if last - first > index.exactly(data):
                best = (count, data)
        return best

    def allowed(self, rest: bytes) -> TokenIds:
        """The tokens that may come while `rest` is still to be repeated; not empty for a complete vocabulary.

        They begin with `rest`, or are a part of it from its start.
        """
        index = self._ready()
        first, last = index.beginning_with(rest)
        found = [index.tokens[first:last]]
        for length in range(len(rest) - 1, 0, -1):
            first, last = index.beginning_with(rest[:length])
            # In the order of bytes a text comes before everything that it begins.
            found.append(index.tokens[first : first + index.exactly(rest[:length])])
        return np.concatenate(found)

    def _ready(self) -> _Index:
        return self._index or self._make()

    def _make(self) -> _Index:
        with self._lock:
            if self._index is None:
                pieces: list[bytes] = []
                for token in range(self._vocabulary.vocab_size):
                    if self._closing:
                        break
                    pieces.append(self._vocabulary.piece(token))
                self._index = _Index(pieces)
            return self._index


class HealingState:
    """What one answer still has to repeat before it may say anything new."""

    def __init__(self, healing: Healing, rest: bytes) -> None:
        self._healing = healing
        self.rest = rest

    def __bool__(self) -> bool:
        """Whether the next token is held to anything."""
        return bool(self.rest)

    def allowed(self) -> TokenIds:
        """The tokens that may come next; ask only while something is left to repeat."""
        return self._healing.allowed(self.rest)

    def advance(self, piece: bytes) -> bytes:
        """A token with the bytes `piece` was chosen: what of them is new text.

        Raises `ValueError` for a token that is not allowed.
        """
        if not self.rest:
            return piece
        if piece.startswith(self.rest):
            new, self.rest = piece[len(self.rest) :], b""
            return new
        if piece and self.rest.startswith(piece):
            self.rest = self.rest[len(piece) :]
            return b""
        raise ValueError(f"{piece!r} does not repeat {self.rest!r}")


class _Index:
    """Tokens in the order of their bytes. The bytes are kept in one piece: objects would take 10 MB."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        order = sorted((token for token, piece in enumerate(pieces) if piece), key=pieces.__getitem__)
        self.tokens: TokenIds = np.array(order, dtype=np.int32)
        self._data = b"".join(pieces[token] for token in order)
        self._ends = np.fromiter(accumulate(len(pieces[token]) for token in order), np.int32, len(order))

    def beginning_with(self, data: bytes) -> tuple[int, int]:
        """From where to where in `tokens` those are that begin with `data`."""
        places = range(len(self.tokens))

        def head(place: int) -> bytes:
            return self._piece(place)[: len(data)]

        first = bisect_left(places, data, key=head)
        return first, bisect_right(places, data, lo=first, key=head)

    def exactly(self, data: bytes) -> int:
        """How many tokens are just `data` (vocabularies hold few twins, but nothing forbids them)."""
        places = range(len(self.tokens))
        first = bisect_left(places, data, key=self._piece)
        return bisect_right(places, data, lo=first, key=self._piece) - first

    def _piece(self, place: int) -> bytes:
        start = int(self._ends[place - 1]) if place else 0
        return self._data[start : int(self._ends[place])]

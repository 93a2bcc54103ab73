"""llama.cpp behind one typed seam: the model, its vocabulary, and the context that holds the sequences.

Only the worker's side imports this. The library's ctypes functions carry no useful types, so the module is
held as `Any` here and nowhere else; what the rest of the worker sees is exact.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_LOG_WARN, _LOG_ERROR, _LOG_CONTINUED = 3, 4, 5
_ABORTED = 2
"""What `llama_decode` answers when it was interrupted."""
_BATCH_TOKENS, _FLASH_BATCH_TOKENS = 256, 512
"""Without flash attention a step takes memory for each of its tokens and all that they look back at."""
# Logits that one step may ask for: a row takes 0.6 MB with a vocabulary of 152,000.
_OUTPUTS = 48
_PIECES = 8192
"""Tokens whose text is remembered."""

_log_callbacks: list[Any] = []


class NativeError(Exception):
    """llama.cpp refused something; the text is for the log."""


class Decoded(Enum):
    """How an evaluation ended."""

    DONE = auto()
    FULL = auto()
    """No room in the cache: something must be evicted first; nothing was changed."""
    INTERRUPTED = auto()
    """`Interrupt.set` was called meanwhile; nothing was changed."""


@dataclass(frozen=True, slots=True)
class Slice:
    """What one sequence gets evaluated in a step: `tokens` from `position` on."""

    sequence: int
    position: int
    tokens: Sequence[int]
    logits: int = 0
    """For how many of the last tokens the logits are wanted."""


class Interrupt:
    """Stops an evaluation that is under way, from any thread.

    llama.cpp asks a function before every node of its graph. That function is the C library's own `strlen`,
    and what it looks at is a text that is empty until `set` is called: so no Python runs inside the graph,
    and no thread of it ever waits for the interpreter's lock.
    """

    def __init__(self) -> None:
        self._text = ctypes.create_string_buffer(2)
        library = ctypes.cdll.msvcrt if sys.platform == "win32" else ctypes.CDLL(None)
        self.function: Any = library.strlen

    @property
    def address(self) -> ctypes.c_void_p:
        """What the function is called with."""
        return ctypes.cast(self._text, ctypes.c_void_p)

    def set(self) -> None:
        """Stop what is being evaluated, and all that comes until `clear`."""
        self._text[0] = b"!"

    def clear(self) -> None:
        """Let the next evaluation run."""
        self._text[0] = b"\0"


class Library:
    """The loaded library, with its log on stderr from level "warning" up."""

    def __init__(self) -> None:
        """Raises `NativeError` if llama-cpp-python is not installed or does not load."""
        try:
            self.c: Any = importlib.import_module("llama_cpp.llama_cpp")
        except (ImportError, OSError, RuntimeError) as error:
            raise NativeError(f"llama-cpp-python does not load: {error}") from error
        self.errors: deque[str] = deque(maxlen=5)
        self.hold_log = False
        """Whether lines are kept back in `held` for somebody to decide about."""
        self.held: list[str] = []
        self.listener: Callable[[str], None] | None = None
        """Gets every piece of the log, of any level, while there is one."""
        self._log_level = 0
        # The library calls it until another one is set, and ctypes keeps no reference to a callback.
        log_callback = self.c.llama_log_callback(self._log)
        _log_callbacks.append(log_callback)
        self.c.llama_log_set(log_callback, None)
        self.c.llama_backend_init()

    def _log(self, level: int, text: bytes, _user: object) -> None:
        if level != _LOG_CONTINUED:
            self._log_level = level
        if self.listener is not None:
            self.listener(text.decode("utf-8", "replace"))
        if self._log_level in {_LOG_WARN, _LOG_ERROR}:
            line = text.decode("utf-8", "replace")
            if self._log_level == _LOG_ERROR:
                self.errors.append(line.strip())
            if self.hold_log:
                self.held.append(line)
            else:
                sys.stderr.write(line)

    @property
    def ggml(self) -> Any:
        """The library below llama.cpp, which knows the form of GGUF files."""
        if sys.platform == "win32":
            return ctypes.CDLL(str(self.c._base_path / "ggml-base.dll"))
        # A name that llama.cpp's own library does not have is looked for in those that it needs.
        return self.c._lib

    @property
    def uses_gpu(self) -> bool:
        """Whether this build puts layers on a GPU."""
        return bool(self.c.llama_supports_gpu_offload())


class Model:
    """A loaded GGUF file and its vocabulary."""

    def __init__(
        self,
        library: Library,
        path: Path,
        gpu_layers: int | None,
        on_progress: Callable[[float], bool],
        *,
        mapped: bool = True,
    ) -> None:
        """Load `path`; `on_progress` gets 0 to 1, and False from it stops. Raises `NativeError`.

        Not `mapped`, the file is read into memory of our own.
        """
        self.library = library
        c = library.c
        params = c.llama_model_default_params()
        if gpu_layers is not None:
            params.n_gpu_layers = gpu_layers
        if not mapped:
            params.load_mode = c.LLAMA_LOAD_MODE_NONE

        def report(progress: float, _user: object) -> bool:
            return on_progress(progress)

        params.progress_callback = callback = c.llama_progress_callback(report)
        library.errors.clear()
        self.handle = c.llama_model_load_from_file(os.fsencode(path), params)
        del callback  # It had to live until here: ctypes keeps no reference to it.
        if not self.handle:
            raise NativeError("; ".join(library.errors) or "llama.cpp gave no reason")
        self.vocab = c.llama_model_get_vocab(self.handle)
        self.vocab_size = int(c.llama_vocab_n_tokens(self.vocab))
        self._pieces: dict[int, bytes] = {}
        self._token_buffer: Any = (c.llama_token * 1024)()

    def close(self) -> None:
        """Free the weights."""
        if self.handle:
            self.library.c.llama_model_free(self.handle)
            self.handle = None

    def tokenize(self, text: str, *, special: bool) -> list[int]:
        """The tokens of `text`; `<|...|>` in it means a special token only where `special`."""
        data = text.encode("utf-8", "replace")
        c = self.library.c
        needed = len(data) + 8
        while True:
            # Every length of a ctypes array is a type of its own, which lives long: few lengths, then.
            if needed > len(self._token_buffer):
                self._token_buffer = (c.llama_token * (1 << needed.bit_length()))()
            buffer = self._token_buffer
            count = int(c.llama_tokenize(self.vocab, data, len(data), buffer, len(buffer), False, special))
            if count >= 0:
                return list(buffer[:count])
            needed = -count

    def piece(self, token: int) -> bytes:
        """The bytes that a token stands for; empty for special tokens."""
        known = self._pieces.get(token)
        if known is None:
            if len(self._pieces) >= _PIECES:
                # Somebody looks at the whole vocabulary: all of it would take 30 MB.
                self._pieces.clear()
            known = self._pieces[token] = self._piece(token)
        return known

    def _piece(self, token: int) -> bytes:
        room = 64
        while True:
            buffer = ctypes.create_string_buffer(room)
            count = int(self.library.c.llama_token_to_piece(self.vocab, token, buffer, room, 0, False))
            if count >= 0:
                return buffer.raw[:count]
            room = -count

    def is_end(self, token: int) -> bool:
        """Whether the model ends its answer with this token."""
        return bool(self.library.c.llama_vocab_is_eog(self.vocab, token))

    def special(self, text: str) -> int | None:
        """The special token that is written `text`, if the vocabulary has it as one token."""
        tokens = self.tokenize(text, special=True)
        return tokens[0] if len(tokens) == 1 and self.tokenize(text, special=False) != tokens else None

    @property
    def bos(self) -> int | None:
        """The token that every prompt starts with, where the model wants one."""
        c = self.library.c
        if not c.llama_vocab_get_add_bos(self.vocab):
            return None
        token = int(c.llama_vocab_bos(self.vocab))
        return token if token >= 0 else None

    def token_text(self, token: int) -> str:
        """How a special token is written (templates ask for it)."""
        if token < 0:
            return ""
        return (self.library.c.llama_vocab_get_text(self.vocab, token) or b"").decode("utf-8", "replace")

    @property
    def bos_text(self) -> str:
        """How the first token is written."""
        return self.token_text(int(self.library.c.llama_vocab_bos(self.vocab)))

    @property
    def eos_text(self) -> str:
        """How the last token is written."""
        return self.token_text(int(self.library.c.llama_vocab_eos(self.vocab)))

    @property
    def chat_template(self) -> str | None:
        """The Jinja text that the file brings along."""
        text = self.library.c.llama_model_chat_template(self.handle, None)
        return text.decode("utf-8", "replace") if text else None

    @property
    def has_infill(self) -> bool:
        """Whether the vocabulary names a token for the middle."""
        return int(self.library.c.llama_vocab_fim_mid(self.vocab)) >= 0

    @property
    def trained_context(self) -> int:
        """How many tokens the model was trained to look back."""
        return int(self.library.c.llama_model_n_ctx_train(self.handle))

    @property
    def can_forget(self) -> bool:
        """Whether the end of a sequence can be taken back (recurrent models keep one state for all of it)."""
        c = self.library.c
        return not (c.llama_model_is_recurrent(self.handle) or c.llama_model_is_hybrid(self.handle))

    @property
    def description(self) -> str:
        """Architecture, size and quantisation, in llama.cpp's words."""
        buffer = ctypes.create_string_buffer(256)
        self.library.c.llama_model_desc(self.handle, buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace")


class Context:
    """The memory in which several sequences of one model live and are evaluated.

    One buffer holds all of them, so that they can share cells.

    Without flash attention every token is compared with every cell up to the last one in use, also those of
    others, only to be masked away. On a processor that is quicker all the same, as long as few cells are of
    others: llama.cpp's flash attention takes steps of up to 63 tokens row by row. A step of 16 behind 2,048
    tokens took 200 ms without and 331 ms with it, one of 48 took 609 and 957, a single token 32 and 39;
    prompts in chunks of 256 took the same (0.5B, 2 cores of an AMD EPYC, the best of several).
    """

    def __init__(
        self,
        model: Model,
        tokens: int,
        sequences: int,
        threads: int,
        kv_type: str = "f16",
        *,
        flash_attention: bool = False,
    ) -> None:
        """`kv_type` is "f16", or with flash attention also "q8_0".

        Raises `NativeError` if it cannot be made (mostly: memory).
        """
        self.model = model
        self.batch_tokens = _FLASH_BATCH_TOKENS if flash_attention else _BATCH_TOKENS
        self.outputs = _OUTPUTS
        self.kv_type = kv_type
        self.flash_attention = flash_attention
        c = self._c = model.library.c
        params = c.llama_context_default_params()
        params.n_ctx = tokens
        params.n_batch = params.n_ubatch = self.batch_tokens
        params.n_seq_max = sequences
        params.n_outputs_max = _OUTPUTS
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = int(flash_attention)
        params.type_k = params.type_v = {"f16": c.GGML_TYPE_F16, "q8_0": c.GGML_TYPE_Q8_0}[kv_type]
        # One buffer for all: cells can be shared between sequences, and a partial copy across separate
        # buffers aborts the process.
        params.kv_unified = True
        params.swa_full = True
        self.interrupt = Interrupt()
        params.abort_callback = ctypes.cast(self.interrupt.function, c.ggml_abort_callback)
        params.abort_callback_data = self.interrupt.address
        self.handle = c.llama_init_from_model(model.handle, params)
        if not self.handle:
            raise NativeError("; ".join(model.library.errors) or "llama.cpp gave no reason")
        self._memory = c.llama_get_memory(self.handle)
        self._batch = c.llama_batch_init(self.batch_tokens, 0, 1)
        self.tokens = int(c.llama_n_ctx(self.handle))
        self.threads = threads
        self._decode_threads = threads
        self.sequences = sequences
        self._logit_values = ctypes.c_float * model.vocab_size

    def close(self) -> None:
        """Free the cache."""
        if self.handle:
            self._c.llama_batch_free(self._batch)
            self._c.llama_free(self.handle)
            self.handle = None

    def evaluate(self, slices: Sequence[Slice]) -> Decoded:
        """Run all `slices` (at most `batch_tokens` tokens, `outputs` logits) through the model together.

        All or nothing: unless `DONE` comes back, no sequence has changed. Raises `NativeError`.
        """
        batch, row = self._batch, 0
        for part in slices:
            quiet = len(part.tokens) - part.logits
            for index, token in enumerate(part.tokens):
                batch.token[row] = token
                batch.pos[row] = part.position + index
                batch.n_seq_id[row] = 1
                batch.seq_id[row][0] = part.sequence
                batch.logits[row] = index >= quiet
                row += 1
        batch.n_tokens = row
        # llama.cpp calls a full cache an error; for us it is the moment to evict. So is an interruption.
        library = self.model.library
        library.hold_log = True
        code = int(self._c.llama_decode(self.handle, batch))
        library.hold_log = False
        lines, library.held = library.held, []
        if code == 1:
            return Decoded.FULL
        if code == _ABORTED:
            return Decoded.INTERRUPTED
        sys.stderr.writelines(lines)
        if code == 0:
            return Decoded.DONE
        raise NativeError(f"llama_decode answered {code}")

    def decode_with(self, threads: int) -> None:
        """Use so many threads for single tokens; prompts keep all of them."""
        if threads != self._decode_threads:
            self._decode_threads = threads
            self._c.llama_set_n_threads(self.handle, threads, self.threads)

    def logits(self, row: int) -> npt.NDArray[np.float32]:
        """The logits behind token `row` of the last evaluation: a view that the next one overwrites."""
        pointer = self._c.llama_get_logits_ith(self.handle, row)
        if not pointer:
            raise NativeError(f"no logits were made for row {row}")
        values = ctypes.cast(pointer, ctypes.POINTER(self._logit_values)).contents
        return np.ctypeslib.as_array(values)

    def truncate(self, sequence: int, length: int) -> bool:
        """Forget what `sequence` holds from position `length` on.

        False if this kind of model cannot forget a part (recurrent ones): then nothing was changed.
        """
        return bool(self._c.llama_memory_seq_rm(self._memory, sequence, length, -1))

    def copy(self, source: int, target: int, length: int) -> None:
        """Let `target` share the first `length` positions of `source`; costs no cells."""
        self._c.llama_memory_seq_cp(self._memory, source, target, 0, length)

    def clear(self) -> None:
        """Forget what all sequences hold; the next token takes the first cell."""
        self._c.llama_memory_clear(self._memory, False)

    def save(self, sequence: int) -> bytes:
        """What `sequence` holds, for `restore`; some 12 KB for each token of the 0.5B model."""
        size = int(self._c.llama_state_seq_get_size(self.handle, sequence))
        if not size:
            return b""
        state = bytearray(size)
        start = ctypes.byref(ctypes.c_uint8.from_buffer(state))
        written = int(self._c.llama_state_seq_get_data(self.handle, start, size, sequence))
        return bytes(memoryview(state)[:written])

    def restore(self, sequence: int, state: bytes) -> bool:
        """Fill the empty `sequence` with what was saved; False if there is no room or it does not fit."""
        library = self.model.library
        library.hold_log = True
        # It is only read: no copy is needed.
        data = ctypes.cast(ctypes.c_char_p(state), ctypes.POINTER(ctypes.c_uint8))
        read = int(self._c.llama_state_seq_set_data(self.handle, data, len(state), sequence))
        library.hold_log = False
        library.held.clear()
        if read != len(state):
            self.truncate(sequence, 0)
            return False
        return True

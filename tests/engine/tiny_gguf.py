"""A model that loads in milliseconds: real llama.cpp, random weights, one token a byte.

The vocabulary is byte-level BPE without merges, so every byte of a text is a token of its own: characters
beyond ASCII are split over several tokens, and token counts can be told in advance. No special token is ever
its best guess, so an answer goes on until something else ends it.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|fim_prefix|>",
    "<|fim_suffix|>",
    "<|fim_middle|>",
)
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_WIDTH, _HEADS, _HIDDEN, _LAYERS = 64, 4, 128, 2


def token_of(text: str) -> int:
    """The id of a special token."""
    return 256 + SPECIAL.index(text)


_SEED = 20240229


def write_tiny_model(
    path: Path,
    template: str | None = CHATML,
    context: int = 8192,
    seed: int = _SEED,
    more: tuple[str, ...] = (),
    *,
    packed: bool = False,
    width: int = _WIDTH,
    output: float = 1.0,
) -> Path:
    """Write the model to `path`. The weights come from `seed`; `more` are further special tokens.

    With `packed` the matrices are kept as Q5_0, else as floats. Kinds of quantisation whose names end in K need
    a `width` that is a multiple of 256. All logits are multiplied by `output`: with 0 every token is as likely
    as any other.
    """
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(context)
    writer.add_embedding_length(width)
    writer.add_block_count(_LAYERS)
    writer.add_feed_forward_length(_HIDDEN * width // _WIDTH)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(width // _HEADS)
    _add_vocabulary(writer, template, more)
    _add_weights(writer, seed, len(more), width, output, packed=packed)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_vocabulary(writer: gguf.GGUFWriter, template: str | None, more: tuple[str, ...]) -> None:
    tokens = [_byte_text(value) for value in range(256)] + [*SPECIAL, *more]
    types = [gguf.TokenType.NORMAL] * 256 + [gguf.TokenType.CONTROL] * (len(tokens) - 256)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    # llama.cpp insists on a list of merges; this one never applies to text.
    writer.add_token_merges([f"{_byte_text(0)} {_byte_text(1)}"])
    writer.add_eos_token_id(token_of("<|im_end|>"))
    writer.add_bos_token_id(token_of("<|endoftext|>"))
    writer.add_add_bos_token(False)
    if template is not None:
        writer.add_chat_template(template)


def _byte_text(value: int) -> str:
    """How GPT-2's vocabulary writes a byte: itself where it can be seen, else moved up past U+0100."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    if value in visible:
        return chr(value)
    hidden = [other for other in range(256) if other not in visible]
    return chr(256 + hidden.index(value))


def _add_weights(
    writer: gguf.GGUFWriter, seed: int, more: int, width: int, scale_of_output: float, *, packed: bool
) -> None:
    hidden = _HIDDEN * width // _WIDTH
    random = np.random.default_rng(seed)

    def add(name: str, values: np.ndarray) -> None:
        if packed:
            kind = gguf.GGMLQuantizationType.Q5_0
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return (random.standard_normal((rows, columns)) / np.sqrt(columns)).astype(np.float32)

    vocabulary = 256 + len(SPECIAL) + more
    ones = np.ones(width, dtype=np.float32)
    add("token_embd.weight", matrix(vocabulary, width) * 4)
    writer.add_tensor("output_norm.weight", ones)
    output = matrix(vocabulary, width) * 4
    output[256:] = 0
    writer.add_tensor("output.weight", output * np.float32(scale_of_output))
    for layer in range(_LAYERS):
        block = f"blk.{layer}"
        writer.add_tensor(f"{block}.attn_norm.weight", ones)
        writer.add_tensor(f"{block}.ffn_norm.weight", ones)
        # Scales at which what comes out depends on every token before, and on rounding as little as possible.
        for name, scale in (("attn_q", 1.4), ("attn_k", 1.4), ("attn_v", 2), ("attn_output", 2)):
            add(f"{block}.{name}.weight", matrix(width, width) * scale)
        add(f"{block}.ffn_gate.weight", matrix(hidden, width))
        add(f"{block}.ffn_up.weight", matrix(hidden, width) / 2)
        add(f"{block}.ffn_down.weight", matrix(width, hidden))

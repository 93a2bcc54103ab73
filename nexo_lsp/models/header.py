"""What a model file says of itself: its name, size and kind, its prompts, and what its cache takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nexo_lsp.models.gguf_reading import Contents, read_contents

# llama.cpp's `llama_ftype` (`include/llama.h`): what a file was quantised to as a whole.
FILE_TYPES: Mapping[int, str] = {
    **{0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S"},
    **{12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K"},
    **{19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL"},
    **{26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16"},
    **{36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4_MOE", 39: "NVFP4", 40: "Q1_0"},
}

# The keys that name a token for filling in, the newer one first, and the texts by which llama.cpp finds such
# tokens where no key does (`src/llama-vocab.cpp`). Mistral's have no middle: the prefix comes last.
_ROLES: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "prefix": (
        ("fim_pre_token_id", "prefix_token_id"),
        (
            "<|fim_prefix|>",
            "<fim_prefix>",
            "<fim-prefix>",
            "<｜fim▁begin｜>",
            "▁<PRE>",
            "<|code_prefix|>",
            "[PREFIX]",
        ),
    ),
    "suffix": (
        ("fim_suf_token_id", "suffix_token_id"),
        (
            "<|fim_suffix|>",
            "<fim_suffix>",
            "<fim-suffix>",
            "<｜fim▁hole｜>",
            "▁<SUF>",
            "<|code_suffix|>",
            "[SUFFIX]",
        ),
    ),
    "middle": (
        ("fim_mid_token_id", "middle_token_id"),
        ("<|fim_middle|>", "<fim_middle>", "<fim-middle>", "<｜fim▁end｜>", "▁<MID>", "<|code_middle|>"),
    ),
    "pad": (("fim_pad_token_id",), ("<|fim_pad|>", "<fim_pad>", "<fim-pad>")),
    "repository": (("fim_rep_token_id",), ("<|repo_name|>", "<repo_name>", "<reponame>")),
    "file": (("fim_sep_token_id",), ("<|file_sep|>", "<file_sep>", "<|file_separator|>")),
}
_END_KEYS = ("eos_token_id", "eot_token_id")
_F16_BYTES = 2


@dataclass(frozen=True, slots=True)
class InfillTokens:
    """The special tokens that a model has for filling in the middle."""

    prefix: str
    suffix: str
    middle: str
    stop: tuple[str, ...] = ()
    """Others at which an answer ends."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of its model. Numbers are 0 and texts empty where it says nothing."""

    version: int
    """Of the GGUF form."""
    architecture: str
    name: str
    size_label: str
    """As the publisher counts: `0.5B`, `8x7B`."""
    license: str
    quantisation: str
    parameters: int
    context_tokens: int
    layers: int
    kv_bytes_per_token: int
    """What the cache of one token takes as f16, by layers and heads."""
    has_chat_template: bool
    infill: InfillTokens | None
    tensors: int
    tensor_bytes: int
    needed_bytes: int
    """How long the file has to be to hold all its tensors."""
    file_bytes: int

    @property
    def is_complete(self) -> bool:
        """Whether the file is long enough for its tensors."""
        return self.file_bytes >= self.needed_bytes


def read_header(path: Path) -> Header:
    """The header of a GGUF file: about a tenth of a second, mostly for stepping over the vocabulary.

    Raises `ModelError`; its classes in `gguf_reading` say whether the file is no GGUF, cut off, of a kind
    that is not read, or damaged.
    """
    return _Facts(read_contents(path)).header()


class _Facts:
    """Makes sense of what the keys hold; a value of another kind than expected counts as absent."""

    def __init__(self, contents: Contents) -> None:
        self._contents = contents
        self._architecture = self._text("general.architecture")

    def header(self) -> Header:
        contents = self._contents
        return Header(
            version=contents.version,
            architecture=self._architecture,
            name=self._text("general.name") or self._text("general.basename"),
            size_label=self._text("general.size_label"),
            license=self._text("general.license"),
            quantisation=self._quantisation(),
            parameters=contents.parameters,
            context_tokens=self._own("context_length"),
            layers=self._own("block_count"),
            kv_bytes_per_token=self._kv_bytes(),
            has_chat_template=bool(self._text("tokenizer.chat_template")),
            infill=self._infill(),
            tensors=contents.tensors,
            tensor_bytes=contents.tensor_bytes,
            needed_bytes=contents.needed_bytes,
            file_bytes=contents.file_bytes,
        )

    def _text(self, key: str) -> str:
        value = self._contents.values.get(key)
        # What a file says ends on a terminal, so nothing that a terminal would obey is passed on.
        return "".join(c for c in value if c.isprintable() or c == "\n") if isinstance(value, str) else ""

    def _number(self, key: str) -> int:
        value = self._contents.values.get(key)
        return max(value, 0) if isinstance(value, int) else 0

    def _own(self, key: str) -> int:
        return self._number(f"{self._architecture}.{key}")

    def _quantisation(self) -> str:
        named = self._contents.values.get("general.file_type")
        if isinstance(named, int) and named in FILE_TYPES:
            return FILE_TYPES[named]
        # A file that does not say is called by what most of it is.
        shares = self._contents.type_values
        return max(shares, key=lambda name: shares[name]) if shares else ""

    def _kv_bytes(self) -> int:
        layers, heads = self._own("block_count"), self._own("attention.head_count")
        if self._own("attention.key_length_mla"):
            # Compressed (DeepSeek): one row for all heads, and the part that is rotated.
            row = self._own("attention.kv_lora_rank") + self._own("rope.dimension_count")
            return layers * row * _F16_BYTES
        width = self._own("embedding_length") // heads if heads else 0
        row = (self._own("attention.key_length") or width) + (self._own("attention.value_length") or width)
        each = self._contents.values.get(f"{self._architecture}.attention.head_count_kv")
        if isinstance(each, tuple):
            # One number a layer; layers that keep a state of fixed size have none.
            return sum(max(count, 0) for count in each if isinstance(count, int)) * row * _F16_BYTES
        interval = self._own("full_attention_interval") or 1
        return layers // interval * (self._own("attention.head_count_kv") or heads) * row * _F16_BYTES

    def _infill(self) -> InfillTokens | None:
        found = {role: self._token(*where) for role, where in _ROLES.items()}
        prefix, suffix, middle = found["prefix"], found["suffix"], found["middle"]
        if not (prefix and suffix and (middle or prefix == "[PREFIX]")):
            return None
        vocabulary = self._contents.vocabulary
        ends = [vocabulary.text(self._number(f"tokenizer.ggml.{key}")) for key in _END_KEYS if self._has(key)]
        others = dict.fromkeys([found["pad"], found["repository"], found["file"], *ends])
        return InfillTokens(prefix, suffix, middle or "", tuple(text for text in others if text))

    def _has(self, key: str) -> bool:
        return f"tokenizer.ggml.{key}" in self._contents.values

    def _token(self, keys: tuple[str, ...], texts: tuple[str, ...]) -> str | None:
        vocabulary = self._contents.vocabulary
        for key in keys:
            if self._has(key) and (text := vocabulary.text(self._number(f"tokenizer.ggml.{key}"))):
                return text
        return vocabulary.first_of(texts)

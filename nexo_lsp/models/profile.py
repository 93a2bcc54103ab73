"""Everything that is known of a model file, from the catalogue and from its own header."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nexo_lsp.models.catalog import CatalogEntry
from nexo_lsp.models.header import Header, InfillTokens, read_header
from nexo_lsp.models.unpinned import entry_behind, remembered
from nexo_lsp.models.versions import split_version

# Architecture, name of the model, family: the first line that fits counts. Publishers name a model as they
# like, so the name of the file counts as well.
_FAMILIES = (
    (r"qwen2", r"coder", "qwen2.5-coder"),
    (r"qwen3", r"coder", "qwen3-coder"),
    (r"starcoder2", r"", "starcoder2"),
    (r"gemma", r"code-?gemma", "codegemma"),
    (r"deepseek|llama", r"deepseek[- ]?coder", "deepseek-coder"),
    (r"granite", r"", "granite"),
    (r"llama|mistral", r"codestral", "codestral"),
    (r"llama|mistral", r"devstral", "devstral"),
)


@dataclass(frozen=True, slots=True)
class ModelProfile:
    """One model file. Numbers are 0 and texts empty where nothing is known."""

    name: str
    """As the catalogue calls it, else as the file says, else the file's own name."""
    family: str
    """Which prompt conventions it follows; empty for a family that is not known."""
    context_tokens: int
    infill: InfillTokens | None
    """None for a model that has no tokens for filling in the middle."""
    chat: bool
    """Whether the file brings a chat template."""
    parameters: float
    """Billions."""
    quantisation: str
    file_bytes: int
    kv_bytes_per_token: int
    """The cache of one token as f16."""
    header: Header
    entry: CatalogEntry | None
    """The catalogue's, or that of the reference by which the file was fetched."""
    described: CatalogEntry
    """The same, with what only the header tells; for a file without an entry as if it had one."""

    @property
    def memory_bytes(self) -> int:
        """What a worker holds with a context of 8,192 tokens; see `CatalogEntry.memory_bytes`."""
        return self.described.memory_bytes

    @property
    def infill_texts(self) -> tuple[str, str, str] | None:
        """The tokens of prefix, suffix and middle, as `Prompts.infill_template` takes them."""
        return (self.infill.prefix, self.infill.suffix, self.infill.middle) if self.infill else None


def profile_of(path: Path, catalog: Sequence[CatalogEntry]) -> ModelProfile:
    """What is known of the model file `path`; it need not be in any catalogue.

    Raises `ModelError` for a file that is no GGUF, or whose header cannot be read (see `read_header`).
    """
    header = read_header(path)
    file = split_version(path.name)[0]
    named = next((entry for entry in catalog if entry.file == file), None)
    entry = remembered(named, path.parent) if named is not None else entry_behind(path, catalog)
    plain = entry or CatalogEntry(path.stem, path.name, 0, "", family="")
    known = replace(
        plain,
        size=header.file_bytes,
        quantisation=header.quantisation,
        kv_bytes_per_token=header.kv_bytes_per_token,
        parameters=plain.parameters or header.parameters / 1e9,
        context_tokens=header.context_tokens or plain.context_tokens,
        family=plain.family or family_of(header, path.stem),
    )
    return ModelProfile(
        name=(entry.name if entry is not None else "") or header.name or path.stem,
        family=known.family,
        context_tokens=known.context_tokens,
        infill=header.infill,
        chat=header.has_chat_template,
        parameters=known.parameters,
        quantisation=header.quantisation,
        file_bytes=header.file_bytes,
        kv_bytes_per_token=header.kv_bytes_per_token,
        header=header,
        entry=entry,
        described=known,
    )


def family_of(header: Header, file_name: str = "") -> str:
    """The family that a header and a file name tell of; empty for one that is not known."""
    names = f"{header.name} {file_name}".lower()
    for architecture, name, family in _FAMILIES:
        if re.match(architecture, header.architecture) and re.search(name, names):
            return family
    return ""

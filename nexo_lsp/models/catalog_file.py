"""The form of a catalogue file: TOML with a table `[[model]]` for each model.

    [[model]]
    name = "my-coder-7b-q4_k_m"               # what `nexo.model` calls it
    hub = { repo = "owner/repo", file = "my-coder.gguf", revision = "main" }
    urls = ["https://example.org/my-coder.gguf"]
    bytes = 4_683_073_536                     # with sha256: the model is pinned; both may be left out
    sha256 = "…"
    family = "qwen2.5-coder"                  # whose prompts it understands; left out: as its header tells

All keys are those of `_Model`; a file of the user's (`models.toml` in the folder of the settings) has the
same.
"""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Any, cast

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from nexo_lsp.models.catalog import MAIN, CatalogEntry, MirrorPart, Purpose

_Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=120)]
# No @: what stands behind it is a version (`versions.py`).
_FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*\.gguf$", max_length=200)]
# An SPDX expression of one licence; `LicenseRef-` is how SPDX writes those that it has no name for.
_Spdx = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9.+-]*$")]
_Url = Annotated[str, StringConstraints(pattern=r"^https://[^\s@]+$")]
_PART = r"[A-Za-z0-9_][A-Za-z0-9._+-]*"


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Hub(_Table):
    repo: Annotated[str, StringConstraints(pattern=rf"^{_PART}/{_PART}$")]
    file: Annotated[str, StringConstraints(pattern=rf"^({_PART}/)*{_PART}\.gguf$")]
    revision: Annotated[str, StringConstraints(pattern=rf"^{_PART}$")] = MAIN


class _Mirror(_Table):
    """Wheels `prefix1`, `prefix2`, … that hold `part_bytes` of the file each, the last one the rest."""

    prefix: str
    version: str
    part_bytes: int = Field(gt=0)

    def parts(self, total: int) -> Iterator[MirrorPart]:
        for number, start in enumerate(range(0, total, self.part_bytes), start=1):
            yield MirrorPart(f"{self.prefix}{number}", self.version, min(self.part_bytes, total - start))


class _Model(_Table):
    name: _Name
    file: _FileName | None = None
    """The file's name in the models folder; the model's name with `.gguf` if left out."""
    family: str = ""
    description: str = ""
    parameters: float = Field(default=0, ge=0, strict=False)
    active: float = Field(default=0, ge=0, strict=False)
    quantisation: str = ""
    bytes: int = Field(default=0, ge=0)
    sha256: Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{64})?$")] = ""
    license: _Spdx | None = None
    context: int = Field(default=0, ge=0)
    kv_bytes: int = Field(default=0, ge=0)
    memory: int = Field(default=0, ge=0)
    good_for: Annotated[tuple[Purpose, ...], Field(strict=False)] = ()
    hub: _Hub | None = None
    mirror: _Mirror | None = None
    urls: Annotated[tuple[_Url, ...], Field(strict=False)] = ()

    @model_validator(mode="after")
    def _is_whole(self) -> _Model:
        if not (self.hub or self.mirror or self.urls):
            raise ValueError("it has no source; give `hub` or `urls`")
        if self.sha256 and not self.bytes:
            raise ValueError("a model with `sha256` needs `bytes` too")
        if self.mirror and not self.sha256:
            raise ValueError("what comes from a mirror has to be pinned by `bytes` and `sha256`")
        return self


_FACTS = {
    "family": "family",
    "description": "description",
    "parameters": "parameters",
    "active": "active_parameters",
    "quantisation": "quantisation",
    "license": "license",
    "context": "context_tokens",
    "kv_bytes": "kv_bytes_per_token",
    "good_for": "good_for",
}
"""What is true of every file of a model, by its key: where it comes from and which very file it is is not."""


def parse(text: str, known: Sequence[CatalogEntry] = ()) -> tuple[list[CatalogEntry], list[str]]:
    """The entries of a catalogue file, and what is wrong with those that are left out; for people.

    An entry with the name of one of `known` has that one's facts where it says nothing of them.
    """
    replaced = {entry.name: entry for entry in known}
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        return [], [f"this is not TOML, so none of its models is known ({error})."]
    problems = [f"`{key}` is nothing that a catalogue has; models are tables `[[model]]`." for key in data]
    tables: Any = data.pop("model", [])
    problems = [problem for problem in problems if not problem.startswith("`model` ")]
    if not isinstance(tables, list):
        return [], [*problems, "`model` has to be a list of tables; write `[[model]]`."]
    entries: list[CatalogEntry] = []
    seen: Counter[str] = Counter()
    for number, table in enumerate(cast("list[object]", tables), start=1):
        try:
            model = _Model.model_validate(table)
        except ValidationError as error:
            problems.append(f"{_called(table, number)} is left out: {_reason(error)}.")
            continue
        entry = _entry(model)
        if (old := replaced.get(entry.name)) is not None:
            left_out = {field for key, field in _FACTS.items() if key not in model.model_fields_set}
            entry = replace(entry, **{field: getattr(old, field) for field in left_out})
        seen[entry.name] += 1
        if seen[entry.name] > 1:
            problems.append(f"the model {entry.name} is there twice; the first one counts.")
        else:
            entries.append(entry)
    return entries, problems


def _entry(model: _Model) -> CatalogEntry:
    hub = model.hub
    # Where the Hub serves a public file to anybody: for when an endpoint or a token of the user's fails.
    public = (f"https://huggingface.co/{hub.repo}/resolve/{hub.revision}/{hub.file}",) if hub else ()
    return CatalogEntry(
        name=model.name,
        file=model.file or f"{model.name}.gguf",
        size=model.bytes,
        sha256=model.sha256,
        hub_repo=hub.repo if hub else "",
        hub_file=hub.file if hub else "",
        mirror=tuple(model.mirror.parts(model.bytes)) if model.mirror else (),
        urls=(*public, *model.urls),
        license=model.license or "",
        description=model.description,
        context_tokens=model.context,
        family=model.family,
        hub_revision=hub.revision if hub else MAIN,
        parameters=model.parameters,
        active_parameters=model.active,
        quantisation=model.quantisation,
        kv_bytes_per_token=model.kv_bytes,
        measured_memory=model.memory,
        good_for=model.good_for,
    )


def _called(table: object, number: int) -> str:
    name = cast("dict[str, object]", table).get("name") if isinstance(table, dict) else None
    return f"the model {name}" if isinstance(name, str) else f"model number {number}, which has no name,"


def _reason(error: ValidationError) -> str:
    """The first thing that is wrong, with the key that it is about."""
    found = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in found["loc"])
    if found["type"] == "extra_forbidden":
        return f"`{key}` is no key of a model"
    if found["type"] == "missing":
        return f"`{key}` is missing"
    said = found["msg"].removeprefix("Value error, ")
    return f"`{key}`: {said}" if key else said

"""`nexo-lsp models list` and `models info`: what there is, and what is known of one model."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nexo_lsp.cli import models
from nexo_lsp.cli.models import AsJson, failures_told, print_json, say
from nexo_lsp.errors import ModelError, ModelMissing
from nexo_lsp.models.catalog import DEFAULT_MODEL, MEMORY_CONTEXT, CatalogEntry, size_text
from nexo_lsp.models.installed import InstalledModel
from nexo_lsp.models.profile import ModelProfile, profile_of
from nexo_lsp.models.store import ModelStore
from nexo_lsp.models.unpinned import note_of

_WIDE = 120
"""Columns of a terminal that has room for a sentence about each model."""


def add_to(app: typer.Typer) -> None:
    """Give `nexo-lsp models` the commands of this file."""
    app.command("list")(list_models)
    app.command()(info)


def list_models(as_json: AsJson = False) -> None:
    """Show what there is, and what of it is on this machine."""
    store = models.open_store()
    here = store.installed()
    known = {model.entry.name for model in here if model.entry is not None}
    rows = [_installed_row(model) for model in here]
    rows += [_entry_row(entry) for entry in store.catalog if entry.name not in known]
    rows.sort(key=lambda row: (not row["installed"], row["size"] or float("inf")))
    if as_json:
        print_json(rows)
        return
    console = Console()
    wide = console.width >= _WIDE
    table = Table(box=None, pad_edge=False)
    table.add_column("Model", no_wrap=True)
    for title in ("Billions", "Size", "Memory", "Here"):
        table.add_column(title, no_wrap=True, justify="left" if title == "Here" else "right")
    if wide:
        table.add_column("What it is")
    for row in rows:
        billions = f"{row['parameters']:.1f}" if row["parameters"] else ""
        figures = (size_text(row[key]) if row[key] else "?" for key in ("size", "memory_bytes"))
        what = f"{row['description']} ({row['license']})" if row["license"] else row["description"]
        table.add_row(_cell(row), billions, *figures, _state(row), *([what] if wide else []))
    console.print(table)
    say(f"Memory is told for a context of {MEMORY_CONTEXT:,} tokens; `models info NAME` tells more.")
    say(f"Folder: {store.folder}")
    for row in rows:
        if row["embedded"]:
            say(f"{row['name']} came with the program: {row['path']}")


def info(
    name: Annotated[
        str, typer.Argument(help="A name of `models list`, a file, hf:owner/repo/file.gguf or an address.")
    ] = "auto",
    as_json: AsJson = False,
) -> None:
    """Show what is known of a model: what the catalogue says, and what its file says of itself."""
    store = models.open_store()
    with failures_told(as_json):
        entry, path = _found(store, name)
        profile = profile_of(path, store.catalog) if path is not None else None
        facts = _facts(entry, profile, path)
        if as_json:
            print_json(facts)
            return
        table = Table(box=None, pad_edge=False, show_header=False)
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for key, value in _told(facts):
            table.add_row(key, Text(value))
        Console().print(table)


def _found(store: ModelStore, name: str) -> tuple[CatalogEntry | None, Path | None]:
    """The entry of a name, and its file if that is here. Raises `ModelUnknown`, `ModelCorrupt`."""
    try:
        path = store.locate(name)
    except ModelMissing:
        return store.entry(name), None
    return None, path


def _facts(entry: CatalogEntry | None, profile: ModelProfile | None, path: Path | None) -> dict[str, Any]:
    """What is known, for machines; what is not known is 0, empty or null."""
    entry = entry or (profile.entry if profile is not None else None)
    header = profile.header if profile is not None else None
    row = _entry_row(entry) if entry is not None else {}
    facts: dict[str, Any] = {**row, "path": str(path) if path is not None else None}
    facts["installed"] = path is not None
    facts["note"] = note_of(entry) if entry is not None and entry.announced_by else ""
    for key in ("verified", "problem", "embedded"):
        facts.pop(key, None)
    if profile is not None and header is not None:
        infill = profile.infill
        facts |= {
            "name": profile.name,
            "family": profile.family,
            "parameters": round(profile.parameters, 3),
            "quantisation": profile.quantisation,
            "size": profile.file_bytes,
            "context_tokens": profile.context_tokens,
            "memory_bytes": profile.memory_bytes,
            "kv_bytes_per_token": profile.kv_bytes_per_token,
            "chat_template": profile.chat,
            "infill": [infill.prefix, infill.suffix, infill.middle] if infill is not None else None,
            "complete": header.is_complete,
            "header": {
                "gguf_version": header.version,
                "architecture": header.architecture,
                "name": header.name,
                "size_label": header.size_label,
                "license": header.license,
                "parameters": header.parameters,
                "layers": header.layers,
                "tensors": header.tensors,
                "tensor_bytes": header.tensor_bytes,
            },
        }
    return facts


def _told(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The same for people; what is not known is left out."""
    header: Mapping[str, Any] = facts.get("header") or {}
    per_token = facts.get("kv_bytes_per_token") or 0
    kinds = (facts.get("quantisation"), f"architecture {header['architecture']}" if header else "")
    size = size_text(facts["size"]) if facts.get("size") else "unknown"
    cut = " (cut off: its tensors need more)" if facts.get("complete") is False else ""
    infill = facts.get("infill")
    fills = " ".join(token for token in infill if token) if infill else "no tokens for it"
    told = [
        ("Model", facts["name"]),
        ("", facts.get("description") or ""),
        ("Says of itself", ", ".join(filter(None, (header.get("name"), header.get("size_label"))))),
        ("Family", facts.get("family") or ("unknown" if header else "")),
        ("Parameters", f"{facts['parameters']:g} billion" if facts.get("parameters") else ""),
        ("Kind", ", ".join(filter(None, kinds))),
        ("Size", size + cut),
        ("Memory", _memory(facts, per_token)),
        ("Context", f"{facts['context_tokens']:,} tokens" if facts.get("context_tokens") else ""),
        ("Good for", ", ".join(facts.get("good_for") or ())),
        ("Chat template", ("yes" if facts["chat_template"] else "none") if header else ""),
        ("Fills in with", fills if header else ""),
        ("Licence", facts.get("license") or header.get("license") or ""),
        ("SHA-256", _digest_told(facts)),
        ("File", facts["path"] or f"not on this machine; run `nexo-lsp models pull {facts['name']}`"),
    ]
    return [(key, value) for key, value in told if value]


def _memory(facts: Mapping[str, Any], per_token: int) -> str:
    whole = facts.get("memory_bytes")
    if not whole:
        return ""
    cache = size_text(per_token * MEMORY_CONTEXT)
    return size_text(whole) + (f", {cache} of it for {MEMORY_CONTEXT:,} tokens" if per_token else "")


def _digest_told(facts: Mapping[str, Any]) -> str:
    if "pinned" not in facts:
        return ""
    if facts["pinned"]:
        return f"{facts['sha256']} (pinned by the catalogue)"
    note = facts["note"] or "not pinned: what the Hub announces when it is fetched is checked"
    return f"{facts['sha256']} ({note})" if facts["sha256"] else note


def _installed_row(model: InstalledModel) -> dict[str, Any]:
    entry = model.entry or CatalogEntry(model.name, model.path.name, model.size, "", family="")
    if not entry.quantisation:
        # No catalogue tells of it, so its own header does; a file without one is still there.
        with contextlib.suppress(ModelError):
            entry = profile_of(model.path, ()).described
    return {
        **_entry_row(entry),
        "name": model.name,
        "size": model.size,
        "installed": True,
        "verified": model.verified,
        "problem": model.problem,
        "path": str(model.path.absolute()),
        "embedded": model.embedded,
        "known": model.entry is not None,
    }


def _entry_row(entry: CatalogEntry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "size": entry.size,
        "default": entry.name == DEFAULT_MODEL,
        "installed": False,
        "verified": False,
        "problem": "",
        "path": None,
        "embedded": "",
        "known": True,
        "license": entry.license,
        "description": entry.description,
        "family": entry.family,
        "parameters": entry.parameters,
        "quantisation": entry.quantisation,
        "context_tokens": entry.context_tokens,
        "memory_bytes": entry.memory_bytes,
        "good_for": list(entry.good_for),
        "pinned": entry.pinned,
        "sha256": entry.sha256,
    }


def _cell(row: Mapping[str, Any]) -> Text:
    """A model's name, and below it in small what else there is to know."""
    pinned = ("pinned" if row["pinned"] else "not pinned") if row["known"] else ""
    facts = filter(None, (row["quantisation"], ", ".join(row["good_for"]), pinned))
    text = Text(row["name"])
    if below := "; ".join(facts):
        text.append(f"\n  {below}", style="dim")
    return text


def _state(row: Mapping[str, Any]) -> str:
    if row["problem"]:
        return "damaged"
    if row["embedded"]:
        return "embedded"
    return "verified" if row["verified"] else "yes" if row["installed"] else "no"

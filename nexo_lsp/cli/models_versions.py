"""`nexo-lsp models versions, update, pin, unpin, rollback`: which version of a model is used.

Exit codes as in `models.py`; `update --check` ends with 1 where something newer can be had.
"""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from nexo_lsp.cli import models
from nexo_lsp.cli.exit_codes import ExitCode, complain, reported
from nexo_lsp.cli.models import AsJson, failures_told, interruptible, print_json, pull_bar, say
from nexo_lsp.errors import UsageError
from nexo_lsp.folders import folders
from nexo_lsp.models.catalog import CatalogEntry, size_text
from nexo_lsp.models.references import is_reference
from nexo_lsp.models.store import ModelStore
from nexo_lsp.models.updates import Announce, Offer, Outlook, hub_announcer, offline, outlook, take
from nexo_lsp.models.versions import short, split_version
from nexo_lsp.settings import effective

Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do it without asking.")]


def add_to(app: typer.Typer) -> None:
    """Give `nexo-lsp models` the commands of this file."""
    for command in (versions, update, pin, unpin, rollback):
        app.command()(command)


def versions(
    name: Annotated[str, typer.Argument(help="Which model; all if left out.")] = "", as_json: AsJson = False
) -> None:
    """Show the versions of models that are here, the oldest first, and which is used."""
    store = models.open_store()
    with failures_told(as_json):
        entries = [store.entry(one) for one in ([name] if name else _here(store))]
        rows = [row for entry in entries for row in _version_rows(store, entry)]
        if as_json:
            print_json(rows)
            return
        if not rows:
            say("There is no model on this machine; `nexo-lsp models pull` fetches the default one.")
            return
        table = _table("Model", "Version", "Size", "Since", "State")
        for row in rows:
            state = ", ".join(word for word in ("in use", "pinned", "newest") if row[word.replace(" ", "_")])
            table.add_row(row["name"], row["version"], size_text(row["size"]), row["since"][:10], state)
        Console().print(table)


def update(
    name: Annotated[str, typer.Argument(help="Which model; all that are here if left out.")] = "",
    check: Annotated[bool, typer.Option("--check", help="Only show; ends with 1 if there is news.")] = False,
    hub: Annotated[
        bool, typer.Option("--hub", help="Also take what Hugging Face has and the catalogue does not pin.")
    ] = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Show what is newer than what is here and what it costs, and fetch it after asking.

    The version before stays: `models rollback` goes back to it, `models prune` frees it.
    """
    store = models.open_store()
    with failures_told(as_json):
        found = _looked(store, name)
        wanted = [offer for one in found if (offer := _taken(one, hub=hub)) is not None]
        if not as_json:
            _print_outlook(found, wanted)
        do = bool(wanted) and not check and (yes or not as_json)
        if do and not yes:
            cost = sum(offer.fetch_bytes for offer in wanted)
            do = agreed(f"Fetch {size_text(cost)} and use it?" if cost else "Use it?")
        for offer in wanted if do else ():
            with pull_bar(Console(stderr=True), f"{offer.entry.name}@{offer.version}") as report:
                interruptible(lambda cancel, offer=offer, report=report: take(store, offer, report, cancel))
            if not as_json:
                say(f"{offer.entry.name} is at {offer.version} now; `models rollback` goes back.")
        if as_json:
            print_json([_outlook_row(one, wanted if do else []) for one in found])
        if check and wanted:
            raise typer.Exit(ExitCode.FOUND)


def pin(
    name: str,
    version: Annotated[
        str, typer.Argument(help="One of `models versions`; the one in use if left out.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Keep to a version: no update replaces it, and nothing removes it."""
    store = models.open_store()
    with reported(), failures_told(as_json):
        entry, named = store.entry(name), _version_in(name)
        if version and named and version != named:
            raise UsageError(f"{name} names another version than {version}; give one of them.")
        kept = store.versions.pin(entry, version or named)
        _told(as_json, entry, kept.id, f"{entry.name} is pinned to {kept.id}.")


def unpin(name: str, as_json: AsJson = False) -> None:
    """Follow the catalogue again."""
    store = models.open_store()
    with reported(), failures_told(as_json):
        entry = _whole(store, name)
        now = store.versions.unpin(entry)
        used = now.id if now is not None else ""
        _told(as_json, entry, used, f"{entry.name} follows the catalogue; in use: {used or 'none'}.")


def rollback(
    name: str,
    forward: Annotated[bool, typer.Option("--forward", help="To the one that came after it.")] = False,
    as_json: AsJson = False,
) -> None:
    """Use the version that came before the one in use; nothing is fetched."""
    store = models.open_store()
    with reported(), failures_told(as_json):
        entry = _whole(store, name)
        now = store.versions.roll(entry, forward=forward)
        _told(as_json, entry, now.id, f"{entry.name} is at {now.id} now.")


def _version_in(name: str) -> str:
    """The version that stands in a name; what stands behind the @ of a reference is a revision."""
    return "" if is_reference(name) else split_version(name)[1]


def _whole(store: ModelStore, name: str) -> CatalogEntry:
    """The entry of a name without a version. Raises `UsageError` for one with it, and `ModelUnknown`."""
    if _version_in(name):
        raise UsageError(
            f"{name} names one version, and this is about all; leave out the @ and what follows."
        )
    return store.entry(name)


def agreed(question: str) -> bool:
    """Ask on the terminal. Raises `UsageError` where there is none: then `--yes` has to say it."""
    with reported():
        if not sys.stdin.isatty():
            raise UsageError("there is no terminal to ask on; say --yes to do it")
        return typer.confirm(question)


def _looked(store: ModelStore, name: str) -> tuple[Outlook, ...]:
    names = [name] if name else _here(store)
    announce = _announcer()
    return interruptible(lambda cancel: outlook(store, names, announce, cancel))


def _here(store: ModelStore) -> list[str]:
    """The models of the folder, by name."""
    ours = [model.entry for model in store.installed() if not model.embedded]
    return list(dict.fromkeys(entry.name for entry in ours if entry is not None))


def _announcer() -> Announce:
    if effective(folders(os.environ).settings_file, os.environ).settings.offline:
        return offline
    return hub_announcer(os.environ)


def _taken(found: Outlook, *, hub: bool) -> Offer | None:
    """The offer that would be taken: the Hub's own only if the user wants that, and nothing over a pin."""
    offers = [offer for offer in found.offers if hub or not offer.instead_of_pinned]
    return offers[-1] if offers and not found.pinned else None


def _print_outlook(found: tuple[Outlook, ...], wanted: list[Offer]) -> None:
    if not found:
        say("There is no model on this machine; `nexo-lsp models pull` fetches the default one.")
        return
    table = _table("Model", "In use", "Newer", "From", "To fetch", "More disk", "")
    for one in found:
        for offer in one.offers:
            table.add_row(
                one.entry.name,
                one.now or "none",
                offer.version,
                offer.origin,
                size_text(offer.fetch_bytes) if offer.fetch_bytes else "nothing",
                size_text(offer.disk_bytes) if offer.disk_bytes else "none",
                "" if offer in wanted else "pinned" if one.pinned else "with --hub",
            )
    if table.rows:
        Console().print(table)
    for one in found:
        if not one.offers:
            say(f"{one.entry.name}: nothing is newer than {one.now or 'what is here'}.")
    for note in dict.fromkeys(one.note for one in found if one.note):
        complain(f"{note}; compared with the catalogue only")


def _outlook_row(found: Outlook, taken: list[Offer]) -> dict[str, Any]:
    return {
        "name": found.entry.name,
        "in_use": found.now,
        "pinned": found.pinned,
        "note": found.note,
        "offers": [
            {
                "version": offer.version,
                "sha256": offer.entry.sha256,
                "from": offer.origin,
                "fetch": offer.fetch_bytes,
                "disk": offer.disk_bytes,
                "taken": offer in taken,
            }
            for offer in found.offers
        ],
    }


def _version_rows(store: ModelStore, entry: CatalogEntry) -> list[dict[str, Any]]:
    current, choice = store.versions.current(entry), store.versions.choice(entry.name)
    return [
        {
            "name": entry.name,
            "version": version.id,
            "size": version.size,
            "verified": version.verified,
            "path": str(version.path),
            "since": datetime.fromtimestamp(version.added_ns / 1e9, UTC).isoformat(timespec="seconds"),
            "in_use": current is not None and version.id == current.id,
            "pinned": choice.pinned and choice.version == version.id,
            "newest": version.id == short(entry.sha256),
        }
        for version in store.versions.of(entry)
    ]


def _told(as_json: bool, entry: CatalogEntry, version: str, text: str) -> None:
    if as_json:
        print_json({"name": entry.name, "version": version})
    else:
        say(text)


def _table(*titles: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in titles:
        table.add_column(title, no_wrap=title != "Model", overflow="fold")
    return table

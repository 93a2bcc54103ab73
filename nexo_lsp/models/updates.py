"""What is newer than the models on this machine, what it would cost, and having it.

Two can say so: the catalogue of this program, whose digests are pinned, and the Hub, which announces the size
and the SHA-256 of the file that it has now. What only the Hub knows is offered as such, and taken only if the
user says so: nobody but the Hub answers for it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from nexo_lsp.errors import ModelError
from nexo_lsp.models.announcing import Announced
from nexo_lsp.models.catalog import MAIN, CatalogEntry
from nexo_lsp.models.files import size_of
from nexo_lsp.models.progress import ProgressReport, ignore_progress
from nexo_lsp.models.sources import HuggingFaceSource, hub_is_offline
from nexo_lsp.models.store import ModelStore
from nexo_lsp.models.transfer import HttpLimits, SourceFailed
from nexo_lsp.models.versions import short

log = logging.getLogger("nexo_lsp.models")

Origin = Literal["catalogue", "Hugging Face"]


Announce = Callable[[CatalogEntry, threading.Event], Announced]
"""Asks the Hub what it has for an entry now. Raises `SourceFailed` with the reason in one clause."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A version that is newer than the one in use."""

    origin: Origin
    entry: CatalogEntry
    """The very file."""
    fetch_bytes: int
    """What is still to be fetched: 0 when the version is here already."""
    disk_bytes: int
    """How much more the disk holds afterwards; the older version stays until it is pruned."""
    instead_of_pinned: bool
    """Whether the catalogue pins another one: then only the Hub answers for this one."""

    @property
    def version(self) -> str:
        """Its id."""
        return short(self.entry.sha256)


@dataclass(frozen=True, slots=True)
class Outlook:
    """What there is for one model."""

    entry: CatalogEntry
    now: str
    """The id of the version in use; empty when there is none."""
    pinned: bool
    """Whether the user has pinned it: then nothing is taken."""
    offers: tuple[Offer, ...]
    note: str
    """Why not everybody was asked; empty when all were."""


def hub_announcer(environ: Mapping[str, str], limits: HttpLimits | None = None) -> Announce:
    """Ask the Hub that the environment names (`HF_ENDPOINT`, tokens) for what it has now.

    Of a model that the catalogue pins that is what its main branch has; of others, what the revision has that
    they name.
    """
    source = HuggingFaceSource(environ, limits)

    def ask(entry: CatalogEntry, cancel: threading.Event) -> Announced:
        if hub_is_offline(environ):
            raise SourceFailed("HF_HUB_OFFLINE is set")
        said = source.announce(replace(entry, hub_revision=MAIN) if entry.pinned else entry, cancel)
        if not said.sha256:
            raise SourceFailed("it does not say what the file's SHA-256 is")
        return said

    return ask


def offline(_: CatalogEntry, _cancel: threading.Event) -> Announced:
    """The announcer of somebody who is offline."""
    raise SourceFailed("nexo.offline is set")


def outlook(
    store: ModelStore, names: Iterable[str], announce: Announce, cancel: threading.Event | None = None
) -> tuple[Outlook, ...]:
    """What is newer for each of `names`, in their order. Asks the network.

    Raises `ModelUnknown` and `ModelDownloadCancelled`.
    """
    cancel = cancel or threading.Event()
    return tuple(_outlook(store, store.entry(name), announce, cancel) for name in names)


def take(
    store: ModelStore,
    offer: Offer,
    progress: ProgressReport = ignore_progress,
    cancel: threading.Event | None = None,
) -> None:
    """Have an offered version here and use it from now on; the one before stays to go back to.

    Raises what `ModelStore.pull` does, and `ModelError` when the user has pinned another version meanwhile.
    """
    name = offer.entry.name
    store.have(offer.entry, progress, cancel)
    if store.versions.choice(name).pinned:
        raise ModelError(f"{name} is pinned; run `nexo-lsp models unpin {name}` first.")
    # What the catalogue pins or leaves to the Hub needs no choice: the next version comes by itself.
    store.versions.choose(offer.entry, offer.version if offer.instead_of_pinned else "")


def _outlook(store: ModelStore, entry: CatalogEntry, announce: Announce, cancel: threading.Event) -> Outlook:
    current, choice = store.versions.current(entry), store.versions.choice(entry.name)
    note = ""
    candidates: list[tuple[Origin, CatalogEntry]] = [("catalogue", entry)] if entry.sha256 else []
    try:
        said = announce(entry, cancel)
    except SourceFailed as failure:
        note = f"Hugging Face could not be asked: {failure}"
        log.info("%s: %s", entry.name, note)
    else:
        if said.sha256 != entry.sha256:
            candidates.append(("Hugging Face", as_announced(entry, said)))
    here = store.versions.of(entry)
    order = [version.id for version in here]
    offers: list[Offer] = []
    for origin, wanted in candidates:
        version, instead = short(wanted.sha256), entry.pinned and origin == "Hugging Face"
        if version in order:
            # What came before the one in use is older, not newer; what came after it was rolled back from.
            if current is not None and order.index(version) > order.index(current.id):
                offers.append(Offer(origin, wanted, 0, 0, instead))
        else:
            place = store.versions.place(wanted)
            rest = max(0, wanted.size - size_of(place.with_name(place.name + ".partial")))
            offers.append(Offer(origin, wanted, rest, rest, instead))
    now = current.id if current is not None else ""
    return Outlook(entry, now, choice.pinned, tuple(offers), note)


def as_announced(entry: CatalogEntry, said: Announced) -> CatalogEntry:
    """The entry of what the Hub has now, which no other source has."""
    return replace(
        entry,
        size=said.size,
        sha256=said.sha256,
        hub_revision=said.revision or (MAIN if entry.pinned else entry.hub_revision),
        mirror=(),
        urls=(),
        announced_by=HuggingFaceSource.name,
        announced_mark=said.mark,
    )

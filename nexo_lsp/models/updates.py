"""What is newer than the models on this machine, what it would cost, and having it.

Two can say so: the catalogue of this program, whose digests are pinned, and the Hub, which announces the size
and the SHA-256 of the file that it has now. What only the Hub knows is offered as such, and taken only if the
user says so: nobody but the Hub answers for it.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Literal
from urllib.parse import urljoin

import httpx

from nexo_lsp import __version__
from nexo_lsp.errors import ModelError
from nexo_lsp.models.catalog import MAIN, CatalogEntry
from nexo_lsp.models.progress import ProgressReport, ignore_progress
from nexo_lsp.models.sources import hub_is_offline
from nexo_lsp.models.store import ModelStore
from nexo_lsp.models.transfer import HttpLimits, SourceFailed, size_of
from nexo_lsp.models.versions import short

log = logging.getLogger("nexo_lsp.models")

Origin = Literal["catalogue", "Hugging Face"]
_MOST_REDIRECTS = 5
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Announced:
    """What a publisher says that a file is."""

    size: int
    sha256: str


Announce = Callable[[CatalogEntry], Announced]
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
    """Ask the Hub that the environment names (`HF_ENDPOINT`, tokens), by one request for a file's head."""

    def ask(entry: CatalogEntry) -> Announced:
        if hub_is_offline(environ):
            raise SourceFailed("HF_HUB_OFFLINE is set")
        if not entry.hub_repo:
            raise SourceFailed("it does not have this model")
        url, headers = _request(entry, environ)
        return _announced(_head(url, headers, limits or HttpLimits()))

    return ask


def offline(_: CatalogEntry) -> Announced:
    """The announcer of somebody who is offline."""
    raise SourceFailed("nexo.offline is set")


def outlook(store: ModelStore, names: Iterable[str], announce: Announce) -> tuple[Outlook, ...]:
    """What is newer for each of `names`, in their order. Raises `ModelUnknown`. Asks the network."""
    return tuple(_outlook(store, store.entry(name), announce) for name in names)


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
    # The catalogue's own needs no choice: without one the next version comes by itself.
    store.versions.choose(offer.entry, "" if offer.origin == "catalogue" else offer.version)


def _outlook(store: ModelStore, entry: CatalogEntry, announce: Announce) -> Outlook:
    current, choice = store.versions.current(entry), store.versions.choice(entry.name)
    note = ""
    candidates: list[tuple[Origin, CatalogEntry]] = [("catalogue", entry)] if entry.sha256 else []
    try:
        said = announce(entry)
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
        version = short(wanted.sha256)
        if version in order:
            # What came before the one in use is older, not newer; what came after it was rolled back from.
            if current is not None and order.index(version) > order.index(current.id):
                offers.append(Offer(origin, wanted, 0, 0))
        else:
            place = store.versions.place(wanted)
            rest = max(0, wanted.size - size_of(place.with_name(place.name + ".partial")))
            offers.append(Offer(origin, wanted, rest, rest))
    now = current.id if current is not None else ""
    return Outlook(entry, now, choice.pinned, tuple(offers), note)


def as_announced(entry: CatalogEntry, said: Announced) -> CatalogEntry:
    """The entry of what the Hub has now, which no other source has."""
    return replace(
        entry,
        size=said.size,
        sha256=said.sha256,
        hub_revision=MAIN,
        mirror=(),
        urls=(),
        announced_by="Hugging Face",
    )


def _request(entry: CatalogEntry, environ: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    from huggingface_hub import get_token, hf_hub_url

    endpoint = environ.get("HF_ENDPOINT", "").strip().rstrip("/") or None
    headers = {"user-agent": f"nexo-lsp/{__version__}", "accept-encoding": "identity"}
    try:
        url = hf_hub_url(entry.hub_repo, entry.hub_file, endpoint=endpoint)
        hidden = environ.get("HF_HUB_DISABLE_IMPLICIT_TOKEN", "").strip().upper()
        token = "" if hidden in {"1", "ON", "YES", "TRUE"} else environ.get("HF_TOKEN", "") or get_token()
    except (OSError, ValueError) as error:
        raise SourceFailed(f"its settings on this machine are not right ({error})") from error
    if token:
        headers["authorization"] = f"Bearer {token.strip()}"
    return url, headers


def _head(url: str, headers: Mapping[str, str], limits: HttpLimits) -> httpx.Response:
    """The first answer that is the Hub's own: a redirect to where the bytes lie says what they are, too."""
    timeout = httpx.Timeout(limits.answer_s, connect=limits.connect_s)
    host = ""
    try:
        host = httpx.URL(url).host
        trust = httpx.create_ssl_context()
        trust.load_default_certs()
        with httpx.Client(timeout=timeout, verify=trust, headers=dict(headers)) as client:
            for _ in range(_MOST_REDIRECTS):
                response = client.head(url)
                onward = response.headers.get("location", "")
                # A repository that was renamed redirects within the Hub, before it says anything of the file.
                if not response.is_redirect or "x-linked-etag" in response.headers:
                    return response
                url = urljoin(url, onward)
                if httpx.URL(url).host != host:
                    return response
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError, ImportError) as error:
        raise SourceFailed(f"{host or url} cannot be reached ({error or type(error).__name__})") from error
    raise SourceFailed(f"{host} redirects without an end")


def _announced(response: httpx.Response) -> Announced:
    status, head = response.status_code, response.headers
    if not response.is_success and not response.is_redirect:
        known = status in {one.value for one in HTTPStatus}
        raise SourceFailed(f"it answers {status}" + (f" {HTTPStatus(status).phrase}" if known else ""))
    sha256 = (head.get("x-linked-etag") or head.get("etag", "")).removeprefix("W/").strip('"')
    size = head.get("x-linked-size") or ("" if response.is_redirect else head.get("content-length", ""))
    if not _SHA256.fullmatch(sha256) or not size.isdecimal():
        raise SourceFailed("it does not say what the file's SHA-256 is")
    return Announced(int(size), sha256)

"""Where a model file can come from. Each source continues a partial file, or says why it cannot.

The order is that of `default_sources`: what the user names by hand (`NEXO_MODEL_DIR`, `NEXO_MODEL_URL`) comes
first, since somebody who sets these wants no other traffic; then the Hub, the package index, plain addresses.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Protocol, TypeVar

from nexo_lsp import __version__
from nexo_lsp.folders import expanded
from nexo_lsp.models.announcing import Announced, ask_hub, ask_server
from nexo_lsp.models.catalog import MAIN, CatalogEntry
from nexo_lsp.models.files import size_of
from nexo_lsp.models.mirror import DiskFree, MirrorSource, free_disk
from nexo_lsp.models.transfer import HttpLimits, HttpRefused, Report, SourceFailed, check, copy_file, download

__all__ = [
    "DiskFree",
    "FolderSource",
    "HuggingFaceSource",
    "MirrorSource",
    "Source",
    "UrlSource",
    "default_sources",
    "free_disk",
    "hub_is_offline",
]

T = TypeVar("T")

log = logging.getLogger("nexo_lsp.models")

_AGENT = f"nexo-lsp/{__version__}"
_HUB_HOST = "//huggingface.co/"
_OFFLINE = "nexo.offline is set"
_PATIENT = HttpLimits(answer_s=20)
"""For an address that the user chose: nothing better comes after it, so it may be slow."""


class Source(Protocol):
    """One way to get a model file."""

    @property
    def name(self) -> str:
        """What people call it, in messages."""
        ...

    def fetch(self, entry: CatalogEntry, target: Path, progress: Report, cancel: threading.Event) -> None:
        """Continue the partial file `target` (a prefix of the file; may be absent) until it is complete.

        Raises `SourceFailed` with a reason, `ModelDownloadCancelled`, or `OSError` when `target` cannot be
        written. What was written stays for the next source or the next time.
        """
        ...


def default_sources(
    environ: Mapping[str, str], disk_free: DiskFree = free_disk, *, offline: bool = False
) -> tuple[Source, ...]:
    """The sources in the order in which they are tried, for an environment.

    Somebody who is `offline` (`nexo.offline`) has what lies on this machine; the others only say why not.
    """
    sources: list[Source] = []
    folder = environ.get("NEXO_MODEL_DIR", "").strip()
    if folder:
        sources.append(FolderSource(expanded(folder)))
    base = environ.get("NEXO_MODEL_URL", "").strip()
    if base:
        sources.append(UrlSource("NEXO_MODEL_URL", base=base, limits=_PATIENT))
    sources += (
        HuggingFaceSource(environ, offline=offline),
        MirrorSource(environ, disk_free),
        UrlSource("plain URL", offline=hub_is_offline(environ)),
    )
    local = (FolderSource, HuggingFaceSource)
    return tuple(
        _Off(source.name) if offline and not isinstance(source, local) else source for source in sources
    )


def hub_is_offline(environ: Mapping[str, str]) -> bool:
    """Whether the user has told the Hub's tools to stay off the network."""
    return _is_on(environ, "HF_HUB_OFFLINE") or _is_on(environ, "TRANSFORMERS_OFFLINE")


def _is_on(environ: Mapping[str, str], name: str) -> bool:
    # The words are those that huggingface_hub takes for true.
    return environ.get(name, "").strip().upper() in {"1", "ON", "YES", "TRUE"}


class _Off:
    """A source that is not asked, since the user wants no network."""

    def __init__(self, name: str) -> None:
        self.name = name

    def fetch(self, entry: CatalogEntry, target: Path, progress: Report, cancel: threading.Event) -> None:
        """See `Source.fetch`."""
        raise SourceFailed(_OFFLINE)


class FolderSource:
    """A folder on this machine or a share that holds the file under its own name (`NEXO_MODEL_DIR`)."""

    name = "NEXO_MODEL_DIR"

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def fetch(self, entry: CatalogEntry, target: Path, progress: Report, cancel: threading.Event) -> None:
        """See `Source.fetch`."""
        copy_file(self._file(entry), target, entry.size, progress, cancel)

    def announce(self, entry: CatalogEntry, cancel: threading.Event) -> Announced:
        """See `Announcer.announce`: how long it is; to find its digest would take as long as to copy it."""
        check(cancel)
        path = self._file(entry)
        try:
            stat = path.stat()
        except OSError as error:
            raise SourceFailed(f"{path} cannot be read ({error.strerror or error})") from error
        return Announced(stat.st_size, mark=str(stat.st_mtime_ns))

    def _file(self, entry: CatalogEntry) -> Path:
        paths = [self._folder / name for name in entry.file_names]
        return next((path for path in paths if path.is_file()), paths[0])


class UrlSource:
    """Plain HTTP: `base` with the file's name below it, or without a base the addresses of the catalogue."""

    def __init__(
        self, name: str, base: str = "", offline: bool = False, limits: HttpLimits | None = None
    ) -> None:
        self.name = name
        self._base = base
        self._offline = offline
        self._limits = limits or HttpLimits()

    def fetch(self, entry: CatalogEntry, target: Path, progress: Report, cancel: threading.Event) -> None:
        """See `Source.fetch`; the addresses are tried one after the other."""

        def get(url: str) -> None:
            download(url, {"user-agent": _AGENT}, entry.size, target, progress, cancel, self._limits)

        self._first(entry, get)

    def announce(self, entry: CatalogEntry, cancel: threading.Event) -> Announced:
        """See `Announcer.announce`: how long the file is, and on the public Hub its digest too."""

        def ask(url: str) -> Announced:
            asked = ask_hub if _HUB_HOST in url else ask_server
            return asked(url, {"user-agent": _AGENT}, self._limits, cancel)

        return self._first(entry, ask)

    def _first(self, entry: CatalogEntry, work: Callable[[str], T]) -> T:
        """What comes of the first address with which `work` succeeds."""
        bases = [f"{self._base.rstrip('/')}/{name}" for name in entry.file_names] if self._base else []
        urls = bases or list(entry.urls)
        if self._offline:
            # Going round a switch that says "no network to the Hub" by another door would not honour it.
            urls = [url for url in urls if _HUB_HOST not in url]
        reasons: list[str] = []
        for url in urls:
            try:
                return work(url)
            except SourceFailed as failure:
                reasons.append(str(failure))
        raise SourceFailed(", ".join(dict.fromkeys(reasons)) or "there is no address for this model")


class HuggingFaceSource:
    """The Hub: its cache on this machine, then its network (`HF_ENDPOINT`, `HF_HUB_OFFLINE`, tokens).

    The address, the token and the cache are the library's business; the bytes are moved by `download`, since
    the library's own download can be neither cancelled nor watched, and waits long for a silent network.
    """

    name = "Hugging Face"

    def __init__(
        self, environ: Mapping[str, str], limits: HttpLimits | None = None, *, offline: bool = False
    ) -> None:
        self._environ = environ
        self._limits = limits or HttpLimits()
        self._offline = offline

    def fetch(self, entry: CatalogEntry, target: Path, progress: Report, cancel: threading.Event) -> None:
        """See `Source.fetch`."""
        cached = self._cached(entry)
        if cached is not None and _may_be(cached, entry):
            progress(size_of(target), "from the Hugging Face cache on this machine")
            copy_file(cached, target, entry.size, progress, cancel)
            return

        def get(url: str, headers: Mapping[str, str]) -> None:
            download(url, headers, entry.size, target, progress, cancel, self._limits)

        self._with_or_without_token(entry, get)

    def announce(self, entry: CatalogEntry, cancel: threading.Event) -> Announced:
        """See `Announcer.announce`: what the Hub says, or where it may not be asked, what its cache holds."""
        if self._why_offline() and (cached := self._cached(entry)) is not None:
            return Announced(size_of(cached), _digest_in_cache(cached), cached.resolve().name)
        return self._with_or_without_token(
            entry, lambda url, headers: ask_hub(url, headers, self._limits, cancel)
        )

    def _with_or_without_token(self, entry: CatalogEntry, work: Callable[[str, Mapping[str, str]], T]) -> T:
        if not entry.hub_repo:
            raise SourceFailed("it does not have this model")
        if why := self._why_offline():
            raise SourceFailed(f"{why}, and the cache on this machine does not have the file")
        url, headers = self._request(entry)
        try:
            return work(url, headers)
        except HttpRefused as refused:
            if refused.status != HTTPStatus.UNAUTHORIZED or "authorization" not in headers:
                raise
            # A stored token that has expired is refused even for files that are public.
            log.warning("Hugging Face refuses the token of this machine; trying without it")
            del headers["authorization"]
            return work(url, headers)

    def _why_offline(self) -> str:
        if self._offline:
            return _OFFLINE
        return "HF_HUB_OFFLINE is set" if hub_is_offline(self._environ) else ""

    def _cached(self, entry: CatalogEntry) -> Path | None:
        if not entry.hub_repo:
            return None
        from huggingface_hub import try_to_load_from_cache

        cache = self._environ.get("HF_HUB_CACHE") or None
        # What was fetched from a branch may be the very file: its digest tells.
        for revision in dict.fromkeys((entry.hub_revision, MAIN)):
            try:
                found = try_to_load_from_cache(
                    entry.hub_repo, entry.hub_file, cache_dir=cache, revision=revision
                )
            except (OSError, ValueError) as error:
                log.info("the Hugging Face cache cannot be read: %s", error)
                return None
            # The library answers with a marker object, no path, where it knows the file not to exist.
            if isinstance(found, str):
                return Path(found)
        return None

    def _request(self, entry: CatalogEntry) -> tuple[str, dict[str, str]]:
        from huggingface_hub import get_token, hf_hub_url

        endpoint = self._environ.get("HF_ENDPOINT", "").strip().rstrip("/") or None
        # Not the library's own headers: its agent tells what is installed here, which nobody needs to know.
        headers = {"user-agent": _AGENT}
        try:
            url = hf_hub_url(entry.hub_repo, entry.hub_file, revision=entry.hub_revision, endpoint=endpoint)
            if not _is_on(self._environ, "HF_HUB_DISABLE_IMPLICIT_TOKEN"):
                token = self._environ.get("HF_TOKEN", "").strip() or get_token()
                if token:
                    headers["authorization"] = f"Bearer {token}"
        except (OSError, ValueError) as error:
            raise SourceFailed(f"its settings on this machine are not right ({error})") from error
        return url, headers


def _may_be(cached: Path, entry: CatalogEntry) -> bool:
    # Another version may well have the same size.
    other = entry.sha256 and _digest_in_cache(cached) not in {"", entry.sha256}
    return size_of(cached) == entry.size and not other


def _digest_in_cache(cached: Path) -> str:
    """The SHA-256 that the Hub's cache has a file under; empty where it does not say."""
    # The library keeps a file under its SHA-256, and a link to that under the file's own name.
    blob = cached.resolve().name
    return blob if re.fullmatch(r"[0-9a-f]{64}", blob) else ""

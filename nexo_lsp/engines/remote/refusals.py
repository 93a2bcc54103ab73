"""What goes wrong with a server: whether another try helps, and what the user is told."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import Enum
from http import HTTPStatus
from typing import Any

import httpx

from nexo_lsp.engines.remote.shapes import as_object, as_text
from nexo_lsp.errors import EngineCrashed, EngineError, EngineSilent, EngineUnavailable, PromptTooLong

KEY_HINT = (
    "keys come from the variable NEXO_REMOTE_API_KEY or from `nexo-lsp remote login`, never from the settings"
)

_OVERFLOWS = frozenset({"exceed_context_size_error", "context_length_exceeded"})
_BUSY = frozenset(
    {
        HTTPStatus.REQUEST_TIMEOUT,
        HTTPStatus.TOO_EARLY,
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.INTERNAL_SERVER_ERROR,
        HTTPStatus.BAD_GATEWAY,
        HTTPStatus.SERVICE_UNAVAILABLE,
        HTTPStatus.GATEWAY_TIMEOUT,
    }
)
_RESTING = frozenset({HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT})
_NOT_TAKEN = frozenset({HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY})
_NOT_THERE = frozenset({HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.NOT_IMPLEMENTED})
_MOST_WORDS = 300


class Again(Enum):
    """Where another try may succeed."""

    HERE = "here"
    """At the same endpoint too, a while later."""
    ELSEWHERE = "elsewhere"
    NEVER = "never"


@dataclass(eq=False)
class Failed(Exception):
    """One try that failed before anything was shown. Never reaches a caller: `error` does."""

    error: EngineError
    again: Again
    rests: bool = False
    """Whether the endpoint is left alone for a while."""
    after_s: float | None = None
    """How long the server asked us to wait."""
    not_taken: bool = False
    """Whether it may be the way of asking that the server does not take."""
    wants_key: bool = False
    not_there: bool = False
    """Whether the server has no such path, or no such model."""


def unreachable(host: str, error: Exception, connect_s: float) -> Failed:
    """No connection, or one that was lost before the answer began."""
    if isinstance(error, httpx.ConnectTimeout):
        why = f"{host} cannot be reached within {connect_s:g} s"
    elif isinstance(error, httpx.ProxyError):
        why = f"the proxy does not let us through to {host} ({error})"
    elif isinstance(error, httpx.ConnectError):
        why = f"no connection to {host} ({error})"
    else:
        why = f"the connection to {host} was lost"
    return Failed(EngineUnavailable(sentence(why)), Again.HERE, rests=True)


def silent(host: str, seconds: float, *, checking: bool = False) -> Failed:
    """Connected, and then nothing; with `checking` when it was only asked how it is."""
    why = "when it was asked how it is" if checking else "(nexo.remote.answerTimeoutS)"
    message = f"{host} said nothing for {seconds:g} s {why}."
    return Failed(EngineSilent(message), Again.ELSEWHERE, rests=True)


def broken_off(host: str, why: str) -> EngineCrashed:
    """The end of an answer of which something was shown; it is not begun again, since it would differ."""
    return EngineCrashed(f"{host} broke off its answer ({why}). Ask again.")


def unusable(host: str, why: str) -> Failed:
    """An answer that is none."""
    return Failed(EngineError(sentence(f"{host} gave no proper answer ({why})")), Again.ELSEWHERE, rests=True)


def ended_early(host: str) -> Failed:
    """A stream that stopped without a reason."""
    return Failed(EngineUnavailable(f"{host} ended its answer in the middle."), Again.HERE)


def interrupted(host: str) -> Failed:
    """llama_cpp.server gives an answer up when another request comes, unless it was told not to."""
    hint = "started with `--interrupt_requests false` it does not"
    return Failed(EngineUnavailable(f"{host} gave an answer up for another request; {hint}."), Again.HERE)


def refused(host: str, response: httpx.Response, body: bytes, key: str | None) -> Failed:
    """What an HTTP status other than success means."""
    status = response.status_code
    said, code = _said(body, key)
    if response.is_redirect:
        where = _origin(response.headers.get("location", ""))
        message = (
            f"{host} sends us on{where}, which is not followed; write the right address into the settings."
        )
        return Failed(EngineUnavailable(message), Again.ELSEWHERE, rests=True)
    if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        what = "does not take the key" if key else "wants a key"
        message = f"{host} {what} ({_status(status)}); {KEY_HINT}."
        return Failed(EngineUnavailable(message), Again.ELSEWHERE, rests=True, wants_key=True)
    if code in _OVERFLOWS:
        return Failed(PromptTooLong(sentence(f"{host}: {said}")), Again.NEVER)
    message = sentence(f"{host} answers {_status(status)}{f': {said}' if said else ''}")
    if status in _BUSY:
        return Failed(
            EngineUnavailable(message),
            Again.HERE,
            rests=status in _RESTING,
            after_s=_retry_after(response.headers.get("retry-after")),
        )
    not_there = status in _NOT_THERE
    again = Again.ELSEWHERE if not_there else Again.NEVER
    return Failed(EngineError(message), again, not_taken=status in _NOT_TAKEN, not_there=not_there)


def in_stream(host: str, event: Mapping[str, Any], key: str | None) -> Failed:
    """An error that was sent as an event."""
    said, code = _said(json.dumps(event).encode(), key)
    if code in _OVERFLOWS:
        return Failed(PromptTooLong(sentence(f"{host}: {said}")), Again.NEVER)
    return Failed(EngineError(sentence(f"{host}: {said or 'an error'}")), Again.HERE)


def sentence(text: str) -> str:
    """`text` with an end."""
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _said(body: bytes, key: str | None) -> tuple[str, str]:
    """The message and the code of an error's body, in the shapes that servers have for it; without `key`."""
    try:
        data: object = json.loads(body)
    except ValueError:
        return _short(body.decode("utf-8", "replace"), key), ""
    fields = as_object(data)
    fields = as_object(fields.get("error")) or fields
    message = fields.get("message") or fields.get("detail") or fields.get("error") or ""
    names = [name for name in (as_text(fields.get("type")), as_text(fields.get("code"))) if name]
    code = next((name for name in names if name in _OVERFLOWS), "")
    # Only the first line: some servers put their whole traceback behind it.
    return _short(str(message).split("\n\n")[0], key), code


def _short(text: str, key: str | None) -> str:
    """The beginning of `text` in one line. Some servers repeat the key that they do not know: it is taken out
    before the cut, which might leave a part of it."""
    words = " ".join(text.split())
    return (words.replace(key, "…") if key else words)[:_MOST_WORDS]


def _retry_after(value: str | None) -> float | None:
    """Seconds from now; the header holds seconds, or a date."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def _origin(location: str) -> str:
    """The place that a redirect names, without anything secret that its path may hold."""
    try:
        url = httpx.URL(location)
    except httpx.InvalidURL:
        return ""
    return f" to {url.scheme}://{url.netloc.decode('ascii', 'replace')}" if url.host else " to another path"


def _status(code: int) -> str:
    try:
        return f"{code} {HTTPStatus(code).phrase}"
    except ValueError:
        return str(code)

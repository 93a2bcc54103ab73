"""Where a server is, and how long it may take."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from nexo_lsp.errors import SettingsError

_HOST = re.compile(r"[\w.-]+|[0-9a-f:.]+")
_VERSIONED = re.compile(r"/v\d+[a-z0-9]*$")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One server, and the key it wants. The key is in no picture of it."""

    url: str
    """`https://host/v1`; without the version it is added."""
    key: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class RemoteOptions:
    """How servers are asked."""

    name: str = "remote"
    """What the engine is called in its status: that of the provider that made it."""
    model: str = ""
    """The model's name there; empty takes the first that a server lists."""
    context_tokens: int = 8192
    """How many tokens a prompt and its answer may be, where a server says nothing smaller."""
    parallel: int = 4
    """How many requests one endpoint gets at once; the least urgent leave one place free."""
    connect_timeout_s: float = 5.0
    answer_timeout_s: float = 60.0
    """After so long without a byte a server is taken for failed."""
    ca_file: Path | None = None
    """Certificates (PEM) that are trusted beside the system's."""
    attempts: int = 4
    """How often an answer is begun at the most, over all endpoints."""
    backoff_first_s: float = 0.5
    backoff_most_s: float = 8.0
    health_s: float = 15.0
    """How often an endpoint is looked at while the engine is in use."""
    proxies: bool = True
    """Whether proxies of the environment count; never for a loopback address."""


@dataclass(frozen=True, slots=True)
class Address:
    """An endpoint's address, taken apart."""

    root: str
    """Where a server's own paths begin (`/health`, `/infill`)."""
    api: str
    """Where the paths of OpenAI's protocol begin (`/chat/completions`)."""
    host: str
    """Host and port, for people."""
    loopback: bool
    encrypted: bool

    @property
    def exposed(self) -> bool:
        """Whether others on the way can read what is sent."""
        return not self.encrypted and not self.loopback

    @staticmethod
    def of(url: str) -> Address:
        """Take `url` apart. Raises `SettingsError` for what is no address of a web server."""
        try:
            parts = urlsplit(url.strip())
            host, port = parts.hostname or "", parts.port
        except ValueError as error:
            raise _wrong(url, "is not a web address") from error
        if "@" in parts.netloc:
            raise SettingsError(
                f"nexo.remote.endpoints: the address of {host or '?'} has a user or a password inside; take "
                "it out. Keys come from the variable NEXO_REMOTE_API_KEY or from `nexo-lsp remote login`."
            )
        if parts.scheme not in {"http", "https"} or not _HOST.fullmatch(host):
            raise _wrong(url, "is not a web address (`https://host/v1`)")
        if parts.query or parts.fragment or "?" in url or "#" in url:
            raise SettingsError(
                f"nexo.remote.endpoints: the address of {host} has a `?` or a `#`; leave out what follows."
            )
        path = parts.path.rstrip("/")
        shown = (f"[{host}]" if ":" in host else host) + (f":{port}" if port is not None else "")
        # Put together again from its parts, so that nobody else can read it in another way.
        origin = f"{parts.scheme}://{shown}"
        bare = _VERSIONED.sub("", path)
        api = path if bare != path else f"{path}/v1"
        return Address(
            root=origin + bare,
            api=origin + api,
            host=shown,
            loopback=is_loopback(host),
            encrypted=parts.scheme == "https",
        )


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine by its very name."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _wrong(url: str, why: str) -> SettingsError:
    # What is no address may be a key that was put into the wrong setting.
    text = url.strip()
    shown = f"`{text[:12]}…`" if len(text) > 12 else f"`{text}`"
    return SettingsError(f"nexo.remote.endpoints: {shown} {why}.")

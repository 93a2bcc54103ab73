"""Where Docker or Podman listens on this machine. Only looked at, never asked: that is for later."""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import json
import os
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from nexo_lsp.folders import expanded
from nexo_lsp.runtime.environment import Platform

START_HINT = (
    "Start Docker (`sudo systemctl start docker`, or Docker Desktop) or Podman (`systemctl --user start "
    "podman.socket`, `podman machine start`), or name its socket in nexo.docker.socket."
)

_PIPES = "\\\\.\\pipe\\"


@dataclass(frozen=True, slots=True)
class Place:
    """One address at which containers may be had."""

    url: str
    """As the SDK takes it: `unix:///run/docker.sock`, `npipe:////./pipe/docker_engine`, `tcp://127.0.0.1:2375`."""
    source: str
    """Who named it: a setting, a variable, a context, or nobody."""


@dataclass(frozen=True, slots=True)
class Search:
    """The first place that can be used, and what was wrong with those before it."""

    place: Place | None
    tried: tuple[str, ...]

    @property
    def why_not(self) -> str:
        """What was tried, and what to do, for people."""
        return f"neither Docker nor Podman can be used: {'; '.join(self.tried)}. {START_HINT}"


def this_platform() -> Platform:
    """That of this Python, as far as the usual places depend on it."""
    return {"darwin": Platform.MACOS, "win32": Platform.WINDOWS}.get(sys.platform, Platform.LINUX)


def find(
    setting: str,
    environ: Mapping[str, str],
    platform: Platform,
    *,
    look: Callable[[str], str] | None = None,
) -> Search:
    """Look for a place: one that was named is the only one; else the current context's, else the usual ones.

    `look` answers with what is wrong with an address, or with an empty text.
    """
    problem_of = look or problem
    tried: list[str] = []
    for place in _candidates(setting.strip(), environ, platform):
        wrong = problem_of(place.url)
        if not wrong:
            return Search(place, tuple(tried))
        tried.append(f"{place.url} ({place.source}): {wrong}")
    return Search(None, tuple(tried))


def _candidates(setting: str, environ: Mapping[str, str], platform: Platform) -> Iterator[Place]:
    named = (
        ("nexo.docker.socket", setting),
        ("DOCKER_HOST", environ.get("DOCKER_HOST", "").strip()),
        ("CONTAINER_HOST", environ.get("CONTAINER_HOST", "").strip()),
    )
    for source, text in named:
        if text:
            yield Place(_as_url(text), source)
            return
    seen: set[str] = set()
    for place in (*_context(environ), *_usual(environ, platform)):
        if place.url not in seen:
            seen.add(place.url)
            yield place


def _as_url(text: str) -> str:
    return text if "://" in text else f"unix://{expanded(text)}"


def _context(environ: Mapping[str, str]) -> Iterator[Place]:
    """What the `docker` command uses: where Docker Desktop, Colima and others say that they listen.

    The file of a context lies in a folder that is named by the SHA-256 of the context's name.
    """
    folder = expanded(environ.get("DOCKER_CONFIG", "").strip() or "~/.docker")
    name = environ.get("DOCKER_CONTEXT", "").strip() or _text(_json(folder / "config.json"), "currentContext")
    if name and name != "default":
        digest = hashlib.sha256(name.encode()).hexdigest()
        meta = _json(folder / "contexts" / "meta" / digest / "meta.json")
        host = _text(meta, "Endpoints", "docker", "Host")
        if host:
            yield Place(host, f"docker context {name}")


def _json(path: Path) -> object:
    with contextlib.suppress(OSError, ValueError):
        return json.loads(path.read_text("utf-8"))
    return None


def _text(data: object, *keys: str) -> str:
    for key in keys:
        data = cast("dict[str, Any]", data).get(key) if isinstance(data, dict) else None
    return data if isinstance(data, str) else ""


def _usual(environ: Mapping[str, str], platform: Platform) -> Iterator[Place]:
    if platform is Platform.WINDOWS:
        urls = ("npipe:////./pipe/docker_engine", "npipe:////./pipe/podman-machine-default")
    elif platform is Platform.MACOS:
        urls = (
            "/var/run/docker.sock",
            "~/.docker/run/docker.sock",
            "~/.orbstack/run/docker.sock",
            "~/.colima/default/docker.sock",
            "~/.rd/docker.sock",
            f"{environ.get('TMPDIR', '').rstrip('/')}/podman/podman-machine-default-api.sock",
            "~/.local/share/containers/podman/machine/podman.sock",
        )
    else:
        runtime = environ.get("XDG_RUNTIME_DIR", "").rstrip("/") or f"/run/user/{_user_id()}"
        urls = (
            "/var/run/docker.sock",
            f"{runtime}/docker.sock",
            "~/.docker/desktop/docker.sock",
            f"{runtime}/podman/podman.sock",
            "/run/podman/podman.sock",
        )
    for url in urls:
        yield Place(_as_url(url), "usual place")


def _user_id() -> int:
    return os.getuid() if hasattr(os, "getuid") else 0


def problem(url: str) -> str:
    """What is wrong with an address, as far as can be seen without connecting; empty if nothing is.

    Nothing is connected to: that would have systemd start what listens only when it is wanted.
    """
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return _socket_problem(Path(parts.netloc + parts.path))
    if parts.scheme == "npipe":
        return _pipe_problem(url)
    if parts.scheme in {"tcp", "http", "https"}:
        if _is_loopback(parts.hostname or ""):
            return ""
        return "is on another machine, where the model file is not and code must not go"
    if parts.scheme == "ssh":
        return "is reached by SSH, on another machine, where the model file is not and code must not go"
    return "is not an address of Docker (`unix:///run/docker.sock`)"


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _socket_problem(path: Path) -> str:
    try:
        found = path.stat()
    except PermissionError:
        return "its folder may not be entered"
    except (OSError, ValueError):
        return "nothing is there"
    if not stat.S_ISSOCK(found.st_mode):
        return "is no socket"
    mine = os.access in os.supports_effective_ids
    if not os.access(path, os.R_OK | os.W_OK, effective_ids=mine):
        return f"permission denied; {permission_hint(path)}"
    return ""


def permission_hint(path: Path) -> str:
    """How to get permission for a socket."""
    group = "docker"
    with contextlib.suppress(OSError, KeyError, NotImplementedError):
        group = path.group()
    if group == "root":
        return "only root may use it: run Docker or Podman without root (rootless mode)"
    return (
        f"add yourself to the group `{group}` (`sudo usermod -aG {group} $USER`, then log in again), or run "
        "Docker or Podman without root (rootless mode)"
    )


def _pipe_problem(url: str) -> str:
    name = url.rpartition("/")[2]
    try:
        # Listed, since asking for one by its name would open it.
        return "" if name in os.listdir(_PIPES) else "nothing is there"  # noqa: PTH208 -- no folder for pathlib
    except OSError:
        return "nothing is there"

"""What is asked of Docker or Podman, through Docker's SDK. Every call blocks."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import socket
import threading
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from nexo_lsp.errors import EngineClosed, EngineCrashed, EngineError, EngineLoadFailed, EngineUnavailable
from nexo_lsp.runtime.providers.containers.owners import MARK, Owner, is_orphan
from nexo_lsp.runtime.providers.containers.places import START_HINT, permission_hint
from nexo_lsp.runtime.providers.containers.plan import PORT, Facts, Plan, creation, network, own_user

INSTALL_HINT = 'the Docker SDK is not installed; run: pip install "nexo-lsp[docker]"'

_TIMEOUT_S = 60
_LAST_LINES = 8


def is_installed() -> bool:
    """Whether the SDK is there; looked up without importing it."""
    # A folder called `docker` in the working folder is found too, and has no origin.
    spec = importlib.util.find_spec("docker")
    return spec is not None and spec.origin is not None


@dataclass(frozen=True, slots=True)
class State:
    """How a container is."""

    running: bool
    exit_code: int = 0
    out_of_memory: bool = False
    last_words: str = ""
    """The end of what it printed, only of one that has ended."""


@dataclass(frozen=True, slots=True)
class Leftover:
    """A container whose owner is dead."""

    id: str
    name: str
    model: str


class Daemon:
    """Docker or Podman at one address."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._client: Any = None
        self._lock = threading.Lock()

    def facts(self) -> Facts:
        """What it says about itself."""
        with self._mapped(f"{self._who} could not say what it is"):
            version: dict[str, Any] = self._sdk().version()
            info: dict[str, Any] = self._sdk().info()
        parts: list[dict[str, Any]] = version.get("Components") or []
        name = next((str(part["Name"]) for part in parts if part.get("Name")), "Docker")
        security = {str(option).partition(",")[0] for option in info.get("SecurityOptions") or ()}
        return Facts(
            name=f"{'Docker Engine' if name == 'Engine' else name} {version.get('Version', '')}".strip(),
            cpus=int(info.get("NCPU") or 1),
            memory_bytes=int(info.get("MemTotal") or 0),
            rootless="name=rootless" in security,
            remapped="name=userns" in security,
            selinux="name=selinux" in security,
            confines=name == "Engine",
            init=bool(info.get("InitBinary")),
        )

    def has_image(self, image: str) -> bool:
        """Whether an image is here."""
        errors = _sdk_errors()
        with self._mapped(f"{self._who} could not look for the image {image}"):
            try:
                self._sdk().images.get(image)
            except errors.ImageNotFound:
                return False
        return True

    def pull(self, image: str, progress: Callable[[str], None], stop: threading.Event) -> None:
        """Fetch an image; `progress` is told in a few words. Raises `EngineClosed` once `stop` is set."""
        repository, tag = _name_and_tag(image)
        layers: dict[str, tuple[int, int]] = {}
        with self._mapped(f"The image {image} could not be fetched"):
            lines: Iterable[dict[str, Any]] = self._sdk().api.pull(
                repository, tag=tag, stream=True, decode=True
            )
            for line in lines:
                if stop.is_set():
                    raise EngineClosed(f"Fetching the image {image} was stopped.")
                if line.get("error"):
                    raise EngineUnavailable(f"The image {image} could not be fetched: {line['error']}.")
                detail: dict[str, Any] = line.get("progressDetail") or {}
                # Its unpacking is counted from the beginning again, and takes little.
                if line.get("status") == "Downloading" and detail.get("total"):
                    layers[line["id"]] = (int(detail.get("current") or 0), int(detail["total"]))
                    done, total = (sum(sizes) for sizes in zip(*layers.values(), strict=True))
                    progress(f"fetching the image {image}: {done * 100 // total} %")

    def start(self, plan: Plan, facts: Facts) -> str:
        """Start a server with a network of its own; the answer is the container's number.

        When that fails, parts of it may be there: `remove` takes them away.
        """
        cores = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
        with self._mapped(f"{self._who} could not start the image {plan.image}"):
            client = self._sdk()
            client.networks.create(**network(plan))
            container = client.containers.create(**creation(plan, facts, cores=cores, user=own_user()))
            container.start()
            return str(container.id)

    def port(self, container: str) -> int | None:
        """The port on the loopback interface, or None if there is none (it has ended)."""
        with self._mapped(f"{self._who} could not say where the container listens"):
            found: Any = self._sdk().containers.get(container)
            ports: dict[str, Any] = found.attrs["NetworkSettings"]["Ports"] or {}
        bound: list[dict[str, str]] = ports.get(f"{PORT}/tcp") or []
        return next((int(entry["HostPort"]) for entry in bound), None)

    def state(self, container: str) -> State:
        """How a container is; one that is gone has ended."""
        errors = _sdk_errors()
        with self._mapped(f"{self._who} could not look after the container"):
            try:
                found: Any = self._sdk().containers.get(container)
                told: dict[str, Any] = found.attrs["State"]
                if told.get("Running"):
                    return State(running=True)
                words: bytes = found.logs(tail=_LAST_LINES)
            except errors.NotFound:
                return State(running=False, last_words="it was removed")
        return State(
            running=False,
            exit_code=int(told.get("ExitCode") or 0),
            out_of_memory=bool(told.get("OOMKilled")),
            last_words=words.decode("utf-8", "replace").strip() or str(told.get("Error") or ""),
        )

    def wait(self, container: str, patience_s: float) -> State:
        """How a container is once it has ended, or when `patience_s` are over."""
        errors = _sdk_errors()
        requests: Any = importlib.import_module("requests.exceptions")
        # A time-out comes as either of the two; one that is gone has ended.
        with (
            self._mapped(f"{self._who} could not wait for the container"),
            contextlib.suppress(requests.Timeout, requests.ConnectionError, errors.NotFound),
        ):
            self._sdk().api.wait(container, timeout=patience_s)
        return self.state(container)

    def remove(self, name: str) -> None:
        """End and remove a container and its network of the same name, as far as they are there."""
        errors = _sdk_errors()
        with self._mapped(f"{self._who} could not remove the container"):
            client = self._sdk()
            with contextlib.suppress(errors.NotFound):
                client.api.remove_container(name, force=True, v=True)
            with contextlib.suppress(errors.NotFound):
                client.api.remove_network(name)

    def orphans(self, me: Owner) -> list[Leftover]:
        """What dead owners of this user on this machine left behind: containers, and networks without one."""
        found: dict[str, Leftover] = {}
        with self._mapped(f"{self._who} could not list containers"):
            client = self._sdk()
            containers: list[dict[str, Any]] = client.api.containers(all=True, filters={"label": MARK})
            networks: list[dict[str, Any]] = client.api.networks(filters={"label": MARK})
        for entry in (*containers, *networks):
            written: dict[str, str] = entry.get("Labels") or {}
            if is_orphan(written, me):
                name = str(entry.get("Name") or entry["Names"][0]).removeprefix("/")
                found.setdefault(name, Leftover(entry["Id"], name, written.get(f"{MARK}.model", "")))
        return list(found.values())

    def close(self) -> None:
        """Let go of connections."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def _sdk(self) -> Any:
        with self._lock:
            if self._client is None:
                if not is_installed():
                    raise EngineUnavailable(f"{INSTALL_HINT}.")
                self._knock()
                docker: Any = importlib.import_module("docker")
                self._client = docker.DockerClient(base_url=self.url, timeout=_TIMEOUT_S)
            return self._client

    @contextlib.contextmanager
    def _mapped(self, failure: str) -> Generator[None]:
        """Map the SDK's errors, and those of the HTTP library under it, to one that begins with `failure`."""
        errors = _sdk_errors()
        requests: Any = importlib.import_module("requests.exceptions")
        try:
            yield
        except errors.APIError as error:
            words = str(error.explanation or error).strip().rstrip(".")
            raise EngineUnavailable(f"{failure}: {words}.") from error
        except (errors.DockerException, requests.RequestException) as error:
            raise EngineUnavailable(f"{failure}: {error}.") from error

    @property
    def _who(self) -> str:
        return f"Docker or Podman at {self.url}"

    def _knock(self) -> None:
        """Connect to a socket once, before the SDK does: what is wrong is told by the system's own errors."""
        parts = urlsplit(self.url)
        if parts.scheme != "unix":
            return
        path = Path(parts.netloc + parts.path)
        try:
            with socket.socket(socket.AF_UNIX) as knocking:
                knocking.settimeout(_TIMEOUT_S)
                knocking.connect(str(path))
        except PermissionError as error:
            raise EngineUnavailable(
                f"{self._who} may not be used by you: {permission_hint(path)}."
            ) from error
        except (ConnectionRefusedError, FileNotFoundError) as error:
            raise EngineUnavailable(f"{self._who} is not running. {START_HINT}") from error
        except OSError as error:
            raise EngineUnavailable(f"{self._who} cannot be reached: {error}.") from error


def ended(state: State, image: str, *, starting: bool) -> EngineError:
    """The error for a container that is no longer running."""
    last = state.last_words.splitlines()[-_LAST_LINES:]
    words = f" Its last words:\n{chr(10).join(last)}" if last else ""
    why = "because it took more memory than it may have" if state.out_of_memory else ""
    text = f"The container of {image} ended {why or f'(exit code {state.exit_code})'}"
    mend = " Set nexo.engine.memoryLimitMb higher, or nexo.model to a smaller model." if why else ""
    if starting:
        return EngineLoadFailed(f"{text} before it was ready.{mend}{words}")
    return EngineCrashed(f"{text}; it is started again with the next request.{mend}{words}")


def _sdk_errors() -> Any:
    if not is_installed():
        raise EngineUnavailable(f"{INSTALL_HINT}.")
    return importlib.import_module("docker.errors")


def _name_and_tag(image: str) -> tuple[str, str | None]:
    """`host:5000/name:tag` taken apart; without a tag it is `latest`, and a digest stays with the name."""
    if "@" in image:
        return image, None
    head, colon, tail = image.rpartition(":")
    return (head, tail) if colon and "/" not in tail else (image, "latest")

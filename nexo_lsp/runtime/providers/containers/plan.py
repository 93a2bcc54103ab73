"""What is started, exactly: the arguments of a container that may do nothing but answer on one port."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PORT = 8080
"""Where the server listens inside the container."""
_MODELS = "/models"
_SCRATCH = "/tmp"  # noqa: S108 -- inside the container
_PART = re.compile(r"-00001-of-(\d{5})\.gguf$")

_MOST_PROCESSES = 512
_SHARES = 512
"""Half of what other processes weigh: a compiler and a browser go first where the processor is short."""
_EXTRA_BYTES, _FACTOR = 2 << 30, 1.25
"""Beside the weights there are the cache of tokens and the compute buffers."""
_LOG_SIZE = "1m"


@dataclass(frozen=True, slots=True)
class Facts:
    """What Docker or Podman says about itself and the machine (for Docker Desktop: the virtual one)."""

    name: str
    """`Docker Engine 27.3.1`, for people."""
    cpus: int = 1
    memory_bytes: int = 0
    rootless: bool = False
    remapped: bool = False
    """Whether users inside are others outside (`userns-remap`)."""
    selinux: bool = False
    confines: bool = False
    """Whether its bridges can be made without a way out; Podman has no word for that."""
    init: bool = False
    """Whether it has a small first process for containers."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One server to be started."""

    image: str
    model: Path
    """The model file, absolute."""
    context_tokens: int = 8192
    threads: int = 0
    """0 is what the machine has."""
    memory_bytes: int = 0
    """What the container may take; a server that grows beyond that is ended and not the editor."""
    gpus: bool = False
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    name: str = field(default_factory=lambda: f"nexo-lsp-{secrets.token_hex(6)}")
    """Of the container, and of its network."""
    key: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)
    """What a client has to show: other programs of this machine can reach the port too."""

    def threads_on(self, facts: Facts, cores: int) -> int:
        """Compute threads on a machine with `cores` physical cores, of which the container may have fewer."""
        return max(1, min(self.threads or cores, facts.cpus))


def model_files(model: Path) -> tuple[Path, ...]:
    """The files of a model: one, or all parts of one that was split."""
    match = _PART.search(model.name)
    if match is None:
        return (model,)
    stem = model.name[: match.start()]
    count = int(match[1])
    return tuple(model.with_name(f"{stem}-{part:05}-of-{match[1]}.gguf") for part in range(1, count + 1))


def memory_for(model: Path) -> int:
    """What a server of `model` may take if nobody says. Raises `OSError` where the file is not there."""
    return round(_FACTOR * sum(file.stat().st_size for file in model_files(model))) + _EXTRA_BYTES


def creation(plan: Plan, facts: Facts, *, cores: int, user: str | None) -> dict[str, Any]:
    """The arguments of the SDK's `containers.create`.

    `user` is `uid:gid` of ours (None where the system has none). The server runs as us, since without the
    rights of root it could not read a model file that only we may read. Where the container's root already is
    us (rootless), or its users are nobody outside (remapped), it stays what the image says.
    """
    threads = plan.threads_on(facts, cores)
    options: dict[str, Any] = {
        "image": plan.image,
        "name": plan.name,
        "command": [
            *("--host", "0.0.0.0", "--port", str(PORT)),  # noqa: S104 -- inside the container
            *("-m", f"{_MODELS}/{plan.model.name}"),
            *("-c", str(plan.context_tokens), "-t", str(threads)),
            "--no-webui",
        ],
        # Not an argument, since those are in the list of processes.
        "environment": {"LLAMA_API_KEY": plan.key, "HOME": _SCRATCH, "LLAMA_CACHE": _SCRATCH},
        "labels": dict(plan.labels),
        "mounts": [
            {"Type": "bind", "Source": str(file), "Target": f"{_MODELS}/{file.name}", "ReadOnly": True}
            for file in model_files(plan.model)
        ],
        # The port outside is chosen when it starts. Nobody but this machine can reach it.
        "ports": {f"{PORT}/tcp": ("127.0.0.1", None)},
        "network": plan.name,
        # Names of other machines are asked of nobody.
        "dns": ["127.0.0.1"],
        "read_only": True,
        "tmpfs": {_SCRATCH: "rw,noexec,nosuid,size=64m,mode=1777"},
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges", *(["label=disable"] if facts.selinux else [])],
        "pids_limit": _MOST_PROCESSES,
        "mem_limit": plan.memory_bytes,
        "memswap_limit": plan.memory_bytes,
        "nano_cpus": threads * 1_000_000_000,
        "cpu_shares": _SHARES,
        "init": facts.init,
        # Removed by us and not by itself: its last words are wanted if it crashes.
        "auto_remove": False,
        "restart_policy": {"Name": "no"},
        "healthcheck": {"test": ["NONE"]},
        "log_config": {"Type": "json-file", "Config": {"max-size": _LOG_SIZE}},
        # Proxies of the user's are for programs that may use a network.
        "use_config_proxy": False,
        "detach": True,
    }
    if user is not None and not (facts.rootless or facts.remapped):
        options["user"] = user
    if plan.gpus:
        options["device_requests"] = [{"Driver": "", "Count": -1, "Capabilities": [["gpu"]]}]
    return options


def network(plan: Plan) -> dict[str, Any]:
    """The arguments of the SDK's `networks.create`: a bridge with no way out.

    A published port needs a bridge. Without masquerading, what is sent from it to elsewhere has no address to
    which an answer would come; and each container has its own, so that they do not see each other.
    """
    return {
        "name": plan.name,
        "driver": "bridge",
        "options": {
            "com.docker.network.bridge.enable_ip_masquerade": "false",
            "com.docker.network.bridge.enable_icc": "false",
        },
        "labels": dict(plan.labels),
    }


def own_user() -> str | None:
    """Our `uid:gid`, where there is such a thing."""
    return f"{os.getuid()}:{os.getgid()}" if hasattr(os, "getuid") else None

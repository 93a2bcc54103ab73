"""Where the shared worker of one user can be found: one small file for each kind of worker.

The file lies in a folder that only the user can enter, and holds the address, the process and the token.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import socket
import stat
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from nexo_lsp import __version__
from nexo_lsp.engines.llama.messages import Load

# What the libraries of the engine read from the environment: a worker that was started with other values
# is another worker.
_VARIABLES = ("OMP_", "GOMP_", "KMP_", "GGML_", "LLAMA_", "CUDA_", "HIP_", "ROCR_", "VK_", "METAL_")
_KEY_LENGTH = 16


class SharingFailed(Exception):
    """A shared worker could be neither joined nor started; the text says why, in one clause."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """How a running hub is reached."""

    address: str
    pid: int
    token: str
    """Hexadecimal."""


def key_of(wish: Load, environ: Mapping[str, str]) -> str:
    """A name that two servers have in common only if one worker can serve both.

    The same file (by path, size and time), the same wishes, the same code under the same Python, on the same
    host (homes can be shared by several), and the same environment as far as the engine reads it.
    """
    parts: list[Any] = [__version__, sys.executable, sys.prefix, socket.gethostname()]
    parts += [_identity(wish.path), _identity(wish.draft_path), asdict(replace(wish, path="", draft_path=""))]
    parts += [_code(), sorted(item for item in environ.items() if item[0].startswith(_VARIABLES))]
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:_KEY_LENGTH]


def _identity(name: str) -> list[str | int]:
    if not name:
        return []
    path = os.path.realpath(name)
    try:
        status = Path(path).stat()
    except OSError:
        # The worker will say what is wrong with it.
        return [path]
    return [path, status.st_size, status.st_mtime_ns]


def _code() -> list[list[str | int]]:
    """The files of the worker: an update in place, or an edit, must not meet a worker of before."""
    found: list[list[str | int]] = []
    for path in sorted(Path(__file__).parent.glob("*.py")):
        status = path.stat()
        found.append([path.name, status.st_size, status.st_mtime_ns])
    return found


def private_folder(folder: Path) -> Path:
    """Make `folder`, and make sure that it is the user's alone. Raises `SharingFailed`."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if sys.platform != "win32":
            status = folder.stat()
            if status.st_uid != os.getuid():
                raise SharingFailed(f"{folder} belongs to somebody else")
            if stat.S_IMODE(status.st_mode) & 0o077:
                folder.chmod(0o700)
    except OSError as error:
        raise SharingFailed(f"{folder} cannot be used ({error.strerror or error})") from error
    return folder


class EndpointFile:
    """The file for one key."""

    def __init__(self, folder: Path, key: str) -> None:
        self.path = folder / f"{key}.json"
        self.lock = folder / f"{key}.lock"
        """Held by whoever starts a hub."""

    def read(self) -> Endpoint | None:
        """The endpoint, or None where there is none or what is there is damaged.

        Raises `SharingFailed` if somebody else could have written it.
        """
        try:
            with self.path.open("rb") as file:
                if sys.platform != "win32":
                    status = os.fstat(file.fileno())
                    if status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o077:
                        raise SharingFailed(f"{self.path} is not the user's alone")
                data = json.loads(file.read())
            endpoint = Endpoint(str(data["address"]), int(data["pid"]), str(data["token"]))
            bytes.fromhex(endpoint.token)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise SharingFailed(f"{self.path} cannot be read ({error.strerror or error})") from error
        except (ValueError, KeyError, TypeError):
            return None
        return endpoint

    def write(self, endpoint: Endpoint) -> None:
        """Replace what is there, in one step. Raises `OSError`."""
        draft = self.path.with_name(f"{self.path.name}.{secrets.token_hex(4)}")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(asdict(endpoint), file)
        draft.replace(self.path)

    def withdraw(self, endpoint: Endpoint) -> None:
        """Take `endpoint` away, unless another has taken its place already."""
        try:
            if self.read() == endpoint:
                self.path.unlink(missing_ok=True)
        except (OSError, SharingFailed):
            # Whoever reads it finds nobody there, and replaces it.
            return

"""Machines for `nexo-lsp doctor`: made up ones in this process, and real ones that something is missing from."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nexo_lsp.cli.check import Check
from nexo_lsp.cli.diagnosis.looks import Looks
from nexo_lsp.cli.diagnosis.report import Report
from nexo_lsp.cli.doctor import examine
from nexo_lsp.engines.llama.messages import Load
from nexo_lsp.models.catalog import DEFAULT_MODEL, CatalogEntry, find
from nexo_lsp.models.record import write_record
from nexo_lsp.runtime.environment import Environment, Platform

ROOT = Path(__file__).resolve().parents[3]

LAPTOP = Environment(
    platform=Platform.LINUX,
    architecture="x86_64",
    physical_cores=8,
    performance_cores=8,
    simd=frozenset({"avx2", "fma"}),
    total_bytes=16_000_000_000,
    free_bytes=9_000_000_000,
)


def default_entry() -> CatalogEntry:
    """The default model's."""
    entry = find(DEFAULT_MODEL)
    assert entry is not None
    return entry


def fits(_wish: Load) -> Mapping[str, Any]:
    """What llama.cpp says where all is well."""
    plan = {"context_tokens": 8192, "kv_type": "f16", "total_bytes": 791 * 2**20}
    outlook = {
        "device": "CPU, 8 threads", "plan": plan, "why": "9,000 MB are free", "notes": [], "weights": "",
    }  # fmt: skip
    return {"devices": [], "offload": False, "outlook": outlook, "error": ""}


QUICK = Looks(import_failure=lambda _module: "", ask=fits)
"""Looks at this machine, and starts nothing."""


def report(
    home: Path,
    environment: Environment = LAPTOP,
    looks: Looks = QUICK,
    *,
    connect: bool = False,
    given: Mapping[str, str] | None = None,
    **variables: str,
) -> Report:
    """What the doctor finds in a home, with these variables set."""
    environ = {"NEXO_HOME": str(home), **(given or {}), **variables}
    return asyncio.run(examine(environ, environment, looks, connect=connect))


def problems(found: Report) -> dict[str, Check]:
    """The problems, by name; each says what mends it."""
    assert all(check.mend for check in found.wrong), found.wrong
    return {check.name: check for check in found.wrong}


def checks(found: Report) -> dict[str, Check]:
    """The last check of each name."""
    return {check.name: check for check in found.checks}


def put_model(home: Path, *, size: int | None = None, head: bytes = b"", digest: str = "") -> Path:
    """A file in the place of the default model: as large, and empty. Without `digest` it was never checked."""
    path = home / "models" / default_entry().file
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(head)
        file.truncate(default_entry().size if size is None else size)
    if digest:
        write_record(path, digest)
    return path


_WITHOUT = """
import importlib.machinery
import sys

HIDDEN = {hidden!r}
whole = importlib.machinery.PathFinder.find_spec
importlib.machinery.PathFinder.find_spec = staticmethod(
    lambda name, path=None, target=None: None if name.partition(".")[0] in HIDDEN else whole(name, path, target)
)

def _audit(event, arguments):
    # Nothing that the doctor does may reach for a network.
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        print("a network was asked:", event, arguments, file=sys.stderr)
        import os
        os._exit(99)

sys.addaudithook(_audit)
"""


@dataclass(frozen=True, slots=True)
class Ran:
    """A real run of the program."""

    code: int
    out: str
    errors: str

    @property
    def data(self) -> dict[str, Any]:
        """Its output as JSON."""
        return json.loads(self.out)


def run_real(folder: Path, *words: str, hidden: tuple[str, ...] = (), **variables: str) -> Ran:
    """`nexo-lsp doctor` as a process in a home of its own, without some packages, and without a network.

    It ends with 99 if it asks a network.
    """
    stub = folder / "stub"
    stub.mkdir(exist_ok=True)
    (stub / "sitecustomize.py").write_text(_WITHOUT.format(hidden=set(hidden)))
    environ = {
        **{name: value for name, value in os.environ.items() if not name.startswith("NEXO_")},
        "NEXO_HOME": str(folder / "home"),
        "NEXO_FAKE_BATTERY": str(folder / "no-battery"),
        "PYTHONPATH": os.pathsep.join((str(stub), str(ROOT))),
        "PYTHONUTF8": "1",
        **variables,
    }
    done = subprocess.run(
        [sys.executable, "-m", "nexo_lsp", "doctor", *words],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        timeout=300,
        cwd=folder,
        env=environ,
    )
    return Ran(done.returncode, done.stdout, done.stderr)

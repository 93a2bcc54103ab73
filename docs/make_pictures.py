"""Makes `docs/pictures/doctor-*.svg`: what `nexo-lsp doctor` says on machines that are made up.

`python -m docs.make_pictures`, some seconds. The doctor is the real one; only what it asks of a machine is
answered here, so that the pictures are the same wherever they are made. A test holds them to the program.
"""

from __future__ import annotations

import asyncio
import importlib.util
import io
import tempfile
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import date
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from rich.console import Console

from nexo_lsp.cli.diagnosis.drawing import draw
from nexo_lsp.cli.diagnosis.looks import Looks
from nexo_lsp.cli.diagnosis.report import Report
from nexo_lsp.cli.doctor import examine
from nexo_lsp.engines.llama.messages import Load
from nexo_lsp.engines.llama.tuning import BatchTime, Figures, PromptSpeed, StepTime
from nexo_lsp.engines.llama.tuning_file import Tuned, TuningFile
from nexo_lsp.folders import folders
from nexo_lsp.models.record import write_record
from nexo_lsp.models.store import ModelStore
from nexo_lsp.runtime.environment import Battery, Environment, Platform

PICTURES = Path(__file__).resolve().parent / "pictures"
_WIDTH = 100
_SMALL = "qwen2.5-coder-0.5b-instruct-q4_k_m"
_MIDDLE = "qwen2.5-coder-1.5b-instruct-q4_k_m"
_PACKAGES = ("llama_cpp", "detect_secrets", "keyring")
# A GGUF file of version 3 without keys and tensors; zeros follow, and none of them is read.
_HEAD = b"GGUF" + (3).to_bytes(4, "little") + bytes(16)

# Where `platformdirs` puts things on Linux.
_SHOWN = {
    "models": "~/.cache/nexo-lsp/models",
    "state": "~/.local/state/nexo-lsp",
    "logs": "~/.local/state/nexo-lsp/log",
    "config": "~/.config/nexo-lsp",
}

_LAPTOP = Environment(
    platform=Platform.LINUX,
    architecture="x86_64",
    physical_cores=14,
    performance_cores=6,
    simd=frozenset({"avx2", "f16c", "fma", "avx_vnni"}),
    total_bytes=32_000_000_000,
    free_bytes=19_000_000_000,
    battery=Battery(84, plugged=True),
)
_OLD = replace(
    _LAPTOP,
    physical_cores=4,
    performance_cores=4,
    simd=frozenset({"avx2", "f16c", "fma"}),
    total_bytes=16_000_000_000,
    free_bytes=9_500_000_000,
    battery=Battery(61, plugged=False),
)


@dataclass(frozen=True, slots=True)
class Scene:
    """A machine, and what is on it."""

    environment: Environment
    packages: tuple[str, ...] = _PACKAGES
    prepare: Callable[[Path], None] = lambda _home: None
    """Puts files into a home."""
    variables: Mapping[str, str] = field(default_factory=dict[str, str])
    compiler: bool = True


def _put(home: Path, name: str, *, size: int | None = None) -> Path:
    """A file as large as the model, and taken for verified, or as much of it as `size`; nothing is in it."""
    entry = ModelStore(home / "models", {}).entry(name)
    path = home / "models" / entry.file
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(_HEAD)
        file.truncate(size or entry.size)
    if size is None:
        write_record(path, entry.sha256, published=True)
    return path


def _whole(home: Path) -> None:
    path = _put(home, _MIDDLE)
    figures = Figures(
        processors=14,
        steps=(StepTime(6, None, 0.0271),),
        prompts=(PromptSpeed(6, 210),),
        batches=(BatchTime(1, 0.0271),),
        others=0.0,
    )
    TuningFile(home / "state").remember(path, Tuned(date(2026, 11, 2), figures))


def _broken(home: Path) -> None:
    _put(home, _SMALL, size=312_704_512)


SCENES: Mapping[str, Scene] = {
    "well": Scene(_LAPTOP, prepare=_whole),
    "nothing": Scene(_OLD, packages=(), compiler=False),
    "broken": Scene(_OLD, prepare=_broken),
    "offline": Scene(_OLD, variables={"NEXO_OFFLINE": "true"}),
}
"""By the names of their pictures: `doctor-well.svg`."""


def _ask(wish: Load) -> Mapping[str, Any]:
    """What llama.cpp would say."""
    plan = {"context_tokens": 8192, "kv_type": "f16", "total_bytes": 1_560 * 2**20}
    outlook: dict[str, Any] = {
        "device": f"CPU, {wish.threads or 4} threads",
        "plan": plan,
        "why": "enough is free",
        "notes": [],
        "weights": "",
    }
    return {"devices": [], "offload": False, "outlook": outlook, "error": ""}


_LOOKS = Looks(
    system=lambda: "Linux 6.12",
    python=lambda: "CPython 3.12.8 (~/.venv/bin/python)",
    ask=_ask,
    import_failure=lambda _module: "",
    writable=lambda _folder: True,
    disk_free=lambda _folder: 118_000_000_000,
)


@contextmanager
def _machine(scene: Scene) -> Generator[None]:
    """The packages and programs of the scene instead of those that are here."""
    whole = importlib.util.find_spec

    def find_spec(name: str, package: str | None = None) -> ModuleSpec | None:
        if name in _PACKAGES:
            return ModuleSpec(name, None) if name in scene.packages else None
        return whole(name, package)

    def version(_name: str) -> str:
        return "0.3.36"

    def which(_name: str) -> str | None:
        return "/usr/bin/c++" if scene.compiler else None

    with (
        patch("importlib.util.find_spec", find_spec),
        patch("importlib.metadata.version", version),
        patch("shutil.which", which),
        patch("nexo_lsp.cli.diagnosis.checks.sys", SimpleNamespace(platform="linux")),
    ):
        yield


def report_of(scene: Scene) -> Report:
    """What the doctor finds there; no path of this machine is in it."""
    with tempfile.TemporaryDirectory() as folder, _machine(scene):
        home = Path(folder)
        scene.prepare(home)
        environ = {"NEXO_HOME": folder, **scene.variables}
        found = asyncio.run(examine(environ, scene.environment, _LOOKS))
        places = folders(environ)
        shown = {str(getattr(places, name)): text for name, text in _SHOWN.items()}

    def show(text: str) -> str:
        for place, instead in shown.items():
            text = text.replace(place, instead)
        return text.replace("\\", "/")

    checks = tuple(replace(one, value=show(one.value), mend=show(one.mend)) for one in found.checks)
    return replace(found, checks=checks)


def picture(name: str) -> str:
    """The picture as SVG."""
    console = Console(
        record=True,
        width=_WIDTH,
        file=io.StringIO(),
        force_terminal=True,
        color_system="truecolor",
        legacy_windows=False,
        highlight=False,
    )
    console.print("$ nexo-lsp doctor", style="bold")
    draw(console, report_of(SCENES[name]))
    return console.export_svg(title="nexo-lsp doctor", unique_id=f"doctor-{name}")


def main() -> None:
    """Write all of them."""
    for name in SCENES:
        path = PICTURES / f"doctor-{name}.svg"
        path.write_text(picture(name), encoding="utf-8", newline="\n")
        print(path)


if __name__ == "__main__":
    main()

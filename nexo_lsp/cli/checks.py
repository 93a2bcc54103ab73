"""What `nexo-lsp doctor` looks at: each check is one function, and each problem names what mends it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

from nexo_lsp import __version__
from nexo_lsp.cli.bounds import bounds
from nexo_lsp.cli.check import Check
from nexo_lsp.cli.container_checks import containers
from nexo_lsp.errors import ModelCorrupt, ModelError, ModelMissing, StorageError
from nexo_lsp.folders import Folders
from nexo_lsp.models.catalog import size_text
from nexo_lsp.models.store import ModelStore
from nexo_lsp.runtime.providers.native import tuning_of, unpack_folder
from nexo_lsp.settings import Resolved, Settings
from nexo_lsp.storage import FILE_NAME, Database
from nexo_lsp.syntax.languages import LANGUAGES, grammar_of

# Double quotes are the ones that every shell knows, that of Windows too.
INSTALL_NATIVE = 'pip install "nexo-lsp[native]"'

_COMPILERS = ("c++", "g++", "clang++", "cl")

_IMPORT_TIMEOUT_S = 120.0
# Beside the weights there are the cache of tokens, the compute buffers and Python itself.
_MEMORY_FACTOR = 1.5
_MEMORY_EXTRA = 400_000_000


def machine() -> Iterator[Check]:
    """What machine and what Python."""
    yield Check("machine", "nexo-lsp", "ok", __version__)
    yield Check("machine", "system", "ok", f"{platform.system()} {platform.release()} {platform.machine()}")
    version = f"{platform.python_implementation()} {platform.python_version()} ({sys.executable})"
    old = sys.version_info < (3, 11)
    yield Check(
        "machine", "Python", "problem" if old else "ok", version, "install Python 3.11" if old else ""
    )
    cores = f"{psutil.cpu_count(logical=False) or '?'} cores, {psutil.cpu_count() or '?'} threads"
    yield Check("machine", "processor", "ok", cores)
    memory = psutil.virtual_memory()
    yield Check(
        "machine", "memory", "ok", f"{size_text(memory.total)}, {size_text(memory.available)} available"
    )


def settings(resolved: Resolved) -> Iterator[Check]:
    """What is wrong with the settings, if anything is."""
    for problem in resolved.problems:
        mend = "correct it, or take it away; `nexo-lsp config` shows what is in force"
        yield Check("settings", problem.name, "problem", problem.message, mend)
    if not resolved.settings.enable:
        yield Check(
            "settings", "nexo.enable", "warning", "off: nothing is answered", "set nexo.enable to true"
        )
    if not resolved.problems:
        count = len(resolved.origins)
        yield Check(
            "settings", "settings", "ok", f"{count} set by the environment" if count else "all at default"
        )


def engine(chosen: str, reasons: tuple[str, ...], wanted: str) -> Iterator[Check]:
    """Which engine, why, and whether its library can be loaded."""
    for reason in reasons:
        yield Check("engine", "reason", "ok", reason)
    if wanted == "mock" or chosen == "mock":
        yield Check("engine", "engine", "ok", "mock: scripted answers, for tests")
        return
    if importlib.util.find_spec("llama_cpp") is None:
        yield Check(
            "engine",
            "llama-cpp-python",
            "problem",
            "not installed",
            f"{INSTALL_NATIVE} (it is compiled here, which takes some minutes)",
        )
        yield from _compiler()
        return
    version = importlib.metadata.version("llama-cpp-python")
    failure = _import_failure("llama_cpp")
    if failure:
        mend = 'pip install --force-reinstall --no-cache-dir --no-binary llama-cpp-python "nexo-lsp[native]"'
        yield Check("engine", "llama-cpp-python", "problem", f"{version} does not load: {failure}", mend)
    else:
        yield Check("engine", "llama-cpp-python", "ok", version)


def _compiler() -> Iterator[Check]:
    """Whether there is what llama-cpp-python is compiled with; only of interest where it is not installed."""
    wanted = (*_COMPILERS, *(word for word in [os.environ.get("CXX", "")] if word))
    found = next((path for path in map(shutil.which, wanted) if path is not None), None)
    if found is not None:
        yield Check("engine", "compiler", "ok", found)
    elif sys.platform == "win32":
        # Visual Studio keeps its compiler off the path, and CMake finds it all the same.
        mend = "if the installation fails: winget install Microsoft.VisualStudio.2022.BuildTools, with C++"
        yield Check("engine", "compiler", "warning", "none on the path", mend)
    else:
        mend = (
            "xcode-select --install"
            if sys.platform == "darwin"
            else "install a C and C++ compiler first, on Debian or Ubuntu: sudo apt-get install gcc g++"
        )
        yield Check("engine", "compiler", "problem", "no C++ compiler found", mend)


def _import_failure(module: str) -> str:
    """Why `module` cannot be imported, tried elsewhere: a library that crashes takes its process along."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", f"import {module}"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_IMPORT_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode == 0:
        return ""
    return (done.stderr.strip().splitlines() or [f"it crashed (exit code {done.returncode})"])[-1]


def model(store: ModelStore, settings_: Settings) -> Iterator[Check]:
    """Whether the model file is here and right, and whether it fits into memory."""
    try:
        path = store.locate(settings_.model)
    except ModelMissing as error:
        never = settings_.models.auto_download == "never"
        entry = store.entry_for(settings_.model)
        mend = f"nexo-lsp models pull {entry.name if entry else settings_.model}"
        text = str(error) if never else "not here yet; it is fetched at its first use"
        yield Check("model", settings_.model, "problem" if never else "warning", text, mend)
        free = _free(store.folder)
        if entry is not None and free is not None and free < entry.size * 1.05:
            need = f"{size_text(free)} free where the model of {entry.size_text} would go"
            yield Check("model", "disk", "problem", need, "free some space, or move the folder by NEXO_HOME")
        return
    except ModelCorrupt as error:
        yield Check("model", settings_.model, "problem", str(error), "nexo-lsp models verify")
        return
    except ModelError as error:
        yield Check("model", settings_.model, "problem", str(error), "nexo-lsp models list")
        return
    yield from _model_file(store, path)


def _located(store: ModelStore, name: str) -> Path | None:
    try:
        return store.locate(name)
    except ModelError:
        return None


def _model_file(store: ModelStore, path: Path) -> Iterator[Check]:
    known = {installed.path: installed for installed in store.installed()}
    installed = known.get(path)
    size = path.stat().st_size
    if installed is None or installed.entry is None:
        yield Check("model", path.name, "ok", f"{path} ({size_text(size)}; not of the catalogue)")
    elif installed.embedded:
        yield Check("model", installed.name, "ok", f"{path} ({size_text(size)}, came with the program)")
    elif installed.verified:
        yield Check("model", installed.name, "ok", f"{path} ({size_text(size)}, verified)")
    else:
        yield Check("model", installed.name, "warning", f"{path} was never checked", "nexo-lsp models verify")
    need = round(size * _MEMORY_FACTOR) + _MEMORY_EXTRA
    available = psutil.virtual_memory().available
    if available < need:
        text = f"{size_text(available)} available, about {size_text(need)} wanted"
        yield Check("model", "memory", "warning", text, "end other programs, or choose a smaller model")


def _fitted(settings_: Settings, path: Path | None, folders: Folders) -> Iterator[Check]:
    """What the machine allows, and what was measured on it."""
    if path is None:
        yield from bounds(settings_.engine, None)
        return
    tuning = tuning_of(settings_.engine, path, folders.state)
    engine = settings_.engine.model_copy(update={"threads": tuning.threads})
    yield from bounds(engine, path, unpack_folder=unpack_folder(engine, folders))
    mend = "" if tuning.threads else "nexo-lsp doctor --tune measures which number is best"
    yield Check("bounds", "threads", "ok", tuning.threads_reason, mend)
    yield Check("bounds", "drafting", "ok", tuning.draft_reason)


def grammars() -> Iterator[Check]:
    """Whether each language's grammar can be loaded."""
    for language in LANGUAGES:
        if grammar_of(language) is not None:
            yield Check("grammars", language.id, "ok", language.name)
        elif not language.grammar.startswith("pack:"):
            package = language.grammar.partition(":")[0].replace("_", "-")
            mend = f"pip install --force-reinstall {package}"
            yield Check("grammars", language.id, "problem", f"{language.name} cannot be loaded", mend)


def places(folders: Folders) -> Iterator[Check]:
    """Whether the folders can be written, how much room there is, and whether the database opens."""
    for name, folder in (("models", folders.models), ("state", folders.state), ("logs", folders.logs)):
        free = _free(folder)
        room = f"{folder} ({size_text(free)} free)" if free is not None else str(folder)
        if _writable(folder):
            yield Check("folders", name, "ok", room)
        else:
            mend = "give yourself write permission, or move all folders by NEXO_HOME"
            yield Check("folders", name, "problem", f"{folder} cannot be written", mend)
    if (folders.state / FILE_NAME).exists():
        database = Database(folders.state / FILE_NAME)
        try:
            ((answers,),) = database.query("SELECT count(*) FROM answers")
            yield Check("folders", "database", "ok", f"{answers} answers kept")
        except StorageError as error:
            yield Check("folders", "database", "problem", str(error), "see the message")
        finally:
            database.close()


def _existing(folder: Path) -> Path | None:
    return next((place for place in (folder, *folder.parents) if place.exists()), None)


def _writable(folder: Path) -> bool:
    place = _existing(folder)
    return place is not None and place.is_dir() and os.access(place, os.W_OK)


def _free(folder: Path) -> int | None:
    place = _existing(folder)
    try:
        return shutil.disk_usage(place).free if place is not None else None
    except OSError:
        return None


def everything(
    resolved: Resolved,
    folders: Folders,
    environ: Mapping[str, str],
    chosen: str,
    reasons: tuple[str, ...],
) -> Iterator[Check]:
    """All checks, in the order in which they are shown."""
    yield from machine()
    yield from settings(resolved)
    wanted = resolved.settings.engine.kind
    yield from engine(chosen, reasons, wanted)
    yield from containers(resolved.settings, environ)
    if wanted != "mock":
        store = ModelStore(folders.models, environ)
        yield from model(store, resolved.settings)
        if chosen == "native":
            yield from _fitted(resolved.settings, _located(store, resolved.settings.model), folders)
    yield from grammars()
    yield from places(folders)

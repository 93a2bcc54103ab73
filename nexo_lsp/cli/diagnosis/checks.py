"""What `nexo-lsp doctor` looks at: each check is one function, and each problem names what mends it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from nexo_lsp.app import App
from nexo_lsp.cli.check import Check, State
from nexo_lsp.cli.container_checks import containers
from nexo_lsp.cli.diagnosis import model_checks, remote_checks
from nexo_lsp.cli.diagnosis.bounds import bounds
from nexo_lsp.cli.diagnosis.looks import Looks, existing
from nexo_lsp.cli.diagnosis.machine import machine
from nexo_lsp.cli.diagnosis.plan import NAMES, OperationPlan, Plan
from nexo_lsp.errors import StorageError
from nexo_lsp.folders import Folders
from nexo_lsp.generation import Operation
from nexo_lsp.models.catalog import size_text
from nexo_lsp.runtime.choice import kind_of
from nexo_lsp.runtime.environment import Environment
from nexo_lsp.runtime.providers.mobile import PHONES
from nexo_lsp.runtime.providers.native import tuning_of, unpack_folder
from nexo_lsp.settings import Resolved, Settings
from nexo_lsp.storage import FILE_NAME, Database
from nexo_lsp.syntax.languages import LANGUAGES, grammar_of

# Double quotes are the ones that every shell knows, that of Windows too.
INSTALL_NATIVE = 'pip install "nexo-lsp[native]"'

_COMPILERS = ("c++", "g++", "clang++", "cl")

_NAMED: dict[str, tuple[State, str]] = {
    "remote": (
        "problem",
        "set nexo.remote.enabled and nexo.remote.endpoints in your own settings, or nexo.engine to `auto`",
    ),
    "client-hosted": ("warning", "open an editor that offers one, or set nexo.engine to `auto`"),
}
"""What to do where the settings name an engine that cannot be used; the doctor itself runs in no editor."""

_OTHERWISE: tuple[State, str] = ("problem", "name another engine of the table by nexo.engine, or `auto`")

_LITTLE_DISK = 200_000_000
"""Bytes: what the database, logs and evaluated prompts may come to."""


def settings(resolved: Resolved, folders: Folders) -> Iterator[Check]:
    """What is wrong with the settings, if anything is."""
    for problem in resolved.problems:
        mend = "correct it, or take it away; `nexo-lsp config` shows what is in force"
        yield Check("settings", problem.name, "problem", problem.message, mend)
    if not resolved.settings.enable:
        yield Check(
            "settings", "nexo.enable", "warning", "off: nothing is answered", "set nexo.enable to true"
        )
    file = folders.settings_file
    there = existing(file) == file
    yield Check("settings", "your file", "ok", str(file) if there else f"{file} (not there)")
    count = len(resolved.origins)
    yield Check(
        "settings", "settings", "ok", f"{count} set, the others at default" if count else "all at default"
    )


def engine(settings_: Settings, environment: Environment, plan: Plan, looks: Looks) -> Iterator[Check]:
    """Whether every operation has an engine, and whether llama.cpp can be loaded."""
    library = importlib.util.find_spec("llama_cpp") is not None
    for one in plan.operations:
        for operation in one.operations:
            kind = kind_of(settings_, operation)
            if one.engine or (not library and kind in {"auto", "native", "mobile"} and not one.if_trusted):
                # A library that is missing is one problem, and is told below.
                continue
            yield _without(one, operation, kind, environment, plan)
    if all(one.engine == "mock" for one in plan.operations):
        yield Check("engine", "engine", "ok", "mock: scripted answers, for tests")
        return
    yield from _library(plan, looks)


def _without(
    one: OperationPlan, operation: Operation, kind: str, environment: Environment, plan: Plan
) -> Check:
    """What to say of an operation that no engine may answer."""
    name = NAMES[operation]
    if one.if_trusted:
        return Check("engine", name, "ok", f"answered by {one.if_trusted}, in workspaces that you trust only")
    subject = kind
    if kind == "auto":
        subject = "mobile" if environment.platform in PHONES else "native"
    why = next((row.cells[operation].reasons[0] for row in plan.engines if row.name == subject), "not there")
    state, mend = _NAMED.get(kind, _OTHERWISE)
    if one.model is not None and 0 < environment.free_bytes < one.model.size_bytes:
        first = "give the container more memory" if environment.container else "end other programs"
        mend = f"{first}, or choose a smaller model (nexo.model)"
    return Check("engine", name, state, f"{subject}: {why}", mend)


def _library(plan: Plan, looks: Looks) -> Iterator[Check]:
    if importlib.util.find_spec("llama_cpp") is None:
        # Who has another engine may do without.
        wanted = not all(one.engine or one.if_trusted for one in plan.operations)
        mend = f"{INSTALL_NATIVE} (it is compiled here, which takes some minutes)"
        yield Check("engine", "llama-cpp-python", "problem" if wanted else "ok", "not installed", mend)
        if wanted:
            yield from _compiler()
        return
    version = importlib.metadata.version("llama-cpp-python")
    failure = looks.import_failure("llama_cpp")
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


def fitted(app: App, plan: Plan, looks: Looks) -> Iterator[Check]:
    """What memory and devices allow each model that runs here, asked of llama.cpp, and what was measured."""
    native = [one.model for one in plan.operations if one.engine == "native" and one.model is not None]
    engine, folders = app.settings.engine, app.folders
    for model in dict.fromkeys(native):
        if not model.path:
            continue
        path = Path(model.path)
        tuning = tuning_of(engine, path, folders.state)
        tuned = engine.model_copy(update={"threads": tuning.threads})
        yield from bounds(tuned, path, looks.ask, unpack_folder=unpack_folder(tuned, folders))
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


def places(folders: Folders, looks: Looks) -> Iterator[Check]:
    """Whether the folders can be written, how much room there is, and whether the database opens."""
    for name, folder in (("models", folders.models), ("state", folders.state), ("logs", folders.logs)):
        free = looks.disk_free(folder)
        room = f"{folder} ({size_text(free)} free)" if free is not None else str(folder)
        if not looks.writable(folder):
            mend = "give yourself write permission, or move all folders by NEXO_HOME"
            yield Check("folders", name, "problem", f"{folder} cannot be written", mend)
        elif free is not None and free < _LITTLE_DISK:
            mend = "free some space (`nexo-lsp models prune`), or move all folders by NEXO_HOME"
            yield Check("folders", name, "warning", f"{room}: the disk is nearly full", mend)
        else:
            yield Check("folders", name, "ok", room)
    yield from _database(folders)


def _database(folders: Folders) -> Iterator[Check]:
    file = folders.state / FILE_NAME
    try:
        if not file.exists():
            return
        database = Database(file)
        try:
            ((answers,),) = database.query("SELECT count(*) FROM answers")
            yield Check("folders", "database", "ok", f"{answers} answers kept")
        finally:
            database.close()
    except (StorageError, OSError) as error:
        yield Check("folders", "database", "problem", str(error), f"move {file} away; a new one is made")


def everything(app: App, environ: Mapping[str, str], plan: Plan, looks: Looks) -> Iterator[Check]:
    """All checks that ask nobody else, in the order in which they are shown."""
    chosen = app.settings
    yield from machine(app.room.environment, chosen, app.room.pause_below(), looks)
    yield from settings(app.resolved, app.folders)
    yield from engine(chosen, app.room.environment, plan, looks)
    yield from containers(chosen, environ)
    yield from model_checks.models(app, environ, plan, looks)
    yield from fitted(app, plan, looks)
    yield from model_checks.folder(app, plan)
    yield from remote_checks.remote(chosen, environ)
    yield from grammars()
    yield from places(app.folders, looks)

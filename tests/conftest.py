"""Fixtures for all tests: a home of their own, and the real model for those marked `model`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from nexo_lsp.engines.llama.endpoint import EndpointFile
from nexo_lsp.errors import ModelError
from nexo_lsp.folders import folders
from nexo_lsp.models.store import ModelStore

# The environment as the user has it, before any test's own home.
USER = dict(os.environ)

IN_CI = bool(USER.get("NEXO_CI"))
"""Whether nothing may be skipped because something is missing."""


@pytest.fixture(scope="session")
def model_path() -> Path:
    """The file of the default model.

    `NEXO_TEST_MODEL` names one; otherwise it is fetched once into the user's own cache, as `nexo-lsp models
    pull` would. Without a network the tests that need it are skipped, except in CI (`NEXO_CI`).
    """
    named = USER.get("NEXO_TEST_MODEL")
    if named:
        path = Path(named)
        assert path.is_file(), f"NEXO_TEST_MODEL names no file: {path}"
        return path
    store = ModelStore(folders(USER).models, USER)
    try:
        try:
            return store.locate("auto")
        except ModelError:
            return store.pull("auto")
    except ModelError as error:
        if IN_CI:
            pytest.fail(f"the default model cannot be had: {error}")
        pytest.skip(f"the default model cannot be had: {error}")


@pytest.fixture(autouse=True)
def nexo_home(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Path]:
    """An empty home, so that no test sees or changes what the user has; no setting comes from outside.

    An engine that servers of this home shared (or of the home that tests of the server make) would live on for
    some seconds; it is ended with the test.
    """
    for name in USER:
        if name.startswith("NEXO_"):
            monkeypatch.delenv(name, raising=False)
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("NEXO_HOME", str(home))
    # Tests run the same on a laptop whose battery is low: a file that is not there is no battery.
    monkeypatch.setenv("NEXO_FAKE_BATTERY", str(home / "no-battery"))
    yield home
    end_hubs(home)
    if (folder := request.node.funcargs.get("tmp_path")) is not None:
        end_hubs(folder / "home")


def end_hubs(home: Path) -> None:
    """End every shared engine of `home`."""
    folder = home / "state" / "engine"
    for file in folder.glob("*.json"):
        endpoint = EndpointFile(folder, file.stem).read()
        if endpoint is not None and psutil.pid_exists(endpoint.pid):
            process = psutil.Process(endpoint.pid)
            process.kill()
            psutil.wait_procs([process], timeout=30)

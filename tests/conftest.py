"""Fixtures for all tests: a home of their own, and the real model for those marked `model`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nexo_lsp.errors import ModelError
from nexo_lsp.folders import folders
from nexo_lsp.models.store import ModelStore

# The environment as the user has it, before any test's own home.
_USER = dict(os.environ)

IN_CI = bool(_USER.get("NEXO_CI"))
"""Whether nothing may be skipped because something is missing."""


@pytest.fixture(scope="session")
def model_path() -> Path:
    """The file of the default model.

    `NEXO_TEST_MODEL` names one; otherwise it is fetched once into the user's own cache, as `nexo-lsp models
    pull` would. Without a network the tests that need it are skipped, except in CI (`NEXO_CI`).
    """
    named = _USER.get("NEXO_TEST_MODEL")
    if named:
        path = Path(named)
        assert path.is_file(), f"NEXO_TEST_MODEL names no file: {path}"
        return path
    store = ModelStore(folders(_USER).models, _USER)
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
def nexo_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home, so that no test sees or changes what the user has; no setting comes from outside."""
    for name in _USER:
        if name.startswith("NEXO_"):
            monkeypatch.delenv(name, raising=False)
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("NEXO_HOME", str(home))
    return home

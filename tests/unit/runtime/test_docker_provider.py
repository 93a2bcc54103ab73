from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from nexo_lsp.generation import EngineState
from nexo_lsp.runtime.environment import Platform
from nexo_lsp.runtime.providers.containers import daemon
from nexo_lsp.runtime.providers.docker import DockerProvider
from nexo_lsp.settings import DockerSettings, EngineSettings


async def model() -> Path:
    return Path("/models/coder.gguf")


def provider(*, installed: bool = True, **settings: object) -> DockerProvider:
    return DockerProvider(
        DockerSettings(**settings), EngineSettings(), model, {}, Platform.LINUX, installed=lambda: installed
    )


def test_it_is_taken_by_itself_only_when_turned_on() -> None:
    assert provider().traits().only_by_name
    assert not provider(enabled=True).traits().only_by_name
    traits = provider().traits()
    assert (traits.sends_code, traits.network, traits.processes) == (False, False, False)


def test_whether_it_can_be_used_and_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = f"unix://{tmp_path}/docker.sock"
    assert "pip install" in provider(installed=False).probe().reason
    found = provider(socket=nowhere).probe()
    assert not found.usable
    assert "nothing is there" in found.reason
    assert "nexo.docker.socket" in found.reason
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("docker.sock")
        assert provider(socket=nowhere).probe().usable


def test_the_sdk_is_no_folder_of_the_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many projects have a folder called `docker`, and Python would take it for a package."""
    (tmp_path / "docker").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "docker", raising=False)
    assert not daemon.is_installed()


async def test_making_an_engine_starts_nothing() -> None:
    engine = provider(socket="unix:///nowhere").create_engine(lambda _status: None)
    assert engine.status().state is EngineState.IDLE
    assert engine.capabilities().infill
    await engine.close()

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from nexo_lsp.cli import container_checks
from nexo_lsp.cli.container_checks import containers
from nexo_lsp.cli.program import build
from nexo_lsp.settings import DockerSettings, EngineSettings, ReviewSettings, Settings


def test_the_doctor_looks_only_where_a_container_is_wanted(tmp_path: Path) -> None:
    nowhere = DockerSettings(socket=f"{tmp_path}/docker.sock")
    assert list(containers(Settings(docker=nowhere), {})) == []
    for wanting in (
        Settings(docker=nowhere.model_copy(update={"enabled": True})),
        Settings(docker=nowhere, engine=EngineSettings(kind="docker")),
        Settings(docker=nowhere, review=ReviewSettings(engine="docker")),
    ):
        (check,) = containers(wanting, {})
        assert check.state == "problem"
        assert f"unix://{tmp_path}/docker.sock" in check.value


def test_the_doctor_names_the_command_that_installs_the_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container_checks, "is_installed", lambda: False)
    (check,) = containers(Settings(docker=DockerSettings(enabled=True)), {})
    assert (check.state, check.mend) == ("problem", 'run: pip install "nexo-lsp[docker]"')


def test_nothing_can_be_removed_without_an_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXO_DOCKER_SOCKET", f"{tmp_path}/docker.sock")
    result = CliRunner().invoke(build(["docker"]), ["docker", "prune"])
    assert result.exit_code == 3
    assert "nothing is there" in result.output

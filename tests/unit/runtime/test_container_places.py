from __future__ import annotations

import grp  # noqa: F401 -- here before the test becomes a user who may not read it
import hashlib
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from nexo_lsp.runtime.environment import Platform
from nexo_lsp.runtime.providers.containers.places import find, problem


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short name, since addresses of sockets are short."""
    path = Path(tempfile.mkdtemp(prefix="nexo-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def listening(folder: Path) -> Iterator[Path]:
    path = folder / "docker.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        yield path


def only(*urls: str):
    """A look at a machine on which just these are there."""
    return lambda url: "" if url in urls else "nothing is there"


ELSEWHERE = {"XDG_RUNTIME_DIR": "/run/user/1000", "DOCKER_CONFIG": "/nonexistent"}


def test_what_is_named_is_the_only_one_tried() -> None:
    usual = only("unix:///var/run/docker.sock")
    named = {**ELSEWHERE, "DOCKER_HOST": "unix:///nowhere/docker.sock"}
    search = find("", named, Platform.LINUX, look=usual)
    assert search.place is None
    assert search.tried == ("unix:///nowhere/docker.sock (DOCKER_HOST): nothing is there",)
    search = find("/nowhere/else.sock", named, Platform.LINUX, look=usual)
    assert search.tried == ("unix:///nowhere/else.sock (nexo.docker.socket): nothing is there",)
    assert "nexo.docker.socket" in search.why_not
    assert "unix:///nowhere/else.sock" in search.why_not


@pytest.mark.parametrize(
    ("platform", "there", "before"),
    [
        (Platform.LINUX, "unix:///var/run/docker.sock", 0),
        (Platform.LINUX, "unix:///run/user/1000/docker.sock", 1),
        (Platform.LINUX, "unix:///run/user/1000/podman/podman.sock", 3),
        (Platform.LINUX, "unix:///run/podman/podman.sock", 4),
        (Platform.MACOS, f"unix://{Path.home()}/.docker/run/docker.sock", 1),
        (Platform.MACOS, f"unix://{Path.home()}/.colima/default/docker.sock", 3),
        (Platform.WINDOWS, "npipe:////./pipe/docker_engine", 0),
        (Platform.WINDOWS, "npipe:////./pipe/podman-machine-default", 1),
    ],
)
def test_the_usual_places(platform: Platform, there: str, before: int) -> None:
    search = find("", ELSEWHERE, platform, look=only(there))
    assert search.place is not None
    assert search.place.url == there
    assert len(search.tried) == before


def test_the_context_of_the_docker_command_comes_first(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"currentContext": "colima"}')
    meta = tmp_path / "contexts" / "meta" / hashlib.sha256(b"colima").hexdigest() / "meta.json"
    meta.parent.mkdir(parents=True)
    meta.write_text(
        json.dumps({"Name": "colima", "Endpoints": {"docker": {"Host": "unix:///c/docker.sock"}}})
    )
    environ = {"DOCKER_CONFIG": str(tmp_path)}
    both = only("unix:///c/docker.sock", "unix:///var/run/docker.sock")
    search = find("", environ, Platform.MACOS, look=both)
    assert search.place is not None
    assert (search.place.url, search.place.source) == ("unix:///c/docker.sock", "docker context colima")
    assert find("", {**environ, "DOCKER_CONTEXT": "default"}, Platform.MACOS, look=both).place != search.place
    # One that does not run is told about, and the usual places are tried.
    search = find("", environ, Platform.MACOS, look=only("unix:///var/run/docker.sock"))
    assert search.place is not None
    assert search.tried == ("unix:///c/docker.sock (docker context colima): nothing is there",)


@pytest.mark.parametrize("text", ["[]", '{"currentContext": 3}', "no json", '{"currentContext": "gone"}'])
def test_a_broken_configuration_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    search = find(
        "", {"DOCKER_CONFIG": str(tmp_path)}, Platform.LINUX, look=only("unix:///var/run/docker.sock")
    )
    assert search.tried == ()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("tcp://build-server:2375", "on another machine"),
        ("https://10.0.0.7:2376", "on another machine"),
        ("ssh://me@server", "SSH"),
        ("docker.sock", "not an address"),
        ("unix:///nowhere/docker.sock", "nothing is there"),
        ("npipe:////./pipe/docker_engine", "nothing is there"),
        ("tcp://127.0.0.1:2375", ""),
        ("tcp://localhost:2375", ""),
        ("tcp://[::1]:2375", ""),
    ],
)
def test_addresses(url: str, words: str) -> None:
    found = problem(url)
    assert words in found
    assert bool(found) == bool(words)


def test_a_socket_is_looked_at_and_not_connected_to(listening: Path, folder: Path) -> None:
    assert problem(f"unix://{listening}") == ""
    (folder / "file").touch()
    assert problem(f"unix://{folder}/file") == "is no socket"


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become another user"
)
def test_a_socket_that_is_not_for_us(listening: Path, folder: Path) -> None:
    folder.chmod(0o755)
    listening.chmod(0o660)
    os.chown(listening, 0, 5)
    os.seteuid(65534)
    try:
        found = problem(f"unix://{listening}")
    finally:
        os.seteuid(0)
    assert found.startswith("permission denied")
    assert "sudo usermod -aG" in found

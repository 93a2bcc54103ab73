"""A Docker Engine of the tests' own, and an image with a llama.cpp server made from what is on this machine."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from nexo_lsp.errors import EngineUnavailable
from nexo_lsp.runtime.providers.containers.daemon import Daemon

PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
"""Where administrators' programs are, whatever the user's shell says."""

_STARTED_S, _STOPPED_S = 60.0, 30.0
_UNWANTED = frozenset(
    {
        "test",
        "tests",
        "idlelib",
        "tkinter",
        "turtledemo",
        "ensurepip",
        "lib2to3",
        "pydoc_data",
        "site-packages",
    }
    | {"dist-packages", "include", "bin"}
)


def missing() -> str:
    """Why no Docker Engine can be started here; empty if it can."""
    absent = [name for name in ("dockerd", "containerd", "runc") if shutil.which(name, path=PATH) is None]
    if absent:
        return f"{', '.join(absent)} not installed (Debian: docker.io, iptables)"
    return "" if os.geteuid() == 0 else "only root can start a Docker Engine"


@contextmanager
def docker_engine() -> Iterator[str]:
    """The address of an engine that shares nothing with another one, and changes nothing on the machine.

    It makes no bridge and no packet filter rules of its own; ports are published by its proxy processes.
    """
    # Short, since addresses of sockets are; for everybody, since another user is to be refused at the socket.
    folder = Path(tempfile.mkdtemp(prefix="nexo-dockerd-"))
    folder.chmod(0o755)
    url = f"unix://{folder}/docker.sock"
    command = [
        *("setpriv", "--pdeathsig", "TERM", "dockerd", "--host", url),
        *("--data-root", str(folder / "data"), "--exec-root", str(folder / "exec")),
        *("--pidfile", str(folder / "pid"), "--iptables=false", "--ip6tables=false", "--ip-forward=false"),
        *("--bridge=none", "--userland-proxy=true"),
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, "PATH": PATH},
            start_new_session=True,
        )
    try:
        _wait_for(url, process, folder / "log")
        yield url
    finally:
        process.terminate()
        try:
            process.wait(_STOPPED_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        shutil.rmtree(folder)


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _STARTED_S
    daemon = Daemon(url)
    while True:
        try:
            daemon.facts()
        except EngineUnavailable:
            assert process.poll() is None, f"dockerd ended: {log.read_text()[-3000:]}"
            assert time.monotonic() < deadline, f"dockerd does not answer: {log.read_text()[-3000:]}"
            time.sleep(0.1)
        else:
            daemon.close()
            return


# What stands at the entry of the official image takes these arguments; here they are those of llama_cpp.server.
_ENTRY = """\
#!{python}
import os, runpy, sys
words = sys.argv[1:]
assert words[-1] == "--no-webui", words
said = dict(zip(words[:-1:2], words[1:-1:2], strict=True))
sys.argv = [
    "llama_cpp.server",
    *("--host", said.pop("--host"), "--port", said.pop("--port"), "--model", said.pop("-m")),
    *("--n_ctx", said.pop("-c"), "--n_threads", said.pop("-t"), "--api_key", os.environ["LLAMA_API_KEY"]),
    *("--interrupt_requests", "false"),
]
assert not said, said
runpy.run_module("llama_cpp.server", run_name="__main__", alter_sys=True)
"""


def write_python_image(tar: Path) -> list[str]:
    """Write a folder tree with this Python and `llama_cpp.server`; the answer are the image's settings."""
    # The interpreter and its library keep their places; what is installed beside this project gets a new one.
    python = Path(sys._base_executable).resolve()  # pyright: ignore[reportPrivateUsage]
    with tarfile.open(tar, "w") as archive:
        binaries = [python]
        archive.add(python)
        for file in _standard_library():
            archive.add(file, recursive=False)
            binaries += [file] if ".so" in file.suffixes else []
        for file, name in _server_packages():
            archive.add(file, f"app/site/{name}", recursive=False)
            binaries += [file] if ".so" in file.suffixes else []
        for library in shared_libraries(binaries):
            if "site-packages" not in library.parts:
                archive.add(library.resolve(), str(library))
        _add_program(archive, "app/llama-server", _ENTRY.format(python=python))
    return ['ENTRYPOINT ["/app/llama-server"]', "ENV PYTHONPATH=/app/site", "ENV PYTHONUNBUFFERED=1"]


def write_llama_server_image(tar: Path, program: Path) -> list[str]:
    """Write a folder tree with llama.cpp's own server; the answer are the image's settings."""
    own = [file for file in program.parent.iterdir() if ".so" in file.name]
    with tarfile.open(tar, "w", dereference=True) as archive:
        for file in (program, *own):
            archive.add(file, f"app/{file.name}")
        for library in shared_libraries([program]):
            if library.parent != program.parent:
                archive.add(library.resolve(), str(library))
    return ['ENTRYPOINT ["/app/llama-server"]', "ENV LD_LIBRARY_PATH=/app"]


def _add_program(archive: tarfile.TarFile, name: str, text: str) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".py") as file:
        file.write(text)
        file.flush()
        entry = archive.gettarinfo(file.name, name)
        entry.mode = 0o755
        with Path(file.name).open("rb") as data:
            archive.addfile(entry, data)


def _standard_library() -> Iterator[Path]:
    root = Path(sysconfig.get_path("stdlib", vars={"installed_base": sys.base_prefix}))
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in _UNWANTED and not name.startswith("config-")]
        yield from (
            Path(folder, name) for name in files if not name.endswith((".a", ".opt-1.pyc", ".opt-2.pyc"))
        )


def _server_packages() -> Iterator[tuple[Path, str]]:
    """The files of `llama-cpp-python[server]` and of all that it needs, with their names below the packages folder."""
    todo, seen = [Requirement("llama-cpp-python[server]")], set[tuple[str, frozenset[str]]]()
    files: dict[str, Path] = {}
    while todo:
        wanted = todo.pop()
        key = (wanted.name.lower(), frozenset(wanted.extras))
        if key in seen:
            continue
        seen.add(key)
        found = importlib.metadata.distribution(wanted.name)
        for text in found.requires or ():
            need = Requirement(text)
            if need.marker is None or any(
                need.marker.evaluate({"extra": extra}) for extra in ("", *wanted.extras)
            ):
                todo.append(need)
        for file in found.files or ():
            folders = file.parts[:-1]
            # llama-cpp-python installs its libraries twice; those in `lib` are not the ones that it loads.
            unwanted = ".." in folders or folders[:1] == ("lib",) or _UNWANTED.intersection(folders)
            if not unwanted and file.suffix not in {".a", ".h", ".pyi"}:
                files[str(file)] = Path(str(file.locate()))
    yield from ((path, name) for name, path in files.items() if path.is_file())


def shared_libraries(binaries: Iterable[Path]) -> set[Path]:
    """The libraries of the system that programs and libraries need, the loader among them."""
    told = subprocess.run(["ldd", *map(str, binaries)], capture_output=True, text=True, check=False).stdout
    words = {word for line in told.splitlines() if line.startswith("\t") for word in line.split()}
    return {path for word in words if word.startswith("/") and (path := Path(word)).is_file()}


def import_image(client: Any, tar: Path, name: str, settings: list[str]) -> None:
    """Make an image of a folder tree. Podman wants it to be called `latest`."""
    client.api.import_image_from_file(str(tar), repository=name, tag="latest", changes=settings)

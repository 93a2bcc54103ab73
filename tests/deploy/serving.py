"""Ray and its Serve application as child processes, started by the commands of `deploy/ray/README.md`."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil
import yaml

ROOT = Path(__file__).resolve().parents[2]
APPLICATION = ROOT / "deploy" / "ray"

# Starting may compete with everything else that a busy machine does.
START_S = 120.0

# A parent that ignores Ctrl-C (a shell's background job) hands that down; `serve run` ends by it.
_SERVE = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from ray.serve.scripts import cli; cli()"
)

T = TypeVar("T")


def until(look: Callable[[], T | None], what: str, seconds: float = START_S) -> T:
    """Look again and again until there is something to see."""
    end = time.monotonic() + seconds
    while (seen := look()) is None:
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds:.0f} s for {what}")
        time.sleep(0.1)
    return seen


@dataclass(frozen=True)
class Cluster:
    """One Ray node with the application on it."""

    url: str
    """Of Serve's proxy, without `/v1`."""
    key: str
    """What clients have to send."""
    folder: Path

    @property
    def headers(self) -> dict[str, str]:
        """What every request carries."""
        return {"authorization": f"Bearer {self.key}"}

    def processes(self) -> list[psutil.Process]:
        """Everything of this Ray that lives."""
        found: list[psutil.Process] = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("NEXO_TEST_RAY") == str(self.folder):
                    found.append(process)
        return found

    def replicas(self) -> list[psutil.Process]:
        """The processes of the replicas."""
        return [process for process in self.processes() if "ServeReplica" in process.name()]

    def replica(self, identity: str) -> psutil.Process:
        """The process of a replica, by the name that its answers carry: it is part of its log file's name."""
        for process in self.replicas():
            if any(identity in file.path for file in process.open_files()):
                return process
        raise LookupError(identity)

    def log(self) -> str:
        """What was printed, for a failure's report."""
        return "\n".join(file.read_text(errors="replace")[-6000:] for file in self.folder.glob("*.out"))


@contextlib.contextmanager
def cluster(model: Path, replicas: int) -> Iterator[Cluster]:
    """A cluster with so many replicas, one CPU each; nothing of it is left behind."""
    # Sockets lie below it, and their paths may not be longer than 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="nxr", dir="/tmp"))
    gcs, client, agent, http = _free_ports(4)
    here = Cluster(f"http://127.0.0.1:{http}", secrets.token_hex(16), folder)
    (folder / "api-key").write_text(f"{here.key}\n")
    environ = {
        **os.environ,
        "NEXO_TEST_RAY": str(folder),
        "PYTHONPATH": str(ROOT),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(_config(model, replicas, http, folder / "api-key")))
    node = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
        *("--temp-dir", str(folder / "ray"), "--port", str(gcs), "--num-cpus", str(replicas)),
        *("--min-worker-port", "0", "--max-worker-port", "0", "--ray-client-server-port", str(client)),
        *("--dashboard-agent-listen-port", str(agent), "--include-dashboard", "false"),
        *("--object-store-memory", "80000000", "--disable-usage-stats"),
    ]
    serve = [
        sys.executable,
        "-c",
        _SERVE,
        "run",
        str(folder / "config.yaml"),
        "--address",
        f"127.0.0.1:{gcs}",
    ]
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        try:
            stack.callback(_end, here, _start(node, folder / "node.out", environ))
            until(lambda: "Ray runtime started" in (folder / "node.out").read_text() or None, "Ray")
            running = _start(serve, folder / "serve.out", environ)
            stack.callback(_interrupt, running)
            until(lambda: _answers(here, running), "the first replicas")
        except (TimeoutError, ChildProcessError) as error:
            raise AssertionError(f"{error}\n{here.log()}") from error
        yield here


def _config(model: Path, replicas: int, port: int, key: Path) -> dict[str, Any]:
    """The file that is delivered, with what a small machine needs."""
    config = yaml.safe_load((APPLICATION / "config.yaml").read_text())
    config["http_options"]["port"] = port
    (application,) = config["applications"]
    application["args"] |= {"model": str(model), "context_tokens": 2048, "api_key_file": str(key)}
    (deployment,) = application["deployments"]
    deployment["autoscaling_config"] |= {"min_replicas": replicas, "max_replicas": replicas}
    deployment["ray_actor_options"] = {"num_cpus": 1}
    deployment["health_check_period_s"] = 1
    return config


def _answers(here: Cluster, running: subprocess.Popen[bytes]) -> bool | None:
    if running.poll() is not None:
        raise ChildProcessError("`serve run` ended")
    with contextlib.suppress(httpx.HTTPError):
        if httpx.get(f"{here.url}/v1/models", headers=here.headers, timeout=10).status_code == 200:
            return True
    return None


def _start(command: list[str], output: Path, environ: dict[str, str]) -> subprocess.Popen[bytes]:
    with output.open("wb") as file:
        return subprocess.Popen(
            command, cwd=APPLICATION, env=environ, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
            start_new_session=True,
        )  # fmt: skip


def _interrupt(running: subprocess.Popen[bytes]) -> None:
    """Ctrl-C: Serve drains and ends."""
    running.send_signal(signal.SIGINT)
    try:
        running.wait(60)
    except subprocess.TimeoutExpired:
        running.kill()
        running.wait()


def _end(here: Cluster, node: subprocess.Popen[bytes]) -> None:
    """End the node, which ends its own, then whatever did not end with it."""
    node.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        node.wait(30)
    left = here.processes()
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=20)
    node.wait()
    assert not here.processes()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [item.getsockname()[1] for item in sockets]

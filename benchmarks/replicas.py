"""How the review of a repository gets quicker with replicas of an engine.

    python -m benchmarks.replicas [--json] [--replicas 1,4,16,64] [--tree nexo_lsp]
    python -m benchmarks.replicas --endpoints http://127.0.0.1:8001/v1,http://127.0.0.1:8002/v1

The client's side is the real one: the files of a tree, our pipeline, secrets taken out, `--jobs`, our engine
for remote servers, sockets. The replicas are simulated (`simulated_replicas.py`), in one other process: each
is an OpenAI-compatible server of its own that takes as long as the default model was measured to take. Their
time, and only theirs, is divided by `scale`, so that one replica needs no hour; where there are many it is 1,
or nearly, so that what the client itself costs is not made to look larger or smaller than it is.
`--endpoints` reviews with real servers instead.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from nexo_lsp.cli.review import run
from nexo_lsp.cli.review_report import Report
from nexo_lsp.cli.review_screen import ReviewScreen
from nexo_lsp.cli.terminal import Screen

ROOT = Path(__file__).resolve().parents[1]

# The default model on two cores (see `results/engine.md`): tokens/s of prompts, and of one answer.
PROMPT_TOKENS_PER_S, DECODE_TOKENS_PER_S = 150.0, 40.0
# What the replicas' time is divided by. The client's is not, so with one replica it counts ten times as much
# as it should, and with 64 as it is.
SCALES = {1: 10.0, 4: 4.0, 16: 2.0}
# A replica's next request should lie there when it is done with one.
WAITING_AT_EACH = 1


@dataclass(frozen=True, slots=True)
class Row:
    """One run."""

    replicas: int
    scale: float
    """The replicas' time was divided by it."""
    files: int
    functions: int
    findings: int
    wall_s: float
    """As measured."""
    client_cpu_s: float
    """What our own process took of a processor."""
    busy: float
    """The share of the run in which a replica was at work, in the middle."""

    @property
    def real_s(self) -> float:
        """How long it would take replicas that are not scaled.

        Where `scale` is not 1 the client's own time is enlarged with theirs: it is 1 where that counts.
        """
        return self.wall_s * self.scale


def review(tree: Path, endpoints: Sequence[str], jobs: int) -> tuple[Report, float, float]:
    """Review all below `tree`, with nothing remembered; the report, seconds, and our processor's seconds."""
    with tempfile.TemporaryDirectory() as home, Path(os.devnull).open("w") as nothing:
        settings = {
            "NEXO_HOME": home,
            "NEXO_ENGINE": "remote",
            "NEXO_REMOTE_ENABLED": "true",
            "NEXO_REMOTE_ENDPOINTS": ",".join(endpoints),
            "NEXO_REMOTE_PARALLEL": str(max(1, jobs // len(endpoints))),
            "NEXO_REMOTE_ANSWER_TIMEOUT_S": "600",
        }
        quiet = Console(file=nothing)
        show = ReviewScreen(Screen(quiet, quiet), text=False)
        began, cpu = time.monotonic(), time.process_time()
        report, failure = asyncio.run(run([tree], {**os.environ, **settings}, show, jobs))
        seconds, cpu_seconds = time.monotonic() - began, time.process_time() - cpu
    if failure is not None or not report.complete:
        raise SystemExit(f"the review did not come to its end: {report.problem or failure}")
    return report, seconds, cpu_seconds


@contextlib.contextmanager
def simulated(replicas: int, scale: float) -> Iterator[tuple[list[str], subprocess.Popen[str]]]:
    """So many servers; their addresses, and the process that says at its end what they did."""
    command = [
        *(sys.executable, "-m", "benchmarks.simulated_replicas", "--replicas", str(replicas)),
        *("--prompt-speed", str(PROMPT_TOKENS_PER_S * scale)),
        *("--decode-speed", str(DECODE_TOKENS_PER_S * scale)),
    ]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            ports: list[int] = json.loads(process.stdout.readline())
            yield [f"http://127.0.0.1:{port}/v1" for port in ports], process
        finally:
            process.kill()


def measure(tree: Path, replicas: int, scale: float) -> Row:
    """One run."""
    with simulated(replicas, scale) as (endpoints, process):
        jobs = replicas * (1 + WAITING_AT_EACH)
        report, seconds, cpu = review(tree, endpoints, jobs)
        did, _ = process.communicate("\n")
    done: dict[str, Any] = json.loads(did)
    busy = sum(done["busy_s"]) / replicas / seconds
    files = len(report.files)
    return Row(replicas, scale, files, done["requests"], len(report.findings), seconds, cpu, busy)


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown, and a picture of their times."""
    lines = [
        "| replicas | time | speed-up | at work | measured | scale | client's processor | of the run |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        lines.append(
            f"| {row.replicas} | {span(row.real_s)} | {rows[0].real_s / row.real_s * rows[0].replicas:.1f} | "
            f"{row.busy:.0%} | {row.wall_s:.1f} s | {row.scale:g} | {row.client_cpu_s:.1f} s | "
            f"{row.client_cpu_s / row.wall_s:.0%} |"
        )
    longest = max(row.real_s for row in rows)
    bars = [
        f"{row.replicas:>4} {'█' * max(1, round(60 * row.real_s / longest))} {span(row.real_s)}"
        for row in rows
    ]
    return "\n".join([*lines, "", "```", *bars, "```"])


def span(seconds: float) -> str:
    """Seconds as people say them."""
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:.1f} min"


def machine() -> str:
    """Where it was measured."""
    return (
        f"{platform.machine()}, {os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB, "
        f"{platform.system()}, Python {platform.python_version()}, load {os.getloadavg()[0]:.1f} before"
    )


def main() -> None:
    logging.getLogger("nexo_lsp").addHandler(logging.NullHandler())
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tree", type=Path, default=ROOT / "nexo_lsp")
    parser.add_argument("--replicas", default="1,4,16,64")
    parser.add_argument("--endpoints", default="", help="real servers, separated by commas")
    parser.add_argument("--jobs", type=int, default=4, help="with --endpoints")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    where = machine()
    if arguments.endpoints:
        report, seconds, cpu = review(
            arguments.tree.resolve(), arguments.endpoints.split(","), arguments.jobs
        )
        print(
            json.dumps(
                {"machine": where, "files": len(report.files), "seconds": seconds, "client_cpu_s": cpu}
            )
        )
        return
    rows: list[Row] = []
    for replicas in map(int, arguments.replicas.split(",")):
        rows.append(measure(arguments.tree.resolve(), replicas, SCALES.get(replicas, 1.0)))
        print(f"{replicas} replicas: {rows[-1].wall_s:.1f} s", file=sys.stderr)
    if arguments.json:
        print(json.dumps({"machine": where, "rows": [asdict(row) for row in rows]}, indent=2))
    else:
        print(f"{where}\n{rows[0].files} files, {rows[0].functions} functions\n\n{table(rows)}")
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"\nlargest memory of the client: {memory:.0f} MiB")


if __name__ == "__main__":
    main()

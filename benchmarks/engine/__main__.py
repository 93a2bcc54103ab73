"""Our engine side by side with `llama-server` and `llama_cpp.Llama`, taking turns in one run.

    python -m benchmarks.engine [--rounds N] [--only W1,W3] [--quick] [--build] [--model FILE] [--json]

Same model file, same texts, same bounds, same number of threads, greedy answers. Without `--model` the small
default model is taken, and fetched if need be. `--build` fetches and compiles `llama-server`, for measuring
only; else `NEXO_LLAMA_SERVER` names it, or it is found on the path. A competitor that is not there is
reported as missing. `--write` keeps table and picture in `benchmarks/results/`. All of it takes most of an
hour on two cores: with `--state FILE` it can be run workload by workload.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import httpx
from rich.console import Console
from rich.markdown import Markdown

from benchmarks.engine import competitors, llama_server, plot, report
from benchmarks.engine.competitors import Competitor, Missing, Setting, warm_up
from benchmarks.engine.machine import busy_processes, cores, describe
from benchmarks.engine.workloads import WORKLOADS, Size, Workload
from nexo_lsp.errors import NexoError
from nexo_lsp.folders import folders
from nexo_lsp.models.store import ModelStore

RESULTS = Path(__file__).resolve().parents[1] / "results"
# A competitor rests a little before the next one's turn: OpenMP's threads spin on for a while.
_REST_S = 0.3
# Nothing takes this long unless something hangs.
_TURN_S = 600.0
_FAILURES = (NexoError, httpx.HTTPError, OSError, RuntimeError, TimeoutError)


async def run(
    workload: Workload, setting: Setting, size: Size, results: report.Results, without: Sequence[str] = ()
) -> None:
    """All rounds of one workload; each competitor has its turn in each, and another is first each time."""
    present: list[Competitor] = []
    try:
        for name in workload.competitors:
            if name in without:
                results.lacks(workload.id, name, "left out of this run")
                continue
            try:
                competitor = competitors.make(name, setting)
                present.append(competitor)
                if workload.started:
                    await competitor.start()
                    await warm_up(competitor)
            except (Missing, *_FAILURES) as error:
                present = [other for other in present if other.name != name]
                results.lacks(workload.id, name, str(error) or type(error).__name__)
        for number in range(size.rounds):
            with busy_processes(workload.busy):
                for competitor in [*present[number:], *present[:number]]:
                    if competitor.name not in results.missing.get(workload.id, {}):
                        await _turn(workload, competitor, size, number, results)
    finally:
        for competitor in present:
            await competitor.close()


async def _turn(
    workload: Workload, competitor: Competitor, size: Size, number: int, results: report.Results
) -> None:
    await asyncio.sleep(_REST_S)
    began = time.perf_counter()
    try:
        async with asyncio.timeout(_TURN_S):
            results.add(workload.id, competitor.name, await workload.round(competitor, size, number))
    except _FAILURES as error:
        # One that failed has no comparable figure any more.
        results.lacks(workload.id, competitor.name, f"failed: {str(error) or type(error).__name__}")
        results.samples.get(workload.id, {}).pop(competitor.name, None)
    took = time.perf_counter() - began
    line = f"{workload.id} round {number + 1} of {size.rounds}: {competitor.name}, {took:.0f} s"
    print(line, file=sys.stderr, flush=True)


def server_program(*, build: bool) -> Path | None:
    """Where `llama-server` is; it is built if that is wished and it is nowhere."""
    found = llama_server.find(os.environ)
    if found is None and build:
        try:
            found = llama_server.build(os.environ)
        except (subprocess.CalledProcessError, OSError) as error:
            print(f"llama-server could not be built: {error}", file=sys.stderr)
    return found


def parsed() -> argparse.Namespace:
    """What the user wants."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.engine",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--functions", type=int, default=10, help="how many W2 has")
    parser.add_argument("--only", default="", help="workloads, separated by commas")
    parser.add_argument("--without", default="", help="competitors to leave out, separated by semicolons")
    parser.add_argument("--quick", action="store_true", help="hardly anything of each, to see that it works")
    parser.add_argument("--build", action="store_true", help="build llama-server if it is nowhere")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--state", type=Path, help="keep finished workloads here, and do not run them again")
    parser.add_argument("--write", action="store_true", help="keep table and picture in benchmarks/results/")
    return parser.parse_args()


async def measure(wanted: argparse.Namespace, setting: Setting) -> report.Results:
    """Run what is wanted."""
    size = Size.quick(wanted.rounds) if wanted.quick else Size(wanted.rounds, functions=wanted.functions)
    results = report.Results(describe(), setting.model.name, setting.threads)
    if wanted.state is not None and wanted.state.exists():
        results = report.loaded(wanted.state.read_text("utf-8"))
    only = tuple(filter(None, wanted.only.split(",")))
    for workload in WORKLOADS:
        if (only and not workload.id.startswith(only)) or workload.id in results.samples:
            continue
        await run(workload, setting, size, results, wanted.without.split(";"))
        if wanted.state is not None:
            wanted.state.write_text(json.dumps(asdict(results)), "utf-8")
    return results


def main() -> None:
    wanted = parsed()
    # So that an end from outside takes the servers along as well.
    signal.signal(signal.SIGTERM, lambda _signal, _frame: sys.exit(1))
    where = folders(os.environ)
    model = wanted.model or ModelStore(where.models, os.environ).pull("auto")
    with tempfile.TemporaryDirectory() as scratch:
        program = server_program(build=wanted.build)
        setting = Setting(model, wanted.threads, Path(scratch), where.unpacked, program)
        asyncio.run(competitors.prepare(setting))
        results = asyncio.run(measure(wanted, setting))
    sections = report.sections(results)
    text = report.markdown(results, sections, picture="engine.svg")
    if wanted.write:
        (RESULTS / "engine.md").write_text(text, "utf-8")
        caption = f"{results.model}, {results.threads} threads; shorter is better; (ours / theirs)"
        (RESULTS / "engine.svg").write_text(plot.svg(sections, caption), "utf-8")
    if wanted.json:
        print(json.dumps(report.as_json(results), indent=2))
    else:
        Console().print(Markdown(text))


if __name__ == "__main__":
    main()

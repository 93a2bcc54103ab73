"""How good the review is: small functions with and without a known defect, put to the real model.

    python -m benchmarks.review [--cases tuned|heldout] [--model NAME_OR_PATH] [--bias NUMBER] [--json]

The prompt's examples and biases were chosen by the `tuned` cases; the `heldout` ones were written afterwards
and only measured.

Reported: of the functions with a defect, how many got a finding, and how many one on the right line; of the
functions without, how many got one all the same. Beside it stands on how many of each the prompt's own signs
(regular expressions that choose examples) are found, which is what could be had without a model.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
import tomllib
from pathlib import Path
from typing import cast

from rich.console import Console
from rich.table import Table

from nexo_lsp.context.prompts import Prompts
from nexo_lsp.engines.llama.engine import LlamaEngine
from nexo_lsp.folders import folders
from nexo_lsp.generation import Priority, Request
from nexo_lsp.models.store import ModelStore
from nexo_lsp.pipeline.step import infer
from nexo_lsp.syntax.languages import language_for

DATA = Path(__file__).parent / "data"
CASES = {"tuned": DATA / "review_cases.toml", "heldout": DATA / "review_heldout.toml"}


async def run(cases: list[dict[str, str]], model: str, bias: float | None) -> list[dict[str, object]]:
    async def path() -> Path:
        return ModelStore(folders(os.environ).models, os.environ).locate(model)

    engine, prompts = LlamaEngine(path), Prompts()
    entry = ModelStore(folders(os.environ).models, os.environ).entry_for(model)
    parameters = entry.parameters if entry is not None else None
    rows: list[dict[str, object]] = []
    without_pairs = len(prompts.review(None, "", "").messages)
    for case in cases:
        code = case["code"].strip("\n")
        prompt = prompts.review(language_for(case["language"]), code, "")
        request = Request(
            prompt=prompt,
            json_schema=prompts.review_schema(code, 3),
            logit_bias=prompts.review_bias(code, parameters) if bias is None else ((" []", bias),),
            max_tokens=400,
            session="review",
            priority=Priority.BACKGROUND,
        )
        started = time.perf_counter()
        answer = await infer(engine, request)
        findings = json.loads(answer.text)["findings"]
        defect = case.get("defect")
        rows.append(
            {
                "name": code.splitlines()[0],
                "defect": defect,
                "sign": len(prompt.messages) > without_pairs,
                "flagged": bool(findings),
                "right_line": defect is not None and any(defect in f["quote"] for f in findings),
                "findings": [f"{f['quote']} → {f['category']}: {f['message']}" for f in findings],
                "seconds": round(time.perf_counter() - started, 2),
            }
        )
    await engine.close()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", choices=list(CASES), default="tuned")
    parser.add_argument("--model", default="auto")
    parser.add_argument("--bias", type=float)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    cases = tomllib.loads(CASES[args.cases].read_text(encoding="utf-8"))["case"]
    rows = asyncio.run(run(cases, args.model, args.bias))
    bad = [row for row in rows if row["defect"]]
    fine = [row for row in rows if not row["defect"]]
    summary = {
        "defects": len(bad),
        "signs_on_defects": sum(bool(row["sign"]) for row in bad),
        "signs_on_fine": sum(bool(row["sign"]) for row in fine),
        "flagged": sum(bool(row["flagged"]) for row in bad),
        "right_line": sum(bool(row["right_line"]) for row in bad),
        "fine": len(fine),
        "false_alarms": sum(bool(row["flagged"]) for row in fine),
        "median_s": sorted(float(str(row["seconds"])) for row in rows)[len(rows) // 2],
    }
    if args.json:
        print(json.dumps({"summary": summary, "rows": rows}, indent=1))
        return
    table = Table("function", "defect", "findings", "s")
    for row in rows:
        colour = "green" if bool(row["flagged"]) == bool(row["defect"]) else "red"
        findings = "\n".join(cast("list[str]", row["findings"])) or "–"
        table.add_row(
            str(row["name"]), str(row["defect"] or "–"), f"[{colour}]{findings}[/]", str(row["seconds"])
        )
    console = Console()
    console.print(table)
    console.print(summary)


if __name__ == "__main__":
    main()

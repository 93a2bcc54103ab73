from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from nexo_lsp.cli.review_report import FileReview, Report, as_json, as_sarif
from nexo_lsp.pipeline.findings import Finding
from nexo_lsp.text import Span

TEXT = "a = 1\r\nn = '😀é' / x\r\n"
QUOTE = "/ x"
START = TEXT.index(QUOTE)
FINDING = Finding(
    "f1", Span(START, START + 3), QUOTE, "crash", "warning", "Division.", "Check it.", "calculate"
)


def report(root: Path, *findings: Finding) -> Report:
    path = root / "süd ost" / "a.py"
    file = FileReview(path, "süd ost/a.py", TEXT, findings, complete=True)
    return Report([file], engine="native", model="m", seconds=1.23456)


def test_json_counts_in_code_points_from_one(tmp_path: Path) -> None:
    data = json.loads(json.dumps(as_json(report(tmp_path, FINDING))))
    assert data["complete"] is True
    assert data["counts"] == {"warning": 1}
    (file,) = data["files"]
    assert file["path"] == "süd ost/a.py"
    (finding,) = file["findings"]
    assert finding["start"] == {"line": 2, "column": 10}
    assert finding["end"] == {"line": 2, "column": 13}
    assert finding["quote"] == QUOTE
    assert finding["suggestion"] == "Check it."


def test_sarif_counts_in_utf16_units_from_one(tmp_path: Path) -> None:
    other = replace(FINDING, id="f2", category="bug", severity="hint", suggestion=None, symbol="")
    data = json.loads(json.dumps(as_sarif(report(tmp_path, FINDING, other), tmp_path)))
    assert data["version"] == "2.1.0"
    (run,) = data["runs"]
    assert run["columnKind"] == "utf16CodeUnits"
    assert [rule["id"] for rule in run["tool"]["driver"]["rules"]] == ["crash", "bug"]
    first, second = run["results"]
    assert (first["ruleId"], first["ruleIndex"], first["level"]) == ("crash", 0, "warning")
    assert (second["ruleId"], second["ruleIndex"], second["level"]) == ("bug", 1, "note")
    place = first["locations"][0]["physicalLocation"]
    assert place["artifactLocation"] == {"uri": "s%C3%BCd%20ost/a.py", "uriBaseId": "SRCROOT"}
    # The emoji is two units.
    assert place["region"] == {
        "startLine": 2,
        "startColumn": 11,
        "endLine": 2,
        "endColumn": 14,
        "snippet": {"text": "/ x"},
    }
    assert first["partialFingerprints"] == {"nexoFinding/v1": "f1"}
    assert run["originalUriBaseIds"]["SRCROOT"]["uri"].endswith("/")
    assert run["invocations"] == [{"executionSuccessful": True, "toolExecutionNotifications": []}]


def test_sarif_of_a_file_elsewhere_and_of_a_run_that_failed(tmp_path: Path) -> None:
    failed = report(tmp_path, FINDING)
    failed.problem = "The engine stopped."
    failed.files[0].complete = False
    data = as_sarif(failed, tmp_path / "elsewhere")
    (run,) = data["runs"]
    uri = run["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
    assert uri == failed.files[0].path.as_uri()
    (invocation,) = run["invocations"]
    assert invocation["executionSuccessful"] is False
    assert invocation["toolExecutionNotifications"][0]["message"]["text"] == "The engine stopped."


def test_reaching_a_severity(tmp_path: Path) -> None:
    some = report(tmp_path, FINDING)
    assert some.reaches("hint")
    assert some.reaches("warning")
    assert not some.reaches("error")
    assert not report(tmp_path).reaches("hint")


def test_complete_only_if_everything_is(tmp_path: Path) -> None:
    assert report(tmp_path).complete
    stopped = report(tmp_path)
    stopped.interrupted = True
    assert not stopped.complete
    partly = report(tmp_path)
    partly.files[0].complete = False
    assert not partly.complete

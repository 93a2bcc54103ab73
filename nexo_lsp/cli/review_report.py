"""What a review on the command line found, and its two forms for machines: our own JSON, and SARIF 2.1.0."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from nexo_lsp import __version__
from nexo_lsp.pipeline.findings import SEVERITIES, Finding
from nexo_lsp.settings import Severity
from nexo_lsp.text import LineIndex, PositionEncoding, Span

_SARIF_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_SARIF_LEVELS: dict[Severity, str] = {
    "error": "error",
    "warning": "warning",
    "information": "note",
    "hint": "note",
}


@dataclass(slots=True)
class FileReview:
    """One file and what was found in it."""

    path: Path
    """Absolute."""
    name: str
    """The path as it is shown: relative to the working folder where that is shorter."""
    text: str = ""
    findings: tuple[Finding, ...] = ()
    complete: bool = False
    problem: str = ""
    """Why it was not reviewed, or not to its end; empty otherwise."""


@dataclass(slots=True)
class Report:
    """A whole run. `interrupted` and `problem` say why it is not complete."""

    files: list[FileReview] = field(default_factory=list[FileReview])
    interrupted: bool = False
    problem: str = ""
    engine: str = ""
    model: str | None = None
    seconds: float = 0.0

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All findings, file by file."""
        return tuple(finding for file in self.files for finding in file.findings)

    @property
    def complete(self) -> bool:
        """Whether every file was reviewed to its end."""
        return not self.interrupted and not self.problem and all(file.complete for file in self.files)

    def counts(self) -> dict[Severity, int]:
        """How many findings of each severity, the gravest first; severities without any are left out."""
        found = [finding.severity for finding in self.findings]
        return {name: found.count(name) for name in reversed(SEVERITIES) if name in found}

    def reaches(self, severity: Severity) -> bool:
        """Whether a finding is at least this grave."""
        lowest = SEVERITIES.index(severity)
        return any(SEVERITIES.index(finding.severity) >= lowest for finding in self.findings)


def as_json(report: Report) -> dict[str, Any]:
    """Our own form. Lines and columns count from 1, columns in code points; the end is exclusive."""
    return {
        "tool": "nexo-lsp",
        "version": __version__,
        "engine": report.engine,
        "model": report.model,
        "complete": report.complete,
        "interrupted": report.interrupted,
        "problem": report.problem or None,
        "seconds": round(report.seconds, 3),
        "counts": dict(report.counts()),
        "files": [_file_data(file) for file in report.files],
    }


def _file_data(file: FileReview) -> dict[str, Any]:
    lines = LineIndex(file.text)
    return {
        "path": file.name,
        "complete": file.complete,
        "problem": file.problem or None,
        "findings": [
            {
                "id": finding.id,
                "category": finding.category,
                "severity": finding.severity,
                "message": finding.message,
                "suggestion": finding.suggestion,
                "symbol": finding.symbol,
                "quote": finding.quote,
                "start": _place(lines, finding.span.start),
                "end": _place(lines, finding.span.end),
            }
            for finding in file.findings
        ],
    }


def _place(lines: LineIndex, offset: int) -> dict[str, int]:
    line, column = lines.position(offset, PositionEncoding.UTF32)
    return {"line": line + 1, "column": column + 1}


def as_sarif(report: Report, root: Path) -> dict[str, Any]:
    """SARIF 2.1.0, for code-scanning pages. Files below `root` are named relative to it."""
    rules = _in_order(finding.category for finding in report.findings)
    problems = [file.problem for file in report.files if file.problem]
    if report.problem:
        problems.append(report.problem)
    return {
        "$schema": _SARIF_SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "nexo-lsp",
                        "version": __version__,
                        "semanticVersion": __version__,
                        "rules": [_rule(category) for category in rules],
                    }
                },
                "columnKind": "utf16CodeUnits",
                "originalUriBaseIds": {"SRCROOT": {"uri": root.as_uri().rstrip("/") + "/"}},
                "invocations": [
                    {
                        "executionSuccessful": report.complete,
                        "toolExecutionNotifications": [
                            {"level": "warning", "message": {"text": problem}} for problem in problems
                        ],
                    }
                ],
                "results": [
                    _result(file, finding, lines, rules, root)
                    for file in report.files
                    for lines in [LineIndex(file.text)]
                    for finding in file.findings
                ],
            }
        ],
    }


def _rule(category: str) -> dict[str, Any]:
    return {"id": category, "shortDescription": {"text": f"A remark of the kind “{category}”."}}


def _result(
    file: FileReview, finding: Finding, lines: LineIndex, rules: Sequence[str], root: Path
) -> dict[str, Any]:
    text = finding.message if not finding.suggestion else f"{finding.message}\n\n{finding.suggestion}"
    location: dict[str, Any] = {
        "physicalLocation": {
            "artifactLocation": _artifact(file.path, root),
            "region": _region(lines, finding.span),
        }
    }
    if finding.symbol:
        location["logicalLocations"] = [{"name": finding.symbol, "kind": "function"}]
    return {
        "ruleId": finding.category,
        "ruleIndex": rules.index(finding.category),
        "level": _SARIF_LEVELS[finding.severity],
        "message": {"text": text},
        "locations": [location],
        "partialFingerprints": {"nexoFinding/v1": finding.id},
    }


def _region(lines: LineIndex, span: Span) -> dict[str, Any]:
    start, end = lines.range(span, PositionEncoding.UTF16)
    return {
        "startLine": start.line + 1,
        "startColumn": start.character + 1,
        "endLine": end.line + 1,
        "endColumn": end.character + 1,
        "snippet": {"text": lines.text[span.start : span.end]},
    }


def _artifact(path: Path, root: Path) -> dict[str, str]:
    if path.is_relative_to(root):
        return {"uri": quote(path.relative_to(root).as_posix()), "uriBaseId": "SRCROOT"}
    return {"uri": path.as_uri()}


def _in_order(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))

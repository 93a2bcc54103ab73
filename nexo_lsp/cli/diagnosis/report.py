"""All that the doctor found, and the same for machines."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from nexo_lsp.cli.check import Check
from nexo_lsp.cli.diagnosis.plan import EngineRow, OperationPlan, Plan
from nexo_lsp.runtime.environment import Environment


@dataclass(frozen=True, slots=True)
class Report:
    """One look at a machine."""

    environment: Environment
    plan: Plan
    checks: tuple[Check, ...]

    @property
    def wrong(self) -> tuple[Check, ...]:
        """The problems."""
        return tuple(check for check in self.checks if check.state == "problem")

    @property
    def well(self) -> bool:
        """Whether there is none."""
        return not self.wrong


def as_data(report: Report) -> dict[str, Any]:
    """The report as JSON has it: bytes, tokens a second and percent are plain numbers."""
    return {
        "ok": report.well,
        "environment": _environment(report.environment),
        "engines": [_engine(row) for row in report.plan.engines],
        "models": list(_models(report.plan.operations)),
        "checks": [asdict(check) for check in report.checks],
    }


def _environment(environment: Environment) -> dict[str, Any]:
    return {**asdict(environment), "simd": sorted(environment.simd)}


def _engine(row: EngineRow) -> dict[str, Any]:
    cells = {operation.value: asdict(cell) for operation, cell in row.cells.items()}
    return {"name": row.name, "what": row.what, "operations": cells}


def _models(plans: Iterable[OperationPlan]) -> Iterable[dict[str, Any]]:
    for plan in plans:
        yield {**asdict(plan), "operations": [operation.value for operation in plan.operations]}

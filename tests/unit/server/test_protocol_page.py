from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import attrs
import pytest
from pygls.protocol import default_converter

from nexo_lsp.engines.llama.messages import Metrics
from nexo_lsp.server.capabilities import COMMANDS
from nexo_lsp.server.custom_messages import (
    MESSAGES,
    MetricsParams,
    StatusParams,
    register_hooks,
    wire_name,
)

PAGE = (Path(__file__).parents[3] / "docs" / "protocol.md").read_text(encoding="utf-8")


def fields(cls: type[Any] | None) -> tuple[str, ...]:
    return () if cls is None else tuple(wire_name(field.name) for field in attrs.fields(cls))


def test_the_page_has_every_message_and_no_other() -> None:
    rows = re.findall(r"^\| `(nexo/[^`]*)` \| (.*?) \| (.*?) \| (.*?) \| (.*?) \|$", PAGE, re.MULTILINE)
    documented = [
        (
            method,
            direction,
            kind,
            tuple(re.findall(r"`(\w+)`", params)),
            tuple(re.findall(r"`(\w+)`", result)),
        )
        for method, direction, kind, params, result in rows
    ]
    assert documented == [
        (message.method, message.direction, message.kind, fields(message.params), fields(message.result))
        for message in MESSAGES
    ]


def test_the_page_has_every_command_and_no_other() -> None:
    assert tuple(re.findall(r"^\| `(nexo\.[\w.]+)` \|", PAGE, re.MULTILINE)) == COMMANDS


def test_the_page_has_every_metric_and_no_other() -> None:
    table = PAGE.partition("| Metric |")[2].partition("\n\n")[0]
    assert tuple(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == fields(MetricsParams)


def test_every_metric_of_the_engine_reaches_clients() -> None:
    assert [field.name for field in attrs.fields(MetricsParams)] == [
        field.name for field in dataclasses.fields(Metrics)
    ]


@pytest.mark.parametrize("metrics", [None, MetricsParams(*range(11))])
def test_a_status_survives_the_wire(metrics: MetricsParams | None) -> None:
    converter = register_hooks(default_converter())
    status = StatusParams(True, "native", "busy", "m", "CPU", 1, 2, 3.5, None, 5, "", ["because"], metrics)
    wire = converter.unstructure(status)
    assert wire["promptTokensPerSecond"] == 3.5
    if metrics is not None:
        assert (wire["metrics"]["batchFill"], wire["metrics"]["swappedBytes"]) == (1, 9)
    assert converter.structure(wire, StatusParams) == status

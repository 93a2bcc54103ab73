from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import attrs

from nexo_lsp.server.capabilities import COMMANDS
from nexo_lsp.server.custom_messages import MESSAGES, wire_name

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

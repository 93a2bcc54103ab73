"""A laptop whose battery runs low, with a real server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lsprotocol import types

from tests.lsp.conftest import StartEditor
from tests.lsp.editor import Editor

FIRST = "def first(items):\n    return items[len(items)]\n"
SECOND = "def second(a, b):\n    return a / b\n"


def charge(file: Path, percent: float, *, plugged: bool) -> None:
    new = file.with_suffix(".new")
    new.write_text(json.dumps({"percent": percent, "plugged": plugged}), encoding="utf-8")
    new.replace(file)


def details(editor: Editor) -> list[str]:
    return [params.detail for method, params in editor.notifications if method == "nexo/status"]


def tells_status(capabilities: dict[str, Any]) -> None:
    capabilities["experimental"] = {"nexo": {"status": True}}


async def test_review_on_save_waits_for_power(start_editor: StartEditor, tmp_path: Path) -> None:
    battery = tmp_path / "battery.json"
    charge(battery, 10, plugged=False)
    editor = await start_editor(environ={"NEXO_FAKE_BATTERY": str(battery)}, change=tells_status)
    uri = editor.open("a.py", FIRST)
    editor.save(uri)
    await editor.until(lambda: any("on battery at 10 %" in text for text in details(editor)), "the reason")
    status = await editor.request("nexo/status")
    assert "nexo.review.pauseBelowBattery" in status.detail
    assert status.detail in status.reasons
    assert editor.engine_events() == []

    # Whoever asks gets an answer; the review that waited is the same one.
    await editor.execute(types.Command("", "nexo.review", arguments=[{"uri": uri}]))
    await editor.until_engine("finish", 1)
    await editor.until(lambda: details(editor)[-1] == "", "nothing waits")

    other = editor.open("b.py", SECOND)
    editor.save(other)
    await editor.until(lambda: "on battery at 10 %" in details(editor)[-1], "the reason again")
    assert len(editor.engine_events("start")) == 1
    charge(battery, 10, plugged=True)
    await editor.until_engine("finish", 2)
    await editor.until(lambda: details(editor)[-1] == "", "nothing waits any more")
    assert (await editor.request("nexo/status")).detail == ""

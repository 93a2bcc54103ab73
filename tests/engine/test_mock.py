"""The scripted engine that other tests lean on."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from nexo_lsp.engines.mock import MockEngine, Rule, smallest
from nexo_lsp.errors import EngineClosed, EngineCrashed, EngineError, PromptTooLong, SettingsError
from nexo_lsp.generation import FinishReason, Priority, Request

from .requests import background, chat, collect, infill

SCHEMA = {
    "type": "object",
    "properties": {
        "findings": {"type": "array", "items": {"type": "object"}},
        "kind": {"enum": ["bug", "style"]},
        "count": {"type": "integer", "minimum": 2},
        "names": {"type": "array", "minItems": 1, "items": {"type": "string", "minLength": 2}},
        "maybe": {"anyOf": [{"type": "null"}, {"type": "string"}]},
        "sure": {"type": "boolean"},
        "version": {"const": 1},
    },
}


async def test_without_a_script_it_answers_sensibly_and_always_the_same() -> None:
    engine = MockEngine()
    for request, expected in (
        (chat("first\nsecond"), "Mock answer to: second"),
        (infill("a", "b"), "mock_completion()"),
    ):
        for _ in range(2):
            text, last = await collect(engine.stream(request))
            assert text == expected
            assert last.finish is FinishReason.STOP
    text, _ = await collect(engine.stream(chat(json_schema=Request.schema(SCHEMA))))
    assert json.loads(text) == {
        "findings": [],
        "kind": "bug",
        "count": 2,
        "names": ["xx"],
        "maybe": None,
        "sure": False,
        "version": 1,
    }
    assert json.loads(text) == smallest(SCHEMA)


async def test_rules_decide_by_the_prompt_and_can_be_used_up() -> None:
    engine = MockEngine(
        [Rule(match="user: once", answer="first", times=1), Rule(match="once|a<FILL>b", answer="then")]
    )
    assert [(await collect(engine.stream(chat("once"))))[0] for _ in range(2)] == ["first", "then"]
    assert (await collect(engine.stream(infill("a", "b"))))[0] == "then"


async def test_pieces_stops_and_bounds() -> None:
    engine = MockEngine(
        [Rule.model_validate({"match": "json", "json": {"a": [1]}}), Rule(answer="abcdef", pieces=3)]
    )
    pieces = [piece async for piece in engine.stream(chat())]
    assert [piece.text for piece in pieces] == ["ab", "cd", "ef", ""]
    assert (await collect(engine.stream(chat(stop=("de",)))))[0] == "abc"
    text, last = await collect(engine.stream(chat(max_tokens=2)))
    assert (text, last.finish) == ("abcd", FinishReason.LENGTH)
    assert json.loads((await collect(engine.stream(chat("json"))))[0]) == {"a": [1]}


async def test_a_cancel_is_seen_in_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script, log = tmp_path / "script.json", tmp_path / "log.jsonl"
    script.write_text(json.dumps([{"match": "hang", "hang": True}]))
    engine = MockEngine.from_environment({"NEXO_MOCK_SCRIPT": str(script), "NEXO_MOCK_LOG": str(log)})
    begun = asyncio.Event()
    engine.on_status = lambda _status: begun.set()
    hanging = asyncio.create_task(collect(engine.stream(chat("hang", session="s"))))
    await begun.wait()
    hanging.cancel()
    with pytest.raises(asyncio.CancelledError):
        await hanging
    stream = engine.stream(chat("one two three"))
    assert (await anext(stream)).text == "Mock "
    await stream.aclose()
    await collect(engine.stream(chat("whole")))
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(line["event"], line["id"]) for line in lines] == [
        ("start", 1),
        ("cancel", 1),
        ("start", 2),
        ("cancel", 2),
        ("start", 3),
        ("finish", 3),
    ]
    assert lines[0] == {
        "event": "start",
        "id": 1,
        "kind": "chat",
        "priority": 1,
        "session": "s",
        "prompt": "user: hang",
        "answer": "",
    }
    assert lines[3]["answer"] == "Mock "


async def test_an_urgent_request_overtakes_one_at_a_time() -> None:
    engine = MockEngine([Rule(match="slow", answer="a b c d"), Rule(match="quick", answer="e f")])
    order: list[str] = []
    begun = asyncio.Event()

    async def read(request: Request) -> None:
        async for piece in engine.stream(request):
            order.append(piece.text.strip())
            begun.set()
            await asyncio.sleep(0)

    slow = asyncio.create_task(read(background("slow")))
    await begun.wait()
    await asyncio.gather(slow, read(chat("quick", priority=Priority.INTERACTIVE)))
    letters = [letter for letter in order if letter]
    assert letters.index("f") < letters.index("d")
    assert "".join(letter for letter in letters if letter in "abcd") == "abcd"


@pytest.mark.parametrize(
    ("rule", "error"),
    [
        ({"crash": True}, EngineCrashed),
        ({"fail": "prompt-too-long"}, PromptTooLong),
        ({"fail": "anything"}, EngineError),
    ],
)
async def test_faults_on_demand(rule: dict[str, object], error: type[EngineError]) -> None:
    engine = MockEngine([Rule.model_validate(rule)])
    with pytest.raises(error):
        await collect(engine.stream(chat()))
    assert [event.event for event in engine.events] == ["start", "fail"]
    assert engine.status().queued == engine.status().running == 0


async def test_a_deadline_ends_a_hang_and_closing_ends_the_rest() -> None:
    engine = MockEngine([Rule(hang=True)])
    _, last = await collect(engine.stream(chat(deadline_s=0.02)))
    assert last.finish is FinishReason.DEADLINE
    both = asyncio.Event()
    engine.on_status = lambda status: both.set() if status.queued == 1 else None
    waiting = [asyncio.create_task(collect(engine.stream(chat()))) for _ in range(2)]
    await both.wait()
    await engine.close()
    for task in waiting:
        with pytest.raises(EngineClosed):
            await task
    with pytest.raises(EngineClosed):
        await engine.count_tokens("x")


@pytest.mark.parametrize("text", [None, "nonsense", '[{"anwser": "x"}]'])
def test_a_script_that_cannot_be_used_is_named(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "script.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SettingsError, match="script"):
        MockEngine.from_environment({"NEXO_MOCK_SCRIPT": str(path)})

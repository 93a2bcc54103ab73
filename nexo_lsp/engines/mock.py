"""An engine without a model: scripted answers, and faults on demand. For tests, and for trying an editor out.

`NEXO_MOCK_SCRIPT` names a JSON file with a list of rules; the first whose `match` (a regular expression) is
found in the prompt decides. `NEXO_MOCK_LOG` names a file to which a JSON line is added whenever a request
starts, finishes, fails or is cancelled.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from nexo_lsp.engines.llama.text_stream import TextStream
from nexo_lsp.errors import EngineClosed, EngineCrashed, EngineError, PromptTooLong, SettingsError
from nexo_lsp.generation import (
    Capabilities,
    ChatPrompt,
    EngineState,
    EngineStatus,
    FinishReason,
    InfillPrompt,
    Piece,
    Request,
    Usage,
)

SCRIPT_VARIABLE, LOG_VARIABLE = "NEXO_MOCK_SCRIPT", "NEXO_MOCK_LOG"

# Where the gap of a fill-in-the-middle prompt is, in the text that rules are matched against.
GAP = "<FILL>"


class Rule(BaseModel):
    """What to do with requests whose prompt matches."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    match: str = ""
    answer: str | None = None
    json_value: Any = Field(default=None, alias="json")
    pieces: int | None = Field(default=None, ge=1)
    """Into how many pieces the answer is cut; by default one a word."""
    delay_ms: float = Field(default=0, ge=0)
    """The wait before each piece."""
    hang: bool = False
    """Nothing comes until the request is cancelled, its deadline passes, or the engine is closed."""
    crash: bool = False
    fail: str | None = None
    """An error's code, for example `prompt-too-long` or `engine`, raised before the first piece."""
    times: int | None = Field(default=None, ge=1)
    """After so many uses the rule is spent."""


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the log."""

    event: Literal["start", "finish", "cancel", "fail"]
    id: int
    kind: Literal["chat", "infill"]
    priority: int
    session: str
    prompt: str
    answer: str = ""
    """What had been sent when it happened."""


class MockEngine:
    """Implements `Engine`; serves one request at a time, the most urgent first, as the real one does."""

    def __init__(
        self,
        rules: Sequence[Rule] = (),
        log: Callable[[Event], None] = lambda _event: None,
        context_tokens: int = 8192,
    ) -> None:
        self.events: list[Event] = []
        """Everything that happened, oldest first."""
        self.on_status: Callable[[EngineStatus], None] = lambda _status: None
        self._rules = tuple(rules)
        self._uses = [0] * len(self._rules)
        self._log = log
        self._context_tokens = context_tokens
        self._ids = itertools.count(1)
        self._active: dict[int, int] = {}
        self._moved = asyncio.Event()
        self._closed = False

    @staticmethod
    def from_environment(
        environ: Mapping[str, str], on_status: Callable[[EngineStatus], None] = lambda _status: None
    ) -> MockEngine:
        """The engine that `NEXO_MOCK_SCRIPT` and `NEXO_MOCK_LOG` describe. Raises `SettingsError`."""
        script, log = environ.get(SCRIPT_VARIABLE), environ.get(LOG_VARIABLE)
        rules = _read_rules(Path(script)) if script else ()
        engine = MockEngine(rules, _file_log(Path(log)) if log else lambda _event: None)
        engine.on_status = on_status
        return engine

    def capabilities(self) -> Capabilities:
        """It can do everything."""
        return Capabilities(infill=True, json_schema=True, context_tokens=self._context_tokens)

    def status(self) -> EngineStatus:
        """The present picture."""
        running = min(1, len(self._active))
        state = EngineState.CLOSED if self._closed else EngineState.BUSY if running else EngineState.READY
        return EngineStatus(
            state, "mock", model="mock", device="none", queued=len(self._active) - running, running=running
        )

    async def count_tokens(self, text: str) -> int:
        """Four characters are a token."""
        if self._closed:
            raise EngineClosed("The engine was closed.")
        return (len(text) + 3) // 4

    async def stream(self, request: Request) -> AsyncGenerator[Piece, None]:
        """Answer by the first rule that matches, else with something sensible."""
        if self._closed:
            raise EngineClosed("The engine was closed.")
        run = _Run(next(self._ids), request)
        self._note(run, "start")
        self._enter(run)
        # Whatever ends it early was not its own doing: closed by its reader, or the reader's task cancelled.
        outcome: Literal["finish", "cancel", "fail"] = "cancel"
        try:
            async with aclosing(self._answer(run)) as pieces:
                async for piece in pieces:
                    if piece.finish is not None:
                        outcome = "finish"
                        self._leave(run, outcome)
                    yield piece
        except EngineError:
            outcome = "fail"
            raise
        finally:
            self._leave(run, outcome)

    async def close(self) -> None:
        """End every request."""
        self._closed = True
        self._wake()
        self.on_status(self.status())

    async def _answer(self, run: _Run) -> AsyncGenerator[Piece, None]:
        rule = self._rule(run.prompt)
        if rule.crash:
            raise EngineCrashed("The engine's process ended unexpectedly; it is started again.")
        if rule.fail is not None:
            raise _error(rule.fail)
        text = TextStream(run.request.stop)
        made = 0
        try:
            for part in _parts(rule, run.request):
                await self._turn(run, rule)
                made += 1
                shown = text.feed(part.encode())
                if text.stopped or made >= run.request.max_tokens:
                    reason = FinishReason.STOP if text.stopped else FinishReason.LENGTH
                    yield self._last(run, shown + text.finish(), made, reason)
                    return
                run.sent += shown
                yield Piece(shown, made)
            await self._turn(run, Rule())
            yield self._last(run, text.finish(), made, FinishReason.STOP)
        except TimeoutError:
            yield self._last(run, text.finish(), made, FinishReason.DEADLINE)

    def _last(self, run: _Run, text: str, made: int, reason: FinishReason) -> Piece:
        run.sent += text
        return Piece(text, made, reason, Usage(prompt_tokens=len(run.prompt) // 4, completion_tokens=made))

    async def _turn(self, run: _Run, rule: Rule) -> None:
        """Wait until nobody more urgent is here, then as long as the rule says."""
        async with asyncio.timeout_at(run.deadline):
            await self._until_first(run)
            if rule.hang:
                while not self._closed:
                    await self._moved.wait()
            if rule.delay_ms:
                await asyncio.sleep(rule.delay_ms / 1000)
                await self._until_first(run)
        if self._closed:
            raise EngineClosed("The engine was closed.")

    async def _until_first(self, run: _Run) -> None:
        while not self._closed and min(self._active, key=lambda key: (self._active[key], key)) != run.id:
            await self._moved.wait()

    def _enter(self, run: _Run) -> None:
        self._active[run.id] = int(run.request.priority)
        self._wake()
        self.on_status(self.status())

    def _leave(self, run: _Run, outcome: Literal["finish", "cancel", "fail"]) -> None:
        if self._active.pop(run.id, None) is not None:
            self._note(run, outcome)
            self._wake()
            self.on_status(self.status())

    def _wake(self) -> None:
        """Let everyone who waits look again."""
        self._moved.set()
        self._moved = asyncio.Event()

    def _note(self, run: _Run, what: Literal["start", "finish", "cancel", "fail"]) -> None:
        request = run.request
        kind: Literal["chat", "infill"] = "chat" if isinstance(request.prompt, ChatPrompt) else "infill"
        event = Event(what, run.id, kind, int(request.priority), request.session, run.prompt, run.sent)
        self.events.append(event)
        self._log(event)

    def _rule(self, prompt: str) -> Rule:
        for index, rule in enumerate(self._rules):
            spent = rule.times is not None and self._uses[index] >= rule.times
            if not spent and re.search(rule.match, prompt, re.DOTALL):
                self._uses[index] += 1
                return rule
        return Rule()


class _Run:
    def __init__(self, run_id: int, request: Request) -> None:
        self.id = run_id
        self.request = request
        self.prompt = flatten(request.prompt)
        self.sent = ""
        limit = request.deadline_s
        self.deadline = None if limit is None else asyncio.get_running_loop().time() + limit


def flatten(prompt: ChatPrompt | InfillPrompt) -> str:
    """The text that rules are matched against."""
    if isinstance(prompt, InfillPrompt):
        return f"{prompt.prefix}{GAP}{prompt.suffix}"
    lines = [f"{message.role.value}: {message.content}" for message in prompt.messages]
    return "\n".join([*lines, prompt.answer_prefix] if prompt.answer_prefix else lines)


def smallest(schema: Mapping[str, Any]) -> Any:
    """The smallest value that a JSON schema of the project's kind allows."""
    if "const" in schema or "enum" in schema:
        return schema["const"] if "const" in schema else schema["enum"][0]
    if "anyOf" in schema:
        return smallest(schema["anyOf"][0])
    match schema.get("type"):
        case "object":
            return {name: smallest(value) for name, value in schema.get("properties", {}).items()}
        case "array":
            return [smallest(schema["items"]) for _ in range(schema.get("minItems", 0))]
        case "string":
            return "x" * int(schema.get("minLength", 0))
        case "integer" | "number":
            return schema.get("minimum", 0)
        case "boolean":
            return False
        case _:
            return None


def _parts(rule: Rule, request: Request) -> list[str]:
    if rule.answer is not None:
        text = rule.answer
    elif rule.json_value is not None:
        text = json.dumps(rule.json_value, ensure_ascii=False)
    elif rule.hang:
        text = "x"
    else:
        text = _default(request)
    if rule.pieces is None:
        return re.findall(r"\s*\S+\s*", text) or ([text] if text else [])
    size = max(1, -(-len(text) // rule.pieces))
    return [text[at : at + size] for at in range(0, len(text), size)]


def _default(request: Request) -> str:
    if request.json_schema is not None:
        return json.dumps(smallest(cast("Mapping[str, Any]", json.loads(request.json_schema))))
    if isinstance(request.prompt, InfillPrompt):
        return "mock_completion()"
    last = request.prompt.messages[-1].content.strip() if request.prompt.messages else ""
    return f"Mock answer to: {last.splitlines()[-1][:60] if last else 'nothing'}"


def _error(code: str) -> EngineError:
    kinds: tuple[type[EngineError], ...] = (EngineError, EngineCrashed, EngineClosed, PromptTooLong)
    known = {kind.code: kind for kind in kinds} | {
        kind.code: kind for kind in EngineError.__subclasses__() if kind.__module__ == EngineError.__module__
    }
    return known.get(code, EngineError)(f"The mock engine was told to fail ({code}).")


def _read_rules(path: Path) -> tuple[Rule, ...]:
    try:
        return tuple(TypeAdapter(list[Rule]).validate_json(path.read_bytes()))
    except OSError as error:
        raise SettingsError(f"{SCRIPT_VARIABLE}: {path} cannot be read ({error.strerror}).") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise SettingsError(f"{SCRIPT_VARIABLE}: {path}, {where}: {first['msg']}.") from error


def _file_log(path: Path) -> Callable[[Event], None]:
    def write(event: Event) -> None:
        line = {
            "event": event.event,
            "id": event.id,
            "kind": event.kind,
            "priority": event.priority,
            "session": event.session,
            "prompt": event.prompt,
            "answer": event.answer,
        }
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    return write

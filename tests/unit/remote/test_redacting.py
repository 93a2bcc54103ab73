"""No secret reaches the engine behind, and the reader sees no placeholder."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any, cast

import pytest

from nexo_lsp.engines.mock import MockEngine, Rule
from nexo_lsp.errors import EngineUnavailable
from nexo_lsp.generation import (
    ChatPrompt,
    FinishReason,
    InfillPrompt,
    InfillTemplate,
    Message,
    Piece,
    Request,
    Role,
)
from nexo_lsp.offload import Offload, inline
from nexo_lsp.runtime.redacting import Redacting

from .secret_samples import AWS, GITHUB, PASSWORD, PEM

TEMPLATE = InfillTemplate(("{prefix}", "{suffix}"))


class Echo(MockEngine):
    """Keeps what it was asked, and says it again, a few characters at a time."""

    def __init__(self, answer: str = "") -> None:
        super().__init__()
        self.asked: list[Request] = []
        self.counted: list[str] = []
        self._answer = answer

    async def count_tokens(self, text: str) -> int:
        self.counted.append(text)
        return 1

    async def stream(self, request: Request) -> AsyncGenerator[Piece, None]:
        self.asked.append(request)
        prompt = request.prompt
        said = self._answer or (
            prompt.prefix if isinstance(prompt, InfillPrompt) else prompt.messages[-1].content
        )
        for at in range(0, len(said), 3):
            yield Piece(said[at : at + 3], at)
        yield Piece("", len(said), FinishReason.STOP)


def chat(*texts: str, static: int = 0, **more: object) -> Request:
    prefix = str(more.pop("answer_prefix", ""))
    return Request(ChatPrompt(tuple(Message(Role.USER, text) for text in texts), prefix, static), **more)


async def answer(engine: Redacting, request: Request) -> str:
    return "".join([piece.text async for piece in engine.stream(request)])


async def test_what_is_sent_has_no_secret_and_what_comes_has_them_again() -> None:
    inner = Echo()
    told: list[Mapping[str, int]] = []
    engine = Redacting(inner, told.append)
    code = f'token = "{GITHUB}"\nuse(token)\n'
    assert await answer(engine, chat(code)) == code
    assert GITHUB not in repr(inner.asked)
    assert "<redacted-github-token-1>" in repr(inner.asked)
    assert told == [{"github-token": 1}]


@pytest.mark.parametrize(
    "request_",
    [
        chat(f"x = '{GITHUB}'", "and now?"),
        chat("go on", answer_prefix=f"x = '{GITHUB}'"),
        chat("go on", prediction=f"x = '{GITHUB}'"),
        chat("go on", stop=(f"x = '{GITHUB}'",)),
        chat("go on", logit_bias=((GITHUB, 1.0),)),
        chat("go on", json_schema=Request.schema({"enum": ["a", f"x = '{GITHUB}'"]})),
        chat("go on", json_schema=Request.schema({"properties": {GITHUB: {}}})),
        Request(InfillPrompt(f"x = '{GITHUB}'\n", "", TEMPLATE)),
        Request(InfillPrompt("", f"x = '{GITHUB}'\n", TEMPLATE)),
        Request(InfillPrompt(f"x = '{GITHUB[:20]}", f"{GITHUB[20:]}'\n", TEMPLATE)),
    ],
)
async def test_every_text_of_a_request_is_looked_through(request_: Request) -> None:
    inner = Echo("x")
    await answer(Redacting(inner), request_)
    sent = repr(inner.asked)
    assert GITHUB[:20] not in sent
    assert GITHUB[20:] not in sent
    assert "<redacted-" in sent


async def test_a_password_that_is_being_typed() -> None:
    inner = Echo("x")
    await answer(
        Redacting(inner), Request(InfillPrompt(f'password = "{PASSWORD[:7]}', f'{PASSWORD[7:]}"\n', TEMPLATE))
    )
    assert PASSWORD[:7] not in repr(inner.asked)
    assert PASSWORD[7:] not in repr(inner.asked)


async def test_what_is_nobodys_is_sent_as_it_is() -> None:
    """The examples of a prompt are ours; some show passwords in code, and all are kept by servers' caches."""
    inner = Echo("x")
    example = 'password = "hunter' + '2"'
    await answer(Redacting(inner), chat(example, f"x = '{AWS}'", static=1))
    prompt = inner.asked[0].prompt
    assert isinstance(prompt, ChatPrompt)
    assert prompt.messages[0].content == example
    assert AWS not in prompt.messages[1].content


async def test_json_stays_json() -> None:
    secret = 'a"b\\' + "1c2d"
    inner = Echo('{"line": "password = <redacted-password-1>"}')
    text = await answer(Redacting(inner), chat(f"password = '{secret}'", json_schema="{}"))
    assert json.loads(text) == {"line": f"password = {secret}"}


async def test_a_placeholder_at_the_very_end_is_put_back() -> None:
    inner = Echo("<redacted-github-token-1")
    assert await answer(Redacting(inner), chat(GITHUB)) == "<redacted-github-token-1"
    inner = Echo("<redacted-github-token-1>")
    assert await answer(Redacting(inner), chat(GITHUB)) == GITHUB


async def test_the_status_says_how_many_of_each_kind() -> None:
    engine = Redacting(Echo("x"))
    assert engine.status().extra["redacted"] == {}
    for _ in range(2):
        await answer(engine, chat(f"password = '{PASSWORD}'\nkey = '{AWS}'\n{PEM}"))
    await answer(engine, chat("password = 'other" + "4pw'"))
    status = engine.status()
    assert status.extra["redacted"] == {"password": 2, "aws-key": 1, "private-key": 1}
    assert status.extra["notes"] == (
        "4 secrets were taken out of what was sent: 2 passwords, 1 AWS key, 1 private key",
    )
    assert PASSWORD not in repr(status)


async def test_without_secrets_nothing_is_changed() -> None:
    inner = Echo("as it is <redacted-x>")
    request = chat("plain")
    assert await answer(Redacting(inner), request) == "as it is <redacted-x>"
    assert inner.asked == [request]


async def test_tokens_are_counted_without_secrets() -> None:
    inner = Echo()
    assert await Redacting(inner).count_tokens(f"x = '{GITHUB}'") == 1
    assert inner.counted == ["x = '<redacted-github-token-1>'"]


async def test_nothing_is_sent_while_it_may_not_be() -> None:
    inner = Echo()
    why = ""
    engine = Redacting(inner, refusal=lambda: why, offload=inline)
    await answer(engine, chat("a"))
    why = "Not now."
    with pytest.raises(EngineUnavailable, match="Not now"):
        await answer(engine, chat("b"))
    with pytest.raises(EngineUnavailable):
        await engine.count_tokens("b")
    assert len(inner.asked) == 1


async def test_closing_a_stream_closes_the_one_behind() -> None:
    inner = MockEngine([Rule(hang=True)])
    engine = Redacting(inner, offload=inline)
    stream = engine.stream(chat(GITHUB, deadline_s=0.05))
    assert [piece.finish async for piece in stream] == [FinishReason.DEADLINE]
    await engine.close()
    assert [event.event for event in inner.events] == ["start", "finish"]


async def test_without_the_library_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_texts: object, _gaps: object) -> None:
        raise ModuleNotFoundError("detect_secrets")

    echo = Echo()
    engine = Redacting(echo, offload=inline)
    monkeypatch.setattr("nexo_lsp.runtime.redacting.redact", missing)
    for _ in range(2):
        with pytest.raises(EngineUnavailable, match=r"pip install"):
            await answer(engine, chat("hi"))
    assert echo.asked == []


async def test_a_second_request_does_not_wait_for_the_library_on_the_loop() -> None:
    imported, offloaded = asyncio.Event(), 0

    async def slow(work: Callable[[], Any]) -> Any:
        nonlocal offloaded
        offloaded += 1
        await imported.wait()
        return work()

    engine = Redacting(Echo(), offload=cast("Offload", slow))
    first, second = (asyncio.ensure_future(answer(engine, chat("hi"))) for _ in range(2))
    # One step for each to begin.
    await asyncio.sleep(0)
    assert offloaded == 2
    imported.set()
    assert await asyncio.gather(first, second) == ["hi", "hi"]
    await answer(engine, chat("hi"))
    assert offloaded == 2

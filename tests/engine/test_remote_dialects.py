"""How each kind of server is asked for what OpenAI's protocol does not settle."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable

import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st

from nexo_lsp.engines.remote.dialect import template_for
from nexo_lsp.engines.remote.endpoint import Endpoint, RemoteOptions
from nexo_lsp.engines.remote.engine import RemoteEngine
from nexo_lsp.engines.remote.events import Events
from nexo_lsp.engines.remote.prefix import Cutter, Loose, Unfenced, Verbatim
from nexo_lsp.errors import EngineCrashed, EngineError, EngineUnavailable
from nexo_lsp.generation import ChatPrompt, FinishReason, InfillTemplate, Message, Request, Role

from .requests import INFILL, chat, collect, infill
from .scripted_server import (
    CHAT,
    COMPLETIONS,
    DONE,
    MODELS,
    ScriptedServer,
    answer,
    data,
    ends,
    event,
    refusal,
    says,
    sse,
)

Make = Callable[..., RemoteEngine]
SCHEMA = json.dumps({"type": "object", "properties": {"a": {"type": "integer"}}})
CODE = "```python\ndef add(a, b):\n"


@pytest_asyncio.fixture
async def make() -> AsyncGenerator[Make]:
    made: list[RemoteEngine] = []

    def engine(server: ScriptedServer, **options: object) -> RemoteEngine:
        one = RemoteEngine([Endpoint(server.url)], RemoteOptions(**options))
        made.append(one)
        return one

    yield engine
    for one in made:
        await one.close()


def begun(prefix: str = CODE) -> Request:
    return Request(ChatPrompt((Message(Role.USER, "write"),), prefix), max_tokens=50)


@pytest.mark.parametrize(
    ("owner", "key"),
    [
        ("llamacpp", "response_format"),
        ("me", "response_format"),
        ("vllm", "response_format"),
        ("someone", "response_format"),
    ],
)
async def test_a_schema_is_sent(owner: str, key: str, make: Make) -> None:
    async with ScriptedServer(owner) as server:
        server.on(CHAT, answer('{"a":1}'))
        assert (await collect(make(server).stream(chat(json_schema=SCHEMA))))[0] == '{"a":1}'
        form = server.chats[0].body[key]
        expected = "json_object" if owner == "me" else "json_schema"
        assert form["type"] == expected
        assert (form.get("schema") or form["json_schema"]["schema"]) == json.loads(SCHEMA)


async def test_what_a_server_refuses_is_not_asked_of_it_again(make: Make) -> None:
    async with ScriptedServer("vllm") as server:

        def picky(got):
            return answer("{}") if "guided_json" in got.body else refusal(400, "unknown field")

        server.on(CHAT, picky)
        engine = make(server)
        await collect(engine.stream(chat(json_schema=SCHEMA)))
        assert len(server.chats) == 3
        await collect(engine.stream(chat(json_schema=SCHEMA)))
        assert len(server.chats) == 4
        assert engine.capabilities().json_schema


async def test_a_schema_that_no_way_takes_goes_into_the_prompt(make: Make) -> None:
    async with ScriptedServer() as server:

        def picky(got):
            taken = "response_format" not in got.body
            return (
                answer("```json\n", '{"a": "`"}', "\n``", "`\nThat is it.") if taken else refusal(422, "no")
            )

        server.on(CHAT, picky)
        engine = make(server)
        text, last = await collect(engine.stream(chat(json_schema=SCHEMA)))
        assert text == '{"a": "`"}'
        assert last.finish is FinishReason.STOP
        assert json.dumps(json.loads(SCHEMA)) in server.chats[-1].body["messages"][0]["content"]
        assert not engine.capabilities().json_schema
        assert any("JSON schema" in note for note in engine.status().extra["notes"])


async def test_what_is_refused_for_another_reason_changes_nothing(make: Make) -> None:
    async with ScriptedServer() as server:
        server.on(CHAT, refusal(400, "the first reason"))
        engine = make(server)
        with pytest.raises(EngineError, match="the first reason"):
            await collect(engine.stream(chat(json_schema=SCHEMA)))
        server.on(CHAT, answer("{}"))
        await collect(engine.stream(chat(json_schema=SCHEMA)))
        assert server.chats[-1].body["response_format"]["type"] == "json_schema"


async def test_a_server_that_wants_only_what_it_knows(make: Make) -> None:
    """OpenAI's newer models refuse `max_tokens` and a temperature."""
    async with ScriptedServer() as server:
        server.on(CHAT, lambda got: refusal(400, "unsupported") if "max_tokens" in got.body else answer("ok"))
        assert (await collect(make(server).stream(chat())))[0] == "ok"
        body = server.chats[-1].body
        assert body["max_completion_tokens"] == 40
        assert not {"temperature", "seed", "max_tokens"} & set(body)


async def test_a_begun_answer_is_gone_on_with(make: Make) -> None:
    async with ScriptedServer("vllm") as server:
        server.on(CHAT, answer("    return a", " + b\n"))
        assert (await collect(make(server).stream(begun())))[0] == "    return a + b\n"
        body = server.chats[0].body
        assert body["messages"][-1] == {"role": "assistant", "content": CODE}
        assert body["continue_final_message"] is True
        assert body["add_generation_prompt"] is False


@pytest.mark.parametrize(
    "pieces", [[f"{CODE}    return"], list(f"{CODE}    return"), [CODE[:5], CODE[5:], "    return"]]
)
async def test_a_beginning_that_is_sent_back_is_not_shown_twice(make: Make, pieces: list[str]) -> None:
    async with ScriptedServer("llamacpp") as server:
        server.on(CHAT, answer(*pieces))
        assert (await collect(make(server).stream(begun())))[0] == "    return"


async def test_elsewhere_the_beginning_is_asked_for_in_words(make: Make) -> None:
    async with ScriptedServer() as server:
        server.on(CHAT, answer("Sure, here it is:\n", "```python\ndef add(a,b):\n", "    return a + b\n```"))
        assert (await collect(make(server).stream(begun())))[0] == "    return a + b\n```"
        (message,) = server.chats[0].body["messages"]
        assert message["role"] == "user"
        assert message["content"].endswith(CODE)


async def test_logit_bias_goes_where_texts_are_taken(make: Make) -> None:
    for owner, taken in (("llamacpp", [["[]", -2.0]]), ("vllm", None)):
        async with ScriptedServer(owner) as server:
            server.on(CHAT, answer("x"))
            await collect(make(server).stream(chat(logit_bias=(("[]", -2.0),))))
            assert server.chats[0].body.get("logit_bias") == taken


async def test_a_gap_is_filled_by_llama_server(make: Make) -> None:
    async with ScriptedServer("llamacpp") as server:
        end = {
            "content": "",
            "stop": True,
            "stop_type": "limit",
            "timings": {"predicted_n": 2, "prompt_n": 5},
        }
        server.on(
            "/infill", sse(event({"content": "a +", "stop": False}), event({"content": " b"}), event(end))
        )
        engine = make(server)
        text, last = await collect(engine.stream(infill("return ", "\n", stop=("\n",), max_tokens=9)))
        assert (text, last.finish) == ("a + b", FinishReason.LENGTH)
        assert last.usage is not None
        assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (5, 2)
        body = server.got[-1].body
        assert (body["input_prefix"], body["input_suffix"], body["n_predict"]) == ("return ", "\n", 9)


async def test_a_gap_is_filled_with_a_suffix(make: Make) -> None:
    async with ScriptedServer("library") as server:
        server.on(COMPLETIONS, sse(event({"choices": [{"text": "a + b"}]}), ends(), DONE))
        assert (await collect(make(server).stream(infill("return ", "\n"))))[0] == "a + b"
        assert server.got[-1].body["suffix"] == "\n"


async def test_a_gap_is_filled_with_the_models_own_tokens(make: Make) -> None:
    async with ScriptedServer("vllm", "Qwen/Qwen2.5-Coder-7B-Instruct") as server:
        server.on(COMPLETIONS, sse(event({"choices": [{"text": "a + b"}]}), ends(), DONE))
        await collect(make(server).stream(infill("return ", "\n", stop=("\n\n",))))
        body = server.got[-1].body
        assert body["prompt"] == "<|fim_prefix|>return <|fim_suffix|>\n<|fim_middle|>"
        assert body["stop"] == ["\n\n", "<|endoftext|>"]


async def test_what_fills_no_gaps_says_so(make: Make) -> None:
    async with ScriptedServer("llamacpp", "llama-3") as server:
        server.on("/infill", refusal(501, "not supported by this model"))
        engine = make(server)
        assert engine.capabilities().infill
        for _ in range(2):
            with pytest.raises(EngineUnavailable, match=r"llama-server.* fills no gaps with llama-3"):
                await collect(engine.stream(infill("a", "b")))
        assert [got.path for got in server.got].count("/infill") == 1
        assert not engine.capabilities().infill
        server.on(CHAT, answer("but it chats"))
        assert (await collect(engine.stream(chat())))[0] == "but it chats"


async def test_the_context_is_what_the_server_has(make: Make) -> None:
    async with ScriptedServer("vllm", max_model_len=4000) as server:
        server.on(CHAT, answer("x"))
        engine = make(server, context_tokens=9000)
        assert engine.capabilities().context_tokens == 9000
        await collect(engine.stream(chat()))
        assert engine.capabilities().context_tokens == 4000
    async with ScriptedServer("llamacpp", meta={"n_ctx": 8000}) as server:
        server.on(CHAT, answer("x"))
        server.on("/props", data({"default_generation_settings": {"n_ctx": 2000}}))
        engine = make(server, context_tokens=9000)
        await collect(engine.stream(chat()))
        assert engine.capabilities().context_tokens == 2000


async def test_a_server_without_a_list_of_models_needs_a_name(make: Make) -> None:
    async with ScriptedServer() as server:
        server.on(MODELS, refusal(404, "no"))
        server.on(CHAT, answer("x"))
        with pytest.raises(EngineError, match="404"):
            await collect(make(server, attempts=1).stream(chat()))
        await collect(make(server, model="mine").stream(chat()))
        assert server.chats[-1].body["model"] == "mine"


async def test_an_answer_that_was_given_up_for_another_request_is_no_answer(make: Make) -> None:
    """llama_cpp.server does that, and ends the stream as if all were well."""
    async with ScriptedServer("me") as server:
        server.on(CHAT, sse(says("half of"), DONE), sse(DONE), answer("whole"))
        engine = make(server, backoff_first_s=0.01)
        with pytest.raises(EngineCrashed, match="--interrupt_requests false"):
            await collect(engine.stream(chat()))
        answers = await asyncio.gather(*(collect(engine.stream(chat())) for _ in range(3)))
        assert [text for text, _ in answers] == ["whole"] * 3
        assert server.most_active == 1


async def test_many_who_begin_at_once_ask_for_the_facts_once(make: Make) -> None:
    async with ScriptedServer() as server:
        server.on(CHAT, answer("x"))
        engine = make(server)
        await asyncio.gather(*(collect(engine.stream(chat())) for _ in range(6)))
        assert [got.path for got in server.got].count(MODELS) == 1
        assert server.most_active <= 4


def test_templates_follow_the_model() -> None:
    suffix_first = InfillTemplate(
        ("<|fim_prefix|>", "<|fim_suffix|>", "{suffix}", "<|fim_middle|>", "{prefix}")
    )
    assert template_for("qwen2.5-coder:1.5b", suffix_first) is suffix_first
    star = template_for("bigcode/starcoder2-7b", INFILL)
    assert star is not None
    assert star.parts[0] == "<fim_prefix>"
    assert template_for("gpt-5", INFILL) is None


def fed(cutter: Cutter, parts: list[str]) -> str:
    return "".join(cutter.feed(part) for part in parts) + cutter.finish()


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("    return a", "    return a"),
        (f"{CODE}    return a", "    return a"),
        ("def add(a, b):\n    return a", "    return a"),
        ("```py\ndef add(a, b):\n    return a", "    return a"),
        ("Here:\n```python\ndef add( a, b ):\n    return a", "    return a"),
        ("```python\ndef add(a, b): return a", "```python\ndef add(a, b): return a"),
        ("", ""),
    ],
)
@pytest.mark.parametrize("size", [1, 4, 1000])
def test_loosely_repeated_beginnings_are_cut_off(said: str, kept: str, size: int) -> None:
    assert fed(Loose(CODE), [said[at : at + size] for at in range(0, len(said), size)]) == kept


@given(prefix=st.text("ab\n", min_size=1, max_size=8), rest=st.text("ab\n", max_size=12), data=st.data())
def test_a_repeated_beginning_is_cut_off_wherever_the_pieces_end(
    prefix: str, rest: str, data: st.DataObject
) -> None:
    whole = prefix + rest
    at = data.draw(st.integers(0, len(whole)))
    assert fed(Verbatim(prefix), [whole[:at], whole[at:]]) == rest


def test_what_only_begins_like_the_beginning_is_kept() -> None:
    assert fed(Verbatim("return"), ["ret", "ired"]) == "retired"
    assert fed(Unfenced(), ["``", "no fence"]) == "``no fence"
    assert fed(Unfenced(), ["  {", "}"]) == "{}"


@given(
    st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), min_size=1), max_size=4),
    st.data(),
)
def test_events_do_not_depend_on_where_they_are_cut(texts: list[str], data: st.DataObject) -> None:
    end = data.draw(st.sampled_from(["\n", "\r\n", "\r"]))
    stream = "".join(f": c{end}data: {text}{end}{end}" for text in texts).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    events, found = Events(), []
    for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += events.feed(stream[start:stop])
    assert found + events.finish() == texts

"""The scheduler on the tiny model, stepped by hand: what happens between two steps is then sure."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from nexo_lsp.engines.llama.messages import Delta, Failure
from nexo_lsp.generation import ChatPrompt, FinishReason, Message, Priority, Role

from .conftest import Bench
from .requests import background, chat, infill, saying

LONG = "def f(x):\n    return x + 1\n" * 100


def test_an_answer_streams_token_by_token_up_to_its_bound(bench: Bench) -> None:
    bench.scheduler.add(1, chat(max_tokens=12))
    bench.run()
    done = bench.done(1)
    assert done.finish is FinishReason.LENGTH
    assert done.tokens == done.usage.completion_tokens == 12
    assert [m.tokens for m in bench.said if isinstance(m, Delta)] == list(range(1, 12))


def test_greedy_answers_are_the_same_every_time_and_seeds_decide_the_others(bench: Bench) -> None:
    for job, limits in enumerate(
        [
            {},
            {},
            {"temperature": 1.0, "seed": 7},
            {"temperature": 1.0, "seed": 7},
            {"temperature": 1.0, "seed": 8},
        ]
    ):
        bench.scheduler.add(job, chat("same", **limits))
        bench.run()
    first, again, seven, seven_again, eight = (bench.text(job) for job in range(5))
    assert first == again
    assert seven == seven_again
    assert len({first, seven, eight}) == 3


def test_a_prompt_that_continues_another_reuses_what_was_evaluated(bench: Bench) -> None:
    bench.scheduler.add(1, infill("a = 1\n", "", session="s"))
    bench.run()
    bench.scheduler.add(2, infill("a = 1\nb = 2\n", "", session="s"))
    bench.run()
    assert bench.done(1).usage.cached_tokens == 0
    assert bench.done(2).usage.cached_tokens == len("a = 1\n") + 1
    assert bench.done(2).usage.prompt_tokens == len("a = 1\nb = 2\n") + 3
    assert bench.text(2) == bench.alone(2, infill("a = 1\nb = 2\n", ""))


def test_the_same_prompt_again_evaluates_only_its_last_token(bench: Bench) -> None:
    for job in (1, 2):
        bench.scheduler.add(job, chat("again"))
        bench.run()
    usage = bench.done(2).usage
    assert usage.cached_tokens == usage.prompt_tokens - 1
    assert bench.text(1) == bench.text(2)


def test_unlike_sessions_keep_their_own_ends_of_a_shared_beginning(bench: Bench) -> None:
    ends = {1: "A" * 900, 2: "B" * 900}
    for job, end in ends.items():
        bench.scheduler.add(job, infill("shared " * 20 + end, "", session=f"s{job}"))
        bench.run()
    bench.scheduler.add(3, infill("shared " * 20 + ends[1] + "more", "", session="s1"))
    bench.run()
    assert bench.done(2).usage.cached_tokens == len("shared " * 20) + 1
    assert bench.done(3).usage.cached_tokens > 900


def test_a_more_urgent_request_overtakes_and_the_other_goes_on_unharmed(bench: Bench) -> None:
    bench.scheduler.add(1, background(LONG, max_tokens=30))
    bench.scheduler.step()
    assert bench.deltas(1) == 0, "the first step is inside the prompt"
    bench.scheduler.add(2, chat("now", priority=Priority.INTERACTIVE))
    while not bench.deltas(1):
        bench.scheduler.step()
    assert bench.done(2).finish is FinishReason.LENGTH, "it was done before the other had made one token"
    bench.scheduler.add(3, chat("and now", priority=Priority.FOREGROUND))
    bench.run()
    order = [m.id for m in bench.said if isinstance(m, Delta)]
    assert order.index(3) > order.index(1), "decoding was overtaken too"
    assert order[-1] == 1
    assert bench.text(1) == bench.alone(1, background(LONG, max_tokens=30))


def test_equals_are_served_in_order(bench: Bench) -> None:
    for job in (1, 2, 3):
        bench.scheduler.add(job, chat(f"number {job}"))
    bench.run()
    order = [m.id for m in bench.said if isinstance(m, Delta)]
    assert order == sorted(order)


def test_cancelling_inside_the_prompt_leaves_the_worker_ready_and_the_work_cached(bench: Bench) -> None:
    bench.scheduler.add(1, chat(LONG))
    bench.scheduler.step()
    assert bench.deltas(1) == 0
    bench.scheduler.cancel(1)
    assert not bench.scheduler.busy
    bench.scheduler.add(2, chat(LONG))
    bench.run()
    assert bench.text(1) == ""
    assert bench.done(2).usage.cached_tokens > 0
    assert bench.done(2).finish is FinishReason.LENGTH


def test_cancelling_while_decoding(bench: Bench) -> None:
    bench.scheduler.add(1, chat(max_tokens=500))
    while bench.deltas(1) < 3:
        bench.scheduler.step()
    bench.scheduler.cancel(1)
    bench.scheduler.cancel(1)
    bench.scheduler.add(2, chat("next"))
    bench.run()
    assert bench.deltas(1) == 3
    assert bench.done(2).finish is FinishReason.LENGTH


def test_more_unfinished_requests_than_sequences(bench: Bench) -> None:
    """Each one overtakes the last, so that all of them have begun; the ninth takes the place of the first."""
    requests = {
        job: chat(f"job {job} " + "x" * 40, priority=priority, max_tokens=6)
        for job, priority in enumerate([Priority.BACKGROUND, Priority.FOREGROUND, Priority.INTERACTIVE])
    }
    alone = {job: bench.alone(job, request) for job, request in requests.items()}
    bench.loaded.context.sequences = 2
    bench = Bench(bench.loaded)
    for job, request in requests.items():
        bench.scheduler.add(job, request)
        bench.scheduler.step()
    bench.run()
    assert {job: bench.text(job) for job in requests} == alone


def test_a_full_cache_gives_up_finished_sequences_first_then_waiting_ones(bench: Bench) -> None:
    """Three prompts of 1,500 tokens do not fit into 4,096 cells at once."""
    for job in range(3):
        bench.scheduler.add(job, chat(f"{job}" * 1500, session=f"s{job}"))
        bench.run()
    assert [bench.done(job).usage.completion_tokens for job in range(3)] == [40, 40, 40]
    bench.scheduler.add(10, background(LONG, max_tokens=20))
    while bench.deltas(10) < 5:
        bench.scheduler.step()
    bench.scheduler.add(11, chat("i" * 2500, priority=Priority.INTERACTIVE))
    bench.run()
    assert bench.done(11).usage.completion_tokens == 40
    alone = bench.alone(10, background(LONG, max_tokens=20))
    assert bench.text(10) == alone, "an answer that lost its place is the same in the end"


def test_a_prompt_that_does_not_fit_is_refused(bench: Bench) -> None:
    bench.scheduler.add(1, chat("x" * 4090))
    failed = bench.failed(1)
    assert failed.failure is Failure.PROMPT_TOO_LONG
    assert "4096" in failed.message
    assert not bench.scheduler.busy


def test_an_answer_held_to_a_schema_is_that_schema(bench: Bench) -> None:
    schema = {
        "type": "object",
        "properties": {
            "findings": {
                "type": "array",
                "minItems": 1,
                "maxItems": 2,
                "items": {
                    "type": "object",
                    "properties": {
                        "line": {"enum": ['a "quoted" \\ line', "b"]},
                        "text": {"type": "string", "maxLength": 12},
                        "sure": {"type": "boolean"},
                    },
                    "required": ["line", "text", "sure"],
                },
            }
        },
        "required": ["findings"],
    }
    for job, temperature in enumerate([0.0, 1.5]):
        bench.scheduler.add(
            job, chat(json_schema=json.dumps(schema), max_tokens=400, temperature=temperature, seed=3)
        )
        bench.run()
        assert bench.done(job).finish is FinishReason.STOP
        for finding in json.loads(bench.text(job))["findings"]:
            assert finding["line"] in {'a "quoted" \\ line', "b"}
            # The grammar counts characters; a random model makes bytes that are not even that.
            assert len(finding["text"]) <= 12 * 4
            assert finding["sure"] in {True, False}


@pytest.mark.parametrize("schema", ["no JSON", "[]", '{"type": "teapot"}', '{"type":"object"}'])
def test_a_schema_that_cannot_be_used_is_an_error(bench: Bench, schema: str) -> None:
    bench.scheduler.add(1, chat(json_schema=schema))
    failed = bench.failed(1)
    assert failed.failure is Failure.BAD_REQUEST
    assert "schema" in failed.message
    assert not bench.scheduler.busy


def test_characters_of_several_tokens_arrive_whole(bench: Bench) -> None:
    text = "é€😀 end"
    bench.scheduler.add(1, saying(text))
    bench.run()
    assert json.loads(bench.text(1)) == text
    shown = [m.text for m in bench.said if isinstance(m, Delta)]
    assert "😀" in shown
    assert not any("\ufffd" in part for part in shown)


def test_a_bound_inside_a_character_ends_with_a_replacement(bench: Bench) -> None:
    bench.scheduler.add(1, saying("😀", max_tokens=3))
    bench.run()
    assert bench.done(1).finish is FinishReason.LENGTH
    assert bench.text(1) == '"\ufffd'


def test_a_stop_string_ends_the_answer_before_it(bench: Bench) -> None:
    bench.scheduler.add(1, saying("one two three", stop=("three", "two")))
    bench.run()
    assert bench.text(1) == '"one '
    assert bench.done(1).finish is FinishReason.STOP


def test_half_a_stop_string_is_text_after_all(bench: Bench) -> None:
    bench.scheduler.add(1, saying("one tw", stop=("two",)))
    bench.run()
    assert bench.text(1) == '"one tw"'


def test_a_deadline_ends_an_answer_with_what_there_is(bench: Bench) -> None:
    bench.scheduler.add(1, chat(max_tokens=500, deadline_s=5.0))
    bench.scheduler.add(2, background("waits", max_tokens=500, deadline_s=5.0))
    while bench.deltas(1) < 4:
        bench.scheduler.step()
    bench.now = 5.0
    bench.scheduler.step()
    assert bench.done(1).finish is FinishReason.DEADLINE
    assert bench.done(1).tokens == 4
    assert bench.done(2).finish is FinishReason.DEADLINE, "also when it was never begun"
    assert bench.done(2).tokens == 0
    assert not bench.scheduler.busy


def test_an_answer_can_be_made_to_begin_with_a_prefix(bench: Bench) -> None:
    plain = ChatPrompt((Message(Role.USER, "hi"),))
    bench.scheduler.add(1, chat("hi"))
    bench.run()
    prefixed = replace(chat("hi"), prompt=replace(plain, answer_prefix="{"))
    bench.scheduler.add(2, prefixed)
    bench.run()
    assert bench.done(2).usage.prompt_tokens == bench.done(1).usage.prompt_tokens + 1
    assert bench.done(2).usage.cached_tokens == bench.done(1).usage.prompt_tokens


def test_logits_can_be_leaned_on(bench: Bench) -> None:
    bench.scheduler.add(1, chat(max_tokens=5, logit_bias=(("Z", 1000.0), ("two tokens", 2000.0))))
    bench.run()
    assert bench.text(1) == "ZZZZZ"

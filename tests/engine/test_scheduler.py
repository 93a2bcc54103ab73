"""The scheduler on the tiny model, stepped by hand: what happens between two steps is then sure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest

from nexo_lsp.engines.llama.messages import Cancel, Delta, Done, Failure, Start
from nexo_lsp.engines.llama.native import Decoded, Slice
from nexo_lsp.engines.llama.scheduler import STARVING_S, Scheduler
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


def test_equals_are_written_together_and_say_what_they_would_say_alone(bench: Bench) -> None:
    requests = {job: chat(f"number {job}", max_tokens=30) for job in range(6)}
    alone = {job: bench.alone(job, request) for job, request in requests.items()}
    for job, request in requests.items():
        bench.scheduler.add(job, request)
    bench.run()
    assert {job: bench.text(job) for job in requests} == alone
    ends = [m.id for m in bench.said if isinstance(m, Done)]
    begins = list(dict.fromkeys(m.id for m in bench.said if isinstance(m, Delta)))
    assert begins == sorted(begins), "first come, first served"
    assert ends.index(0) < ends.index(5)
    fill = bench.scheduler.stats().metrics.batch_fill
    assert fill is not None
    assert fill > 1.5


def test_a_step_asks_for_the_next_token_of_all_that_are_being_written(bench: Bench) -> None:
    for job in range(3):
        bench.scheduler.add(job, chat(f"number {job}", max_tokens=60))
    while not all(bench.deltas(job) for job in range(3)):
        bench.scheduler.step()
    before = [bench.deltas(job) for job in range(3)]
    bench.scheduler.step()
    assert [bench.deltas(job) for job in range(3)] == [count + 1 for count in before]


def test_two_clients_read_their_prompts_in_turn(bench: Bench) -> None:
    """The second one's short prompt does not wait for the end of the first one's long one."""
    bench.scheduler.add(1, chat("a" * 3000, max_tokens=4), client=1)
    bench.scheduler.add(2, chat("b" * 20, max_tokens=4), client=2)
    bench.run()
    ends = [m.id for m in bench.said if isinstance(m, Done)]
    assert ends == [2, 1]


def test_one_client_with_many_requests_does_not_shut_out_another(bench: Bench) -> None:
    for job in range(10):
        bench.scheduler.add(job, chat(f"many {job}", max_tokens=20), client=1)
    bench.scheduler.add(99, chat("one", max_tokens=20), client=2)
    bench.run()
    ends = [m.id for m in bench.said if isinstance(m, Done)]
    assert ends.index(99) < 6


def test_whoever_waits_long_gets_a_step_in_between(bench: Bench) -> None:
    bench.scheduler.add(1, background("low", max_tokens=3))
    bench.scheduler.add(2, chat("high", max_tokens=2000, priority=Priority.INTERACTIVE))
    for _ in range(20):
        bench.scheduler.step()
    assert bench.deltas(1) == 0
    steps = 0
    while not bench.finished(1):
        bench.now += STARVING_S / 10
        bench.scheduler.step()
        steps += 1
        assert steps < 100, "it starves"
    assert not bench.finished(2)
    assert steps > 20, "and yet it waited most of the time"


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_guesses_change_nothing_but_the_number_of_steps(bench: Bench, temperature: float) -> None:
    schema = json.dumps({"enum": ["a word of which this is one " * 3, "and another " * 6]})
    request = chat("draft", max_tokens=200, temperature=temperature, seed=5, json_schema=schema)
    alone = bench.alone(1, request)
    half = len(alone) // 2
    predictions = [alone, alone[:half] + "##" + alone[half:], "nothing like it at all", alone[half:]]
    for job, prediction in enumerate(predictions):
        bench.scheduler.add(job, replace(request, prediction=prediction))
        bench.run()
        assert bench.text(job) == alone
        assert bench.done(job).finish is FinishReason.STOP
    metrics = bench.scheduler.stats().metrics
    assert 0 < metrics.accepted_tokens < metrics.drafted_tokens
    assert bench.deltas(0) < len(alone) // 2, "several tokens came with one step"


def test_guesses_for_several_answers_at_once(bench: Bench) -> None:
    alone = {job: bench.alone(job, chat(f"n {job}", max_tokens=50)) for job in range(4)}
    for job, text in alone.items():
        bench.scheduler.add(job, chat(f"n {job}", max_tokens=50, prediction=text[: 20 + 5 * job]))
    bench.run()
    assert {job: bench.text(job) for job in alone} == alone


def test_guesses_under_a_grammar(bench: Bench) -> None:
    schema = json.dumps({"type": "object", "properties": {"ok": {"type": "boolean"}}})
    request = chat("json", json_schema=schema)
    alone = bench.alone(1, request)
    bench.scheduler.add(2, replace(request, prediction=alone))
    bench.scheduler.add(3, replace(request, prediction='{"ok": nonsense}'))
    bench.run()
    assert bench.text(2) == bench.text(3) == alone
    assert json.loads(alone)["ok"] in {True, False}


def test_a_step_is_given_up_for_something_more_urgent(bench: Bench) -> None:
    """The interruption comes as it does from another thread: while llama.cpp computes."""
    alone = bench.alone(1, background(LONG, max_tokens=5))
    bench.scheduler.add(1, background(LONG, max_tokens=5))
    evaluate = bench.loaded.context.evaluate
    seen: list[Decoded] = []

    def interrupted(slices: Sequence[Slice]) -> Decoded:
        start = Start(2, chat("now", priority=Priority.INTERACTIVE))
        assert bench.scheduler.urgent(start)
        assert bench.scheduler.urgent(Cancel(1))
        assert not bench.scheduler.urgent(Cancel(5))
        assert not bench.scheduler.urgent(Start(3, background("equal")))
        if len(seen) < 3:
            bench.scheduler.interrupt()
        seen.append(evaluate(slices))
        return seen[-1]

    bench.loaded.context.evaluate = interrupted
    for _ in range(4):
        bench.scheduler.step()
    bench.loaded.context.evaluate = evaluate
    assert seen == [Decoded.INTERRUPTED] * 3 + [Decoded.DONE]
    assert bench.scheduler.stats().metrics.overtaken == 3
    bench.run()
    assert bench.text(1) == alone


def test_a_message_that_nobody_has_read_yet_stops_the_next_step(bench: Bench) -> None:
    unread = [True]
    scheduler = Scheduler(
        bench.loaded.model, bench.loaded.context, bench.said.append, unread=lambda: unread[0]
    )
    scheduler.add(1, chat("hi", max_tokens=2))
    for _ in range(5):
        scheduler.step()
    assert bench.deltas(1) == 0
    unread[0] = False
    while scheduler.busy:
        scheduler.step()
    assert bench.finished(1)


def test_json_ends_with_its_last_bracket(bench: Bench) -> None:
    bench.scheduler.add(1, saying("x"))
    bench.run()
    assert bench.done(1).finish is FinishReason.STOP
    assert bench.text(1) == '"x"'


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


@pytest.mark.parametrize(
    "schema", ["no JSON", "[]", '{"type": "teapot"}', '{"type":"object"}', r'{"const": "\ud800"}']
)
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

"""Many clients on one worker: who hears what, and what one client can do to the others (nothing)."""

from __future__ import annotations

import threading

import pytest

from nexo_lsp.engines.llama.hub import Guest, Hub, Outbox
from nexo_lsp.engines.llama.messages import (
    Cancel,
    Count,
    CountTokens,
    Delta,
    Done,
    FromWorker,
    Heartbeat,
    Load,
    Loaded,
    LoadFailed,
    LoadFailure,
    Ready,
    Rejected,
    Shutdown,
    Start,
    Stats,
    ToWorker,
    Unload,
)
from nexo_lsp.generation import FinishReason, Usage

from .requests import chat

WISH = Load("model.gguf", 4096)
LOADED = Loaded("tiny", 4096, chat=True, infill=True, device="CPU", load_s=0.1)
STATS = Stats(queued=0, running=1, prompt_tokens_per_s=None, decode_tokens_per_s=None, cached_sequences=0)


def done(job: int) -> Done:
    return Done(job, "", 1, FinishReason.STOP, Usage())


class Client:
    """One client, and what it has heard since it was last asked."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.severed = threading.Event()
        guest = hub.join(self.severed.set)
        assert guest is not None
        self.guest: Guest = guest
        assert isinstance(self.guest.outbox.take(), Ready)

    def says(self, message: ToWorker) -> bool:
        return self.hub.told(self.guest, message)

    def hears(self) -> list[FromWorker]:
        outbox = self.guest.outbox
        outbox.put(Heartbeat(-1.0))
        heard: list[FromWorker] = []
        while (message := outbox.take()) != Heartbeat(-1.0):
            if message is None:
                break
            heard.append(message)
        return heard


def pending(hub: Hub) -> list[ToWorker]:
    """What the worker would read now."""
    messages: list[ToWorker] = []
    while (message := hub.receive(False)) is not None:
        messages.append(message)
    return messages


def ready_hub(clients: int = 2) -> tuple[Hub, list[Client]]:
    hub = Hub()
    made = [Client(hub) for _ in range(clients)]
    for client in made:
        client.says(WISH)
    hub.send(LOADED)
    for client in made:
        client.hears()
    pending(hub)
    return hub, made


def test_the_same_number_of_two_clients_is_two_jobs() -> None:
    hub, (one, two) = ready_hub()
    one.says(Start(7, chat("a")))
    two.says(Start(7, chat("b"), client=99))
    first, second = pending(hub)
    assert isinstance(first, Start)
    assert isinstance(second, Start)
    assert first.id != second.id
    assert (first.client, second.client) == (one.guest.number, two.guest.number), (
        "a client cannot pose as another"
    )
    hub.send(Delta(second.id, "x", 1))
    hub.send(done(first.id))
    assert one.hears() == [done(7)]
    assert two.hears() == [Delta(7, "x", 1)]
    hub.send(done(first.id))
    assert one.hears() == [], "an answer ends once"


def test_a_number_may_be_used_again_when_its_answer_has_ended_and_not_before() -> None:
    hub, (one, _two) = ready_hub()
    one.says(CountTokens(1, "abc"))
    one.says(CountTokens(1, "abc"))
    (first,) = pending(hub)
    assert isinstance(first, CountTokens)
    hub.send(Count(first.id, 3))
    rejected, counted = one.hears()
    assert isinstance(rejected, Rejected)
    assert counted == Count(1, 3)
    one.says(CountTokens(1, "abcd"))
    assert len(pending(hub)) == 1


def test_cancel_reaches_only_ones_own_job() -> None:
    hub, (one, two) = ready_hub()
    one.says(Start(1, chat()))
    two.says(Start(1, chat()))
    first, second = pending(hub)
    two.says(Cancel(1))
    two.says(Cancel(2))
    assert isinstance(second, Start)
    assert pending(hub) == [Cancel(second.id)]
    hub.send(Delta(second.id, "late", 1))
    assert two.hears() == [], "nothing more is said about what was cancelled"
    assert isinstance(first, Start)
    hub.send(Delta(first.id, "x", 1))
    assert one.hears() == [Delta(1, "x", 1)]


def test_a_model_is_loaded_once_for_all_who_want_it() -> None:
    hub = Hub()
    one, two = Client(hub), Client(hub)
    one.says(WISH)
    two.says(WISH)
    assert pending(hub) == [WISH]
    hub.send(Heartbeat(0.5))
    assert (one.hears(), two.hears()) == ([Heartbeat(0.5)], [Heartbeat(0.5)])
    hub.send(LOADED)
    assert (one.hears(), two.hears()) == ([LOADED], [LOADED])
    late = Client(hub)
    late.says(WISH)
    assert late.hears() == [LOADED]
    assert pending(hub) == []


def test_a_model_that_cannot_be_loaded_is_told_to_all_and_tried_again_later() -> None:
    hub = Hub()
    one, two = Client(hub), Client(hub)
    one.says(WISH)
    two.says(WISH)
    failed = LoadFailed(LoadFailure.MEMORY, "There is too little memory.")
    hub.send(failed)
    assert (one.hears(), two.hears()) == ([failed], [failed])
    pending(hub)
    two.says(WISH)
    assert pending(hub) == [WISH]


def test_another_wish_does_not_take_the_model_away_from_the_others() -> None:
    hub, (one, two) = ready_hub()
    two.says(Load("model.gguf", 8192))
    (answer,) = two.hears()
    assert isinstance(answer, LoadFailed)
    assert pending(hub) == []
    assert one.hears() == []


@pytest.mark.parametrize("word", [Unload(), Shutdown()])
def test_a_client_that_ends_its_worker_only_leaves(word: ToWorker) -> None:
    hub, (one, two) = ready_hub()
    one.says(Start(1, chat()))
    (job,) = pending(hub)
    assert isinstance(job, Start)
    assert not one.says(word)
    assert not one.says(Start(2, chat())), "it is not a client any more"
    assert pending(hub) == [Cancel(job.id)]
    two.says(Start(1, chat()))
    assert len(pending(hub)) == 1
    hub.send(STATS)
    assert one.guest.outbox.take() is None
    assert two.hears() == [STATS]


def test_what_a_client_that_is_gone_asked_for_is_cancelled() -> None:
    hub, (one, two) = ready_hub()
    one.says(Start(1, chat()))
    one.says(CountTokens(2, "x"))
    two.says(Start(1, chat()))
    first, second, third = pending(hub)
    hub.left(one.guest, "it wrote nonsense")
    hub.left(one.guest)
    assert one.severed.is_set()
    assert isinstance(first, Start)
    assert isinstance(second, CountTokens)
    assert pending(hub) == [Cancel(first.id), Cancel(second.id)]
    assert isinstance(third, Start)
    hub.send(done(third.id))
    assert two.hears() == [done(1)]


def test_a_client_that_does_not_read_is_dropped_and_the_others_hear_everything() -> None:
    hub = Hub(limit=5)
    deaf, other = Client(hub), Client(hub)
    deaf.says(Start(1, chat()))
    (job,) = pending(hub)
    assert isinstance(job, Start)
    for tokens in range(6):
        hub.send(Delta(job.id, "x", tokens))
    assert deaf.severed.is_set()
    assert deaf.guest.outbox.take() is None, "what it did not read is forgotten"
    assert pending(hub) == [Cancel(job.id)]
    for _ in range(3):
        hub.send(STATS)
        assert other.hears() == [STATS]


def test_the_worker_is_told_of_each_message_before_it_can_read_it() -> None:
    hub = Hub()
    client = Client(hub)
    client.says(WISH)
    noticed: list[ToWorker | None] = []

    def notice(message: ToWorker | None) -> None:
        noticed.append(message)

    hub.attach(notice)
    assert noticed == [WISH]
    client.says(CountTokens(1, "x"))
    assert len(noticed) == 2
    assert pending(hub) == noticed
    hub.end()
    assert noticed[-1] is None
    with pytest.raises(EOFError):
        hub.receive(True)
    with pytest.raises(EOFError):
        hub.receive(False)


def test_a_hub_without_clients_ends_and_takes_nobody_in_after_that() -> None:
    hub = Hub()
    hub.wait_until_deserted(first_s=0.01, grace_s=30)
    assert hub.join(lambda: None) is None
    hub = Hub()
    client = Client(hub)
    keeper = threading.Thread(target=hub.wait_until_deserted, args=(30, 0.01))
    keeper.start()
    client.says(Shutdown())
    keeper.join(30)
    assert hub.join(lambda: None) is None


def test_an_outbox_keeps_the_last_words_for_one_who_leaves_in_good_order() -> None:
    box = Outbox(2)
    assert box.put(STATS)
    assert box.put(STATS)
    assert not box.put(STATS)
    box.close(drop=False)
    assert [box.take(), box.take(), box.take()] == [STATS, STATS, None]
    assert box.put(STATS), "nobody is told twice that it is closed"

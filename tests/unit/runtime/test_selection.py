"""Who is left out and why, who comes first, and what holds whatever the machine and the settings."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexo_lsp.errors import EngineUnavailable
from nexo_lsp.generation import Capabilities, Operation
from nexo_lsp.runtime.environment import Environment, Platform
from nexo_lsp.runtime.needs import NEEDS, Needs, Policy
from nexo_lsp.runtime.providers.provider import Availability, Traits
from nexo_lsp.runtime.selection import ORDER, select
from tests.unit.runtime.fakes import Fake
from tests.unit.runtime.machines import ENVIRONMENTS

LAPTOP = Environment(Platform.LINUX, "x86_64", total_bytes=8_000_000_000, free_bytes=2_000_000_000)
IPHONE, CUT_OFF = ENVIRONMENTS["iphone"], Environment(Platform.LINUX, "x86_64", network=False)
ACTION, COMPLETION = NEEDS[Operation.ACTION], NEEDS[Operation.COMPLETION]
AWAY, ALLOWED = Traits(sends_code=True, network=True), Policy(remote=True, trusted=True)


@pytest.mark.parametrize(
    ("provider", "environment", "needs", "policy", "reason"),
    [
        (Fake("native"), LAPTOP, ACTION, Policy(kind="remote"), "not asked for (nexo.engine is 'remote')"),
        (Fake("mock", Traits(only_by_name=True)), LAPTOP, ACTION, Policy(), "only if nexo.engine names it"),
        (Fake("remote", AWAY), LAPTOP, ACTION, Policy(trusted=True), "nexo.remote.enabled allows that"),
        (Fake("remote", AWAY), LAPTOP, ACTION, Policy(remote=True), "this workspace is not trusted"),
        (Fake("remote", AWAY), LAPTOP, ACTION, Policy("remote", trusted=True), "nexo.remote.enabled"),
        (Fake("remote", AWAY), LAPTOP, ACTION, Policy(offline=True, remote=True, trusted=True), "nexo.offline is on"),
        (Fake("remote", AWAY), CUT_OFF, ACTION, ALLOWED, "it needs a network"),
        (Fake("native", Traits(processes=True)), IPHONE, ACTION, Policy(), "it needs processes, which ios does not allow"),
        (Fake("native", says=Availability(False, "not installed")), LAPTOP, ACTION, Policy(), "not installed"),
        (Fake("native", Traits(memory_bytes=2_500_000_000)), LAPTOP, ACTION, Policy(), "wants 2,500 MB of memory, and 2,000 MB are free"),
        (Fake("native", Traits(memory_bytes=2_500_000_000)), LAPTOP, ACTION, Policy(memory_bytes=3_000_000_000), "and 2,000 MB are free"),
        (Fake("native", Traits(memory_bytes=1_500_000_000)), LAPTOP, ACTION, Policy(memory_bytes=1_000_000_000), "and 1,000 MB may be taken"),
        (Fake("client-hosted", can=Capabilities(infill=False)), LAPTOP, COMPLETION, Policy(), "it cannot fill a gap in code"),
    ],
)  # fmt: skip
def test_each_exclusion_has_its_reason(
    provider: Fake, environment: Environment, needs: Needs, policy: Policy, reason: str
) -> None:
    found = select([provider], environment, needs, policy)
    assert found.ranked == ()
    assert reason in found.excluded[0].reason
    assert found.provider is None
    with pytest.raises(EngineUnavailable, match=provider.name):
        found.require()


def test_what_is_named_is_taken_and_nothing_else() -> None:
    providers = [Fake("native"), Fake("mock", Traits(only_by_name=True))]
    found = select(providers, LAPTOP, ACTION, Policy(kind="mock"))
    assert found.require().name == "mock"
    assert [one.name for one in found.excluded] == ["native"]


def test_who_named_one_reads_nothing_of_the_others() -> None:
    providers = [Fake("native"), Fake("docker", says=Availability(False, "no Docker is here"))]
    found = select(providers, LAPTOP, ACTION, Policy(kind="docker"))
    with pytest.raises(EngineUnavailable) as raised:
        found.require()
    assert str(raised.value) == "docker: no Docker is here."
    assert any(reason.startswith("native:") for reason in found.reasons)


def test_unknown_memory_excludes_nobody() -> None:
    unknown = Environment(Platform.ANDROID, "arm64")
    assert select([Fake("native", Traits(memory_bytes=10**12))], unknown, ACTION, Policy()).provider


@pytest.mark.parametrize("turned", [False, True])
def test_a_tie_is_decided_by_a_fixed_order_and_by_what_was_measured(turned: bool) -> None:
    providers = [Fake(name) for name in ORDER]
    found = select(providers[:: -1 if turned else 1], LAPTOP, Needs(Operation.ACTION), Policy())
    assert [one.provider.name for one in found.ranked] == list(ORDER)
    quick = Fake("docker", Traits(tokens_per_s=50))
    found = select([Fake("native", Traits(tokens_per_s=40)), quick], LAPTOP, ACTION, Policy())
    assert found.provider is quick


def test_the_reasons_tell_of_everybody_the_best_first() -> None:
    providers = [Fake("remote", AWAY), Fake("docker", Traits(platforms=frozenset({Platform.WEB}))), Fake()]
    reasons = select(providers, LAPTOP, ACTION, Policy()).reasons
    assert [reason.split(":")[0] for reason in reasons] == ["native", "docker", "remote"]
    assert reasons[0].startswith("native: 190 points; it is there; works on any platform")


_TRAITS = st.builds(
    Traits,
    sends_code=st.booleans(),
    network=st.booleans(),
    processes=st.booleans(),
    only_by_name=st.booleans(),
    platforms=st.frozensets(st.sampled_from(Platform), max_size=2),
    memory_bytes=st.sampled_from((0, 5 * 10**8, 2 * 10**9, 10**12)),
    tokens_per_s=st.none() | st.floats(0.1, 500),
    parameters=st.none() | st.floats(0.1, 80),
)
_POLICIES = st.builds(
    Policy,
    kind=st.sampled_from(("auto", *ORDER)),
    offline=st.booleans(),
    remote=st.booleans(),
    trusted=st.booleans(),
    memory_bytes=st.sampled_from((0, 10**9)),
)


@given(
    traits=st.lists(_TRAITS, max_size=6),
    usable=st.lists(st.booleans(), min_size=6, max_size=6),
    machine=st.sampled_from(sorted(ENVIRONMENTS)),
    operation=st.sampled_from(Operation),
    policy=_POLICIES,
)
def test_nothing_that_is_not_permitted_is_ever_taken(
    traits: list[Traits], usable: list[bool], machine: str, operation: Operation, policy: Policy
) -> None:
    environment = ENVIRONMENTS[machine]
    providers = [
        Fake(name, one, Availability(able, "so it says"))
        for name, one, able in zip(ORDER, traits, usable, strict=False)
    ]
    found = select(providers, environment, NEEDS[operation], policy)
    names = [one.provider.name for one in found.ranked] + [one.name for one in found.excluded]
    assert sorted(names) == sorted(provider.name for provider in providers)
    assert all(one.reason for one in found.excluded)
    for candidate in found.ranked:
        taken = candidate.provider.traits()
        assert policy.kind in {"auto", candidate.provider.name}
        assert candidate.provider.probe().usable
        if taken.sends_code:
            assert policy.remote
            assert policy.trusted
        if taken.network:
            assert environment.network
            assert not policy.offline
        if taken.processes:
            assert environment.processes
        if taken.only_by_name:
            assert policy.kind == candidate.provider.name
    points = [candidate.score.points for candidate in found.ranked]
    assert points == sorted(points, reverse=True)

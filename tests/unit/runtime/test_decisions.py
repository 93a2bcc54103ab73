"""What each machine gets: the table of `decisions.toml` against the program, and the page made of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from nexo_lsp.errors import EngineUnavailable
from nexo_lsp.generation import Operation
from nexo_lsp.models.catalog import find
from nexo_lsp.runtime.selection import ORDER
from nexo_lsp.settings import Settings
from tests.unit.runtime.deciding import PAGE, Case, cases, decided, names, page, room_for
from tests.unit.runtime.machines import ENVIRONMENTS


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_what_a_machine_gets(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = room_for(case, tmp_path, monkeypatch)
    settings = Settings.model_validate(case.settings)
    for operation in Operation:
        expected = case.expected(operation)
        found = decided(room, operation, expected, settings)
        reasons = "\n  ".join((*room.selection(operation).reasons, *room.choice(operation).reasons))
        assert found == expected, f"{case.name}, {operation}, for these reasons:\n  {reasons}"
        if not expected.engines:
            # What the user reads.
            with pytest.raises(EngineUnavailable, match=re.escape(expected.refusal)):
                room.engine(operation)


def by_chance(
    *, machine: str, kind: str, enabled: bool, endpoints: list[str], trusted: bool, offline: bool,
    network: bool, local: bool | None,
) -> Case:  # fmt: skip
    """A machine and a user; `local` says where the engine is that the editor offers (None: it offers none)."""
    remote = {"enabled": enabled, "endpoints": endpoints}
    return Case(
        "by chance", machine, (), settings={"engine": {"kind": kind}, "remote": remote, "offline": offline},
        trusted=trusted, machine_has={"network": network},
        client={"local": local, "infill": True} if local is not None else None,
    )  # fmt: skip


_CASES = st.builds(
    by_chance,
    machine=st.sampled_from(sorted(ENVIRONMENTS)),
    kind=st.sampled_from(("auto", *ORDER)),
    enabled=st.booleans(),
    endpoints=st.lists(st.sampled_from(("https://a.example/v1", "http://localhost:1/v1")), max_size=2),
    trusted=st.booleans(),
    offline=st.booleans(),
    network=st.booleans(),
    local=st.none() | st.booleans(),
)


@examples(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=_CASES)
def test_whatever_the_machine_and_the_settings_nothing_leaves_it_unasked(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room, wanted = room_for(case, tmp_path, monkeypatch), Settings.model_validate(case.settings)
    for operation in Operation:
        found = room.selection(operation)
        everybody = [one.provider.name for one in found.ranked] + [one.name for one in found.excluded]
        assert sorted(everybody) == sorted(ORDER)
        for candidate in found.ranked:
            traits = candidate.provider.traits()
            assert not traits.sends_code or (wanted.remote.enabled and case.trusted)
            assert not traits.network or (case.environment.network and not wanted.offline)
            assert candidate.provider.name != "mock" or wanted.engine.kind == "mock"


def test_every_machine_is_in_the_table_and_every_answer_has_its_reason() -> None:
    assert {case.machine for case in cases()} == set(ENVIRONMENTS)
    assert len({case.name for case in cases()}) == len(cases())
    assert len(cases()) >= 60
    for case in cases():
        assert sorted(operation for answer in case.answer for operation in answer.operations) == sorted(
            Operation
        )
        for answer in case.answer:
            assert answer.why.strip(), case.name
            assert bool(answer.engines) != bool(answer.refusal), case.name
    assert all(find(name) for name in names().values())


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), (
        "run `python -m tests.unit.runtime.deciding > docs/decisions.md`"
    )

from __future__ import annotations

from pathlib import Path

import pytest
from lsprotocol import types

from nexo_lsp.errors import (
    DisabledError,
    DocumentNotOpen,
    EngineClosed,
    EngineCrashed,
    EngineError,
    NexoError,
    StaleDocument,
)
from nexo_lsp.server.failures import Failures

LOG = Path("logs") / "server.log"


@pytest.fixture
def shown() -> list[str]:
    return []


@pytest.fixture
def failures(shown: list[str]) -> Failures:
    return Failures(lambda message, _level: shown.append(message), LOG)


def test_our_errors_speak_for_themselves(failures: Failures) -> None:
    answer = failures.response(EngineCrashed("It crashed."))
    assert (answer.code, answer.message) == (types.LSPErrorCodes.RequestFailed.value, "It crashed.")
    assert answer.data == {"code": "engine-crashed"}


def test_unforeseen_errors_name_the_log_and_tell_nothing_of_the_code(
    failures: Failures, caplog: pytest.LogCaptureFixture
) -> None:
    answer = failures.response(KeyError("the user's secret"))
    assert answer.code == types.ErrorCodes.InternalError.value
    assert str(LOG) in answer.message
    assert "secret" not in answer.message
    assert answer.data is None
    assert "the user's secret" in caplog.text


def test_background_errors_are_shown_once_until_settings_change(failures: Failures, shown: list[str]) -> None:
    for _ in range(3):
        failures.tell_once(EngineError("No engine."))
    failures.tell_once(EngineError("Another reason."))
    assert shown == ["No engine.", "Another reason."]
    failures.forget()
    failures.tell_once(EngineError("No engine."))
    assert shown[2:] == ["No engine."]


@pytest.mark.parametrize("kind", [DisabledError, DocumentNotOpen, StaleDocument, EngineClosed])
def test_what_is_switched_off_closed_or_gone_is_silent(
    failures: Failures, shown: list[str], kind: type[NexoError]
) -> None:
    failures.tell_once(kind("Off."))
    assert shown == []


def test_an_error_that_somebody_waits_for_is_always_shown(failures: Failures, shown: list[str]) -> None:
    failures.tell(EngineError("No engine."))
    failures.tell(EngineError("No engine."))
    assert len(shown) == 2

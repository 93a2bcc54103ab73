from __future__ import annotations

from collections.abc import Iterator

import pytest

from nexo_lsp import errors
from nexo_lsp.cli.exit_codes import ExitCode, exit_code


def kinds(of: type[errors.NexoError]) -> Iterator[type[errors.NexoError]]:
    yield of
    for kind in of.__subclasses__():
        yield from kinds(kind)


ALL = [kind for kind in kinds(errors.NexoError) if kind.__module__ == errors.__name__]


def test_codes_are_unique() -> None:
    codes = [kind.code for kind in ALL]
    assert len(set(codes)) == len(codes)
    assert all("code" in vars(kind) for kind in ALL), "an inherited code would hide which error it was"


def test_the_message_is_what_the_user_sees() -> None:
    for kind in ALL:
        assert str(kind("what happened")) == "what happened"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.UsageError("x"), ExitCode.USAGE),
        (errors.ModelUnknown("x"), ExitCode.USAGE),
        (errors.ModelMissing("x"), ExitCode.NO_ENGINE),
        (errors.ModelDownloadFailed("x"), ExitCode.NO_ENGINE),
        (errors.DiskFull("x"), ExitCode.NO_ENGINE),
        (errors.EngineUnavailable("x"), ExitCode.NO_ENGINE),
        (errors.EngineCrashed("x"), ExitCode.NO_ENGINE),
        (errors.ModelDownloadCancelled("x"), ExitCode.INTERRUPTED),
        (errors.StorageError("x"), ExitCode.FOUND),
        (errors.DisabledError("x"), ExitCode.FOUND),
    ],
)
def test_exit_codes(error: errors.NexoError, code: ExitCode) -> None:
    assert exit_code(error) is code

from __future__ import annotations

from http import HTTPStatus

import pytest

from nexo_lsp.server.transports import Gate

PAGE = "https://editor.example"
GATE = Gate("secret", frozenset({PAGE}))


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/?token=secret", {}),
        ("/", {"Authorization": "Bearer secret"}),
        ("/", {"Sec-WebSocket-Protocol": "nexo-lsp, nexo-token.secret"}),
        ("/?token=secret", {"Origin": PAGE}),
    ],
)
def test_who_knows_the_token_comes_in(path: str, headers: dict[str, str]) -> None:
    assert GATE.refusal(path, headers) is None


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/", {}, HTTPStatus.UNAUTHORIZED),
        ("/?token=wrong", {}, HTTPStatus.UNAUTHORIZED),
        ("/?token=", {"Authorization": "Basic secret"}, HTTPStatus.UNAUTHORIZED),
        ("/?token=sécret", {}, HTTPStatus.UNAUTHORIZED),
        ("/", {"Origin": PAGE}, HTTPStatus.UNAUTHORIZED),
        ("/?token=secret", {"Origin": "https://evil.example"}, HTTPStatus.FORBIDDEN),
        ("/?token=secret", {"Origin": "null"}, HTTPStatus.FORBIDDEN),
    ],
)
def test_everybody_else_stays_outside(path: str, headers: dict[str, str], status: HTTPStatus) -> None:
    assert GATE.refusal(path, headers) is status

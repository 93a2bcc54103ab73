from __future__ import annotations

from typing import Any

import pytest

from nexo_lsp.server.capabilities import announces_completion, initialize_result, section
from nexo_lsp.server.client_features import ClientFeatures
from nexo_lsp.text import PositionEncoding


def params(**capabilities: Any) -> dict[str, Any]:
    return {"capabilities": capabilities}


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        (None, "utf-16"),
        ([], "utf-16"),
        (["utf-7"], "utf-16"),
        (["utf-7", "utf-32", "utf-8"], "utf-32"),
        (["utf-8", "utf-16"], "utf-8"),
        ("utf-8", "utf-16"),
    ],
)
def test_the_first_known_encoding_is_taken(offered: object, chosen: str) -> None:
    asked = params(general={"positionEncodings": offered})
    assert initialize_result(asked, {})["capabilities"]["positionEncoding"] == chosen
    assert ClientFeatures.of(asked).encoding is PositionEncoding(chosen)


@pytest.mark.parametrize(
    "broken", [{}, params(), params(window=None), params(textDocument=[]), {"capabilities": 1}]
)
def test_a_client_that_says_nothing_can_do_nothing(broken: dict[str, Any]) -> None:
    assert ClientFeatures.of(broken) == ClientFeatures()


@pytest.mark.parametrize(
    ("formats", "markdown"),
    [
        (None, False),
        (["plaintext", "markdown"], False),
        (["markdown"], True),
        (["asciidoc", "markdown"], True),
    ],
)
def test_the_preferred_hover_format_is_taken(formats: object, markdown: bool) -> None:
    asked = params(textDocument={"hover": {"contentFormat": formats}})
    assert ClientFeatures.of(asked).hover_markdown is markdown


@pytest.mark.parametrize(
    ("options", "environ", "announced"),
    [
        (None, {}, False),
        ({"completion": {"asCompletionItems": True}}, {}, True),
        ({"nexo": {"completion": {"asCompletionItems": True}}}, {}, True),
        ({"completion": {"asCompletionItems": "yes"}}, {}, False),
        (None, {"NEXO_COMPLETION_AS_COMPLETION_ITEMS": "true"}, True),
        ({"completion": {"asCompletionItems": True}}, {"NEXO_COMPLETION_AS_COMPLETION_ITEMS": "0"}, False),
    ],
)
def test_completion_items_are_announced_when_wanted(
    options: object, environ: dict[str, str], announced: bool
) -> None:
    asked = {**params(), "initializationOptions": options}
    assert announces_completion(asked, environ) is announced
    dynamic = {**asked, **params(textDocument={"completion": {"dynamicRegistration": True}})}
    assert announces_completion(dynamic, environ) is False


def test_no_diagnostic_provider_is_announced() -> None:
    assert "diagnosticProvider" not in initialize_result(params(), {})["capabilities"]


def test_a_section_may_be_wrapped_in_its_name() -> None:
    assert section({"nexo": {"enable": False}}) == {"enable": False}
    assert section({"nexo": 1, "enable": False}) == {"nexo": 1, "enable": False}
    assert section(None) == section([]) == {}

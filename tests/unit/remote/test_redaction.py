"""Secrets do not leave, what is none stays, and everything comes back as it was."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexo_lsp.safety import redaction
from nexo_lsp.safety.redaction import Restoring, describe, redact, restored

from .secret_samples import ASSIGNMENTS, AWS, FORMS, GITHUB, HARMLESS, KEY_BODY, PASSWORD, PEM

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("kind", "secret", "text"), FORMS, ids=[f"{form[0]}-{n}" for n, form in enumerate(FORMS)]
)
def test_secrets_of_a_known_form(kind: str, secret: str, text: str) -> None:
    before = text.format(secret)
    done = redact([before])
    assert secret not in done.texts[0]
    assert dict(done.counts) == {kind: 1}
    assert f"<redacted-{kind}-1>" in done.texts[0]
    assert restored(done.texts[0], done.secrets) == before


@pytest.mark.parametrize("text", ASSIGNMENTS)
@pytest.mark.parametrize("value", [PASSWORD, "hunter" + "2", "Sommer" + "2024!"])
def test_passwords_in_every_language(text: str, value: str) -> None:
    before = f"first = 1\n{text.format(value)}\nlast = 2\n" if not text.endswith("{}") else text.format(value)
    done = redact([before])
    assert value not in done.texts[0]
    assert dict(done.counts) == {"password": 1}
    assert done.texts[0] == before.replace(value, "<redacted-password-1>")


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact([text]).texts == (text,)


def test_this_projects_own_code_is_left_alone() -> None:
    found: list[str] = []
    for path in (ROOT / "nexo_lsp").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        found += [f"{path.name}: {text[span.start : span.end]}" for span in redaction.find(text)]
    assert found == []


def test_a_private_key_keeps_its_lines() -> None:
    before = f'KEY = """{PEM}"""\nx = 1\n'
    done = redact([before])
    assert not any(line in done.texts[0] for line in KEY_BODY)
    assert done.texts[0].count("\n") == before.count("\n")
    assert dict(done.counts) == {"private-key": 1}
    assert "PRIVATE KEY-----" in done.texts[0]
    assert restored(done.texts[0], done.secrets) == before


@pytest.mark.parametrize("cut", [slice(0, 200), slice(150, None)], ids=["no end", "no beginning"])
def test_half_a_private_key(cut: slice) -> None:
    half = PEM[cut]
    done = redact([half])
    assert not any(
        part in done.texts[0] for line in KEY_BODY for part in (line, line[-30:]) if len(part) > 25
    )


def test_a_private_key_in_one_line() -> None:
    done = redact([json.dumps({"private_key": PEM})])
    assert not any(line in done.texts[0] for line in KEY_BODY)
    assert json.loads(done.texts[0])["private_key"].count("\n") == PEM.count("\n")


def test_one_secret_has_one_placeholder_in_all_texts() -> None:
    first, second = f'token = "{GITHUB}"', f"# {GITHUB} is used, and {AWS}"
    done = redact([first, second, "nothing"])
    assert done.texts == (
        'token = "<redacted-github-token-1>"',
        "# <redacted-github-token-1> is used, and <redacted-aws-key-1>",
        "nothing",
    )
    assert describe(done.counts) == "1 AWS key, 1 GitHub token"


def test_a_value_that_was_recognised_in_one_text_is_taken_out_of_the_others() -> None:
    done = redact([f'password = "{PASSWORD}"', f"print({PASSWORD})", PASSWORD])
    assert not any(PASSWORD in text for text in done.texts)


def test_placeholders_that_are_there_already_are_not_used() -> None:
    before = f'"<redacted-github-token-1>" and "{GITHUB}"'
    done = redact([before])
    assert "<redacted-github-token-2>" in done.texts[0]
    assert restored(done.texts[0], done.secrets) == before


def test_words() -> None:
    assert describe({"password": 2, "aws-key": 1}) == "2 passwords, 1 AWS key"


def test_secrets_are_in_no_picture() -> None:
    assert GITHUB not in repr(redact([GITHUB]))


@pytest.mark.parametrize("size", [1, 2, 5, 1000])
def test_placeholders_are_put_back_wherever_they_are_cut(size: int) -> None:
    done = redact([f'token = "{GITHUB}"'])
    answer = "a < b; use(<redacted-github-token-1>, <redacted-github-token-1x>) <red"
    restoring = Restoring(done.secrets)
    parts = [restoring.feed(answer[at : at + size]) for at in range(0, len(answer), size)]
    assert "".join(parts) + restoring.finish() == answer.replace("<redacted-github-token-1>", GITHUB)


def test_inside_json_they_are_put_back_as_json() -> None:
    value = 'quo"te\\' + "1a"
    done = redact([f"password = '{value}'"])
    restoring = Restoring(done.secrets, in_json=True)
    text = restoring.feed('{"line": "password = <redacted-password-1>"}') + restoring.finish()
    assert json.loads(text)["line"] == f"password = {value}"


_SECRETS = st.sampled_from([GITHUB, AWS, PASSWORD, PEM, *(form[1] for form in FORMS)])
_LINES = st.one_of(
    st.sampled_from(HARMLESS),
    st.builds(
        lambda form, value: form.format(value), st.sampled_from(ASSIGNMENTS), st.sampled_from([PASSWORD])
    ),
    st.builds(lambda form: form[2].format(form[1]), st.sampled_from(FORMS)),
    st.text(max_size=20),
    st.text("<redact-pswo1>.=\"' \n", max_size=30),
    _SECRETS,
)
_TEXTS = st.lists(st.lists(_LINES, max_size=6).map("\n".join), min_size=1, max_size=3)


@given(_TEXTS)
def test_everything_comes_back(texts: list[str]) -> None:
    done = redact(texts)
    assert [restored(text, done.secrets) for text in done.texts] == texts


@given(_TEXTS, st.lists(st.integers(1, 9), min_size=1))
def test_it_comes_back_in_pieces_too(texts: list[str], sizes: list[int]) -> None:
    done = redact(texts)
    restoring, rest, shown = Restoring(done.secrets), done.texts[0], ""
    for size in sizes:
        shown += restoring.feed(rest[:size])
        rest = rest[size:]
    assert shown + restoring.feed(rest) + restoring.finish() == texts[0]


@given(st.lists(st.sampled_from(FORMS), min_size=1, max_size=6))
def test_no_secret_of_a_known_form_is_left(forms: list[tuple[str, str, str]]) -> None:
    done = redact(["\n".join(form[2].format(form[1]) for form in forms)])
    assert not any(form[1] in done.texts[0] for form in forms)


HOSTILE = {
    "spaces": "password",
    "colon": "password:",
    "index": "password[]",
    "type": "password: x",
    "curl": "curl -u ",
    "equals": "token = ",
}
_FILLING = {"curl": "=", "equals": "a/"}
_REPEATED = {
    "names": "password",
    "keys": "key",
    "connections": "pwd=",
    "addresses": "://a:",
    "marks": "-----BEGIN PRIVATE KEY",
    "web tokens": "\u00e9eyJ",
    "curls": "curl.",
    "words": "your",
}


def _made(name: str, length: int) -> str:
    if name in _REPEATED:
        return (_REPEATED[name] * length)[:length]
    return (HOSTILE[name] + _FILLING.get(name, " ") * length)[:length]


def _cost(text: str) -> float:
    """The least of three: what else the machine does only adds."""
    costs: list[float] = []
    for _ in range(3):
        redaction.find.cache_clear()
        begun = time.process_time()
        redaction.find(text)
        costs.append(time.process_time() - begun)
    return min(costs)


@pytest.mark.parametrize("name", [*HOSTILE, *_REPEATED])
def test_no_pattern_takes_much_longer_for_what_is_made_to_slow_it_down(name: str) -> None:
    """Eight times the text may take some three times that; with the square it would take 64 times as long."""
    short = max(_cost(_made(name, 4000)), _cost("a = other(1)  # and so on\n" * 160))
    assert _cost(_made(name, 32000)) < 28 * short

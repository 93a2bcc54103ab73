from __future__ import annotations

import json
import re
import tomllib
from importlib import resources

import pytest

from nexo_lsp.context.prompts import Prompts, quotable_lines, template_of_tokens
from nexo_lsp.errors import EngineUnavailable
from nexo_lsp.generation import Role
from nexo_lsp.models.catalog import CATALOG
from nexo_lsp.syntax.languages import language_for

PYTHON = language_for("python")


def test_braces_in_code_are_left_alone() -> None:
    prompt = Prompts().action("generate", PYTHON, 'x = {"code": {language}}', context="{fence}")
    shown = prompt.messages[-1].content
    assert 'x = {"code": {language}}' in shown
    assert "{fence}" in shown, "the context's own braces"


def test_the_examples_before_the_first_pair_are_the_same_for_every_function() -> None:
    prompts = Prompts()
    plain = prompts.review(PYTHON, "def f():\n    return 1", "").messages
    risky = prompts.review(PYTHON, "def f(p):\n    x = open(p)\n    return x", "").messages
    assert risky[: len(plain) - 1] == plain[:-1]
    assert len(risky) > len(plain), "a pair that resembles the code was added"


def test_every_example_quotes_its_own_code_and_every_sign_finds_its_own_defect() -> None:
    texts = tomllib.loads(
        resources.files("nexo_lsp.context").joinpath("templates/review.toml").read_text("utf-8")
    )

    for pair in texts["pair"]:
        assert pair["finding"]["quote"] in quotable_lines(pair["defect"])
        assert pair["finding"]["category"] in texts["categories"]
        assert re.search(pair["sign"], pair["defect"]), pair["sign"]
    for example in texts["example"]:
        for finding in example["findings"]:
            assert finding["quote"] in quotable_lines(example["code"])


def test_a_quote_can_only_be_a_line_of_the_code() -> None:
    code = 'def f(a):\n    print("{a}")\n\n    return a\n    }'
    schema = json.loads(Prompts().review_schema(code, 2))
    item = schema["properties"]["findings"]["items"]["properties"]
    assert item["quote"]["enum"] == ["def f(a):", 'print("{a}")', "return a"]
    assert schema["properties"]["findings"]["maxItems"] == 2


@pytest.mark.parametrize("family", ["qwen2.5-coder", "unknown"])
def test_the_suffix_comes_first(family: str) -> None:
    parts = Prompts().infill("a", "b", family).template.parts
    assert parts.index("{suffix}") < parts.index("{prefix}")


FAMILIES = Prompts().infill_families


@pytest.mark.parametrize("family", sorted({entry.family for entry in CATALOG}))
def test_every_family_of_the_catalogue_fills_in_or_says_why_not(family: str) -> None:
    entries = [entry for entry in CATALOG if entry.family == family]
    completes = any("completion" in entry.good_for for entry in entries)
    assert family in FAMILIES
    assert (Prompts().infill_template(family) is not None) is completes


@pytest.mark.parametrize("family", FAMILIES)
def test_a_template_holds_both_sides_once_and_stops_at_its_own_tokens(family: str) -> None:
    template = Prompts().infill_template(family)
    texts = tomllib.loads(
        resources.files("nexo_lsp.context").joinpath("templates", "infill.toml").read_text("utf-8")
    )[family]
    if template is None:
        assert texts["none"]
        return
    assert sorted(part for part in template.parts if part.startswith("{")) == ["{prefix}", "{suffix}"]
    tokens = [part for part in template.parts if not part.startswith("{")]
    assert len(set(tokens)) == len(tokens)
    assert set(tokens) <= set(template.stop)
    assert not template.heal or template.parts[-1] == "{prefix}"
    assert set(texts) <= {"parts", "stop", "heal"}


def test_a_model_of_no_known_family_is_asked_with_its_own_tokens() -> None:
    prompts = Prompts()
    template = prompts.infill_template("", ("<P>", "<S>", "<M>"), ("<END>", "<P>"))
    assert template is not None
    assert template.parts == ("<P>", "{prefix}", "<S>", "{suffix}", "<M>")
    assert template.stop == ("<P>", "<S>", "<M>", "<END>")
    assert not template.heal
    assert template_of_tokens("[PREFIX]", "[SUFFIX]", "").parts == (
        "[SUFFIX]",
        "{suffix}",
        "[PREFIX]",
        "{prefix}",
    )
    assert prompts.infill_template("") is None


def test_the_file_is_believed_where_its_tokens_are_not_the_familys() -> None:
    """Granite's older models have StarCoder's tokens."""
    prompts = Prompts()
    own = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
    assert prompts.infill_template("granite", own) == prompts.infill_template("granite")
    old = prompts.infill_template("granite", ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"))
    assert old is not None
    assert old.parts[0] == "<fim_prefix>"
    assert prompts.infill_template("codestral", ("[PREFIX]", "[SUFFIX]", "")) == prompts.infill_template(
        "codestral"
    )
    assert prompts.infill_template("devstral", own) is None, "tokens alone do not make it able to"


def test_a_gap_is_written_as_the_model_wants_it() -> None:
    prompts = Prompts()
    assert prompts.infill("a", "b").template == prompts.infill_template("qwen2.5-coder")
    assert prompts.infill("a", "b", "starcoder2").template.parts[0] == "<fim_prefix>"
    assert prompts.infill("a", "b", "", ("<P>", "<S>", "<M>")).template.parts[0] == "<P>"
    with pytest.raises(EngineUnavailable, match=r"nexo\.completion\.model"):
        prompts.infill("a", "b", "devstral")


def test_a_conversation_ends_with_the_user() -> None:
    assert Prompts().review(PYTHON, "x", "").messages[-1].role is Role.USER


@pytest.mark.parametrize("code", ["def f():\n    return 1", "def f(p):\n    x = open(p)\n    return x"])
def test_what_a_review_may_keep_between_two_runs_holds_nothing_of_the_users(code: str) -> None:
    prompts = Prompts()
    prompt = prompts.review(PYTHON, code, "SECRET = 1")
    other = prompts.review(language_for("go"), "func G() {}", "")
    static = prompt.messages[: prompt.static_messages]
    assert static == other.messages[: other.static_messages]
    assert len(static) > 5, "the instruction and the examples that are always shown"
    assert not any(code in message.content or "SECRET" in message.content for message in static)


ACTIONS = ("generate", "optimize", "fix", "document", "tests", "explain", "hover")


def test_all_actions_on_a_function_begin_with_it_alike() -> None:
    words = dict.fromkeys(("quote", "message", "suggestion", "framework", "name"), "what differs")
    prompts = [Prompts().action(name, PYTHON, "CODE", context="around", words=words) for name in ACTIONS]
    (system,) = {prompt.messages[0].content for prompt in prompts}
    assert "Python" in system
    for prompt in prompts:
        assert prompt.messages[1].content.startswith("```python\nCODE\n```\n\n")


@pytest.mark.parametrize("name", ACTIONS)
def test_what_an_action_may_keep_is_the_instruction(name: str) -> None:
    words = dict.fromkeys(("quote", "message", "suggestion", "framework", "name"), "SECRET")
    prompt = Prompts().action(name, PYTHON, "SECRET", context="SECRET", words=words)
    assert prompt.static_messages == 1
    assert prompt.messages[0].role is Role.SYSTEM
    assert "SECRET" not in prompt.messages[0].content
    unknown = Prompts().action(name, None, "x", words={**words, "language": "what the editor says"})
    assert unknown.static_messages == 0


def test_the_bias_follows_the_models_size_and_what_the_code_resembles() -> None:
    prompts = Prompts()
    plain, suspect = "def f():\n    return 1", "def f(p):\n    x = open(p)\n    return x.read()"

    def bias(code: str, parameters: float | None) -> float:
        ((_, value),) = prompts.review_bias(code, parameters)
        return value

    assert bias(plain, 0.5) > 0 > bias(suspect, 0.5)
    assert bias(suspect, 1.54) < bias(suspect, 0.5), "a larger model is more content"
    assert bias(plain, None) == bias(plain, 0.494)

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nexo_lsp import settings
from nexo_lsp.runtime.providers.native import gpu_layers_of
from nexo_lsp.settings import Layer, Resolved, from_environment, resolve


def one(data: dict[str, Any], origin: str = "initializationOptions") -> Resolved:
    return resolve([Layer(origin, data)])


def test_a_new_user_has_the_defaults() -> None:
    resolved = resolve([])
    assert resolved.settings == settings.Settings()
    assert resolved.origins == {}
    assert resolved.problems == ()
    assert resolved.settings.review.trigger == "onSave"
    assert resolved.settings.models.auto_download == "ask"
    assert resolved.settings.completion.debounce_ms is None


def test_layers_later_ones_win_and_each_origin_is_known() -> None:
    resolved = resolve(
        [
            Layer("initializationOptions", {"review": {"trigger": "onType", "debounceMs": 10}}),
            Layer("workspace/configuration", {"review": {"trigger": "manual"}, "enable": False}),
        ]
    )
    assert resolved.settings.review.trigger == "manual"
    assert resolved.settings.review.debounce_ms == 10
    assert resolved.settings.enable is False
    assert resolved.origins == {
        "nexo.review.trigger": "workspace/configuration",
        "nexo.review.debounceMs": "initializationOptions",
        "nexo.enable": "workspace/configuration",
    }


def test_a_wrong_value_is_named_and_the_one_below_counts() -> None:
    resolved = resolve(
        [
            Layer("initializationOptions", {"hover": {"waitMs": 100}}),
            Layer("didChangeConfiguration", {"hover": {"waitMs": "soon"}}),
        ]
    )
    assert resolved.settings.hover.wait_ms == 100
    (problem,) = resolved.problems
    assert problem.name == "nexo.hover.waitMs"
    assert "'soon'" in problem.message
    assert "didChangeConfiguration" in problem.message
    assert str(problem).startswith("nexo.hover.waitMs: ")


@pytest.mark.parametrize(
    ("data", "name", "hint"),
    [
        ({"reveiw": {"trigger": "manual"}}, "nexo.reveiw", "did you mean nexo.review"),
        ({"review": {"triger": "manual"}}, "nexo.review.triger", "did you mean nexo.review.trigger"),
        ({"review": "onSave"}, "nexo.review", "must be an object"),
        ({"review": {"trigger": "always"}}, "nexo.review.trigger", "onSave"),
        ({"hover": {"waitMs": -1}}, "nexo.hover.waitMs", "greater than or equal to 0"),
        ({"engine": {"threads": 10**9}}, "nexo.engine.threads", "less than or equal to 256"),
        ({"engine": "gpu"}, "nexo.engine.kind", "auto"),
        ({"disabledGlobs": "*.py"}, "nexo.disabledGlobs", "tuple"),
        ({"enable": None}, "nexo.enable", "bool"),
        ({"xyzzy": 1}, "nexo.xyzzy", "is not a setting"),
    ],
)
def test_wrong_settings_are_named_with_the_fix(data: dict[str, Any], name: str, hint: str) -> None:
    resolved = one(data)
    (problem,) = resolved.problems
    assert problem.name == name
    assert hint in problem.message
    assert resolved.settings == settings.Settings()
    assert resolved.origins == {}


def test_one_wrong_setting_spoils_no_other() -> None:
    resolved = one({"hover": {"waitMs": "soon", "explain": False}, "model": "x.gguf"})
    assert len(resolved.problems) == 1
    assert resolved.settings.hover.explain is False
    assert resolved.settings.model == "x.gguf"


def test_the_engine_may_be_one_word() -> None:
    assert one({"engine": "mock"}).settings.engine.kind == "mock"
    assert one({"engine": {"kind": "mock", "threads": 2}}).settings.engine.threads == 2
    both = resolve([Layer("a", {"engine": {"threads": 2}}), Layer("b", {"engine": "mock"})])
    assert (both.settings.engine.kind, both.settings.engine.threads) == ("mock", 2)
    assert both.origins["nexo.engine.kind"] == "b"


def test_a_fixed_debounce_and_its_absence() -> None:
    assert one({"completion": {"debounceMs": 0}}).settings.completion.debounce_ms == 0
    assert one({"completion": {"debounceMs": None}}).settings.completion.debounce_ms is None


def test_lists_come_as_json_arrays() -> None:
    resolved = one({"disabledLanguages": ["markdown", "yaml"]})
    assert resolved.problems == ()
    assert resolved.settings.disabled_languages == ("markdown", "yaml")


def test_keys_of_the_client_are_left_alone() -> None:
    resolved = one({"trace": {"server": "verbose"}, "trusted": True, "path": "/usr/bin/nexo-lsp"})
    assert resolved.problems == ()
    assert resolved.settings == settings.Settings()


def test_settings_by_environment() -> None:
    layer = from_environment(
        {
            "NEXO_REVIEW_TRIGGER": " manual ",
            "NEXO_HOVER_WAIT_MS": "50",
            "NEXO_ENABLE": "off",
            "NEXO_DISABLED_GLOBS": "*.md, /dist/ ,",
            "NEXO_COMPLETION_DEBOUNCE_MS": "null",
            "NEXO_ENGINE": "mock",
            "NEXO_HOME": "/somewhere",
        }
    )
    resolved = resolve([layer])
    assert resolved.problems == ()
    found = resolved.settings
    assert (found.review.trigger, found.hover.wait_ms, found.enable) == ("manual", 50, False)
    assert found.disabled_globs == ("*.md", "/dist/")
    assert found.completion.debounce_ms is None
    assert found.engine.kind == "mock"
    assert resolved.origins["nexo.engine.kind"] == "environment (NEXO_ENGINE)"
    assert resolved.origins["nexo.hover.waitMs"] == "environment (NEXO_HOVER_WAIT_MS)"


def test_a_wrong_variable_is_named() -> None:
    (problem,) = resolve([from_environment({"NEXO_REVIEW_TRIGGER": "sometimes"})]).problems
    assert problem.name == "nexo.review.trigger"
    assert "environment (NEXO_REVIEW_TRIGGER)" in problem.message
    (word,) = resolve([from_environment({"NEXO_ENGINE": "gpu"})]).problems
    assert word.name == "nexo.engine.kind"
    assert "environment (NEXO_ENGINE)" in word.message


def test_a_misspelt_variable_is_named() -> None:
    (problem,) = resolve([from_environment({"NEXO_REVIEW_MAX_FINDING": "1"})]).problems
    assert problem.name == "nexo.review.maxFinding"
    assert "did you mean nexo.review.maxFindings?" in problem.message
    assert "NEXO_REVIEW_MAX_FINDING" in problem.message
    others = {
        "NEXO_HOME": "/x",
        "NEXO_MODEL_DIR": "/x",
        "NEXO_MODEL_URL": "u",
        "NEXO_MODELS_EMBEDDED": "/x",
        "NEXO_LOG": "debug",
        "HOME": "/",
    }
    assert resolve([from_environment(others)]).problems == ()


def test_an_empty_variable_is_not_set_but_empties_a_list() -> None:
    empty = {
        "NEXO_MODEL": "",
        "NEXO_ENABLE": " ",
        "NEXO_ENGINE": "",
        "NEXO_HOVER_WAIT_MS": "",
        "NEXO_ENGINE_KIND": "",
    }
    assert resolve([from_environment(empty)]).origins == {}
    editor = Layer("editor", {"disabledLanguages": ["yaml"]})
    assert (
        resolve([editor, from_environment({"NEXO_DISABLED_LANGUAGES": ""})]).settings.disabled_languages == ()
    )


def test_the_regular_variable_of_the_engine_counts_more() -> None:
    for environ in (
        {"NEXO_ENGINE": "native", "NEXO_ENGINE_KIND": "mock"},
        {"NEXO_ENGINE_KIND": "mock", "NEXO_ENGINE": "native"},
    ):
        resolved = resolve([from_environment(environ)])
        assert resolved.settings.engine.kind == "mock"
        assert resolved.origins == {"nexo.engine.kind": "environment (NEXO_ENGINE_KIND)"}
    resolved = resolve([from_environment({"NEXO_ENGINE": "mock", "NEXO_ENGINE_KIND": ""})])
    assert resolved.settings.engine.kind == "mock"


def test_every_setting_can_be_set_by_its_variable() -> None:
    """The defaults, written as variables, are the defaults."""
    environ: dict[str, str] = {}
    for name in settings.names():
        value = settings.default(name)
        environ[settings.variable(name)] = (
            ",".join(value) if isinstance(value, tuple) else "null" if value is None else str(value)
        )
    resolved = resolve([from_environment(environ)])
    assert resolved.problems == ()
    assert resolved.settings == settings.Settings()
    # An empty variable is one that is not set.
    assert set(resolved.origins) == {
        f"nexo.{name}" for name in settings.names() if settings.default(name) != ""
    }


def test_what_sends_code_away_counts_only_in_the_users_own_settings(tmp_path: Path) -> None:
    wanted = {"remote": {"enabled": True, "endpoints": ["https://example.org/v1"]}, "docker": {"image": "x"}}
    from_workspace = resolve([Layer("workspace/configuration", wanted, users_own=False)])
    assert from_workspace.settings == settings.Settings()
    named = {problem.name for problem in from_workspace.problems}
    assert named == {"nexo.remote.enabled", "nexo.remote.endpoints", "nexo.docker.image"}
    file = tmp_path / "settings.toml"
    file.write_text('[remote]\nenabled = true\nendpoints = ["https://example.org/v1"]\n', "utf-8")
    own = settings.effective(file, {}, [Layer("editor", {"model": "m"}, users_own=False)])
    assert own.problems == ()
    assert own.settings.remote.enabled
    assert own.settings.model == "m"
    assert own.origins["nexo.remote.enabled"] == str(file)


def test_a_workspace_can_make_what_the_user_said_stricter_and_not_looser(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(
        'offline = true\nenable = true\ndisabledGlobs = ["secret/**"]\n[models]\nautoDownload = "ask"\n',
        "utf-8",
    )
    looser = {"offline": False, "disabledGlobs": ["build/**"], "models": {"autoDownload": "always"}}
    found = settings.effective(file, {}, [Layer("editor", looser, users_own=False)])
    assert found.problems == ()
    assert found.settings.offline
    assert found.settings.models.auto_download == "ask"
    assert found.settings.disabled_globs == ("secret/**", "build/**")
    assert found.origins["nexo.offline"] == str(file)
    stricter = {"enable": False, "models": {"autoDownload": "never"}}
    found = settings.effective(file, {}, [Layer("editor", stricter, users_own=False)])
    assert not found.settings.enable
    assert found.settings.models.auto_download == "never"
    # Where the user said nothing, an editor's settings count as they are: most are the user's.
    free = settings.effective(tmp_path / "none", {}, [Layer("editor", looser, users_own=False)])
    assert free.settings.models.auto_download == "always"
    # And the environment is the user's own.
    own = settings.effective(file, {"NEXO_OFFLINE": "false"}, [Layer("editor", {}, users_own=False)])
    assert not own.settings.offline


def test_a_broken_settings_file_is_named_and_the_rest_counts(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("[remote\n", "utf-8")
    resolved = settings.effective(file, {"NEXO_MODEL": "m"})
    (problem,) = resolved.problems
    assert str(file) in str(problem)
    assert resolved.settings.model == "m"
    assert settings.effective(tmp_path / "absent.toml", {}).problems == ()


def test_variables_are_unique_and_none_is_reserved() -> None:
    variables = [settings.variable(name) for name in settings.names()]
    assert len(set(variables)) == len(variables)
    assert not {"NEXO_HOME", "NEXO_LOG", "NEXO_CI", "NEXO_ENGINE"} & set(variables)


def test_every_setting_is_described() -> None:
    for name in settings.names():
        assert settings.description(name).endswith("."), name


def test_the_schema_is_plain_json_and_knows_every_setting() -> None:
    schema = json.loads(json.dumps(settings.json_schema()))
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]) == {name.partition(".")[0] for name in settings.names()}


@pytest.mark.parametrize("layer", [{}, {"review": {}}, {"review": None}, {"": 1}, {"engine": 3}, {"a.b": 1}])
def test_odd_layers_do_no_harm(layer: dict[str, Any]) -> None:
    assert one(layer).settings == settings.Settings()


@pytest.mark.parametrize(("value", "layers"), [("auto", None), ("none", 0), ("all", -1), (12, 12), (0, 0)])
def test_gpu_layers_are_a_word_or_a_number(value: str | int, layers: int | None) -> None:
    resolved = one({"engine": {"gpuLayers": value}})
    assert resolved.problems == ()
    assert gpu_layers_of(resolved.settings.engine.gpu_layers) == layers
    named = resolve([from_environment({"NEXO_ENGINE_GPU_LAYERS": str(value)})])
    assert named.settings.engine.gpu_layers == value


@pytest.mark.parametrize("value", ["few", -1, 2.5])
def test_gpu_layers_that_are_neither_are_named_with_both_ways(value: object) -> None:
    (problem,) = one({"engine": {"gpuLayers": value}}).problems
    assert "'auto', 'none' or 'all'" in problem.message
    assert ", or should be" in problem.message
    assert one({"engine": {"gpuLayers": value}}).settings.engine.gpu_layers == "auto"

"""The user's own catalogue: it adds and replaces, and what is wrong in it is named and costs nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from nexo_lsp.models.catalog import CATALOG, DEFAULT_MODEL, Catalog, load_catalog

DIGEST = "0123456789abcdef" * 4
WHOLE = f"""
[[model]]
name = "mine-7b"
hub = {{ repo = "me/mine", file = "sub/mine.gguf" }}
bytes = 1_000
sha256 = "{DIGEST}"
license = "MIT"
good_for = ["chat"]
parameters = 7
"""


def _load(tmp_path: Path, text: str) -> Catalog:
    file = tmp_path / "models.toml"
    file.write_text(text, "utf-8")
    return load_catalog(file)


def test_without_a_file_there_are_the_projects_models(tmp_path: Path) -> None:
    assert load_catalog(None).entries == load_catalog(tmp_path / "absent.toml").entries == CATALOG
    assert load_catalog(None).find(DEFAULT_MODEL) == CATALOG[0]


def test_a_model_is_added_with_all_that_is_said_of_it(tmp_path: Path) -> None:
    catalog = _load(tmp_path, WHOLE)
    assert catalog.problems == ()
    assert catalog.entries[:-1] == CATALOG
    mine = catalog.find("mine-7b")
    assert mine is not None
    assert (mine.file, mine.size, mine.sha256, mine.pinned) == ("mine-7b.gguf", 1000, DIGEST, True)
    assert (mine.hub_repo, mine.hub_file, mine.hub_revision) == ("me/mine", "sub/mine.gguf", "main")
    assert mine.urls == ("https://huggingface.co/me/mine/resolve/main/sub/mine.gguf",)
    assert (mine.family, mine.parameters, mine.good_for) == ("", 7, ("chat",))


def test_a_mark_of_the_encoding_before_the_text_is_no_part_of_it(tmp_path: Path) -> None:
    catalog = _load(tmp_path, "\ufeff" + WHOLE.lstrip())
    assert catalog.problems == ()
    assert catalog.find("mine-7b") is not None


def test_an_entry_of_the_same_name_takes_the_place_of_the_projects(tmp_path: Path) -> None:
    catalog = _load(
        tmp_path, f'[[model]]\nname = "{DEFAULT_MODEL}"\nurls = ["https://mirror.example/q.gguf"]\n'
    )
    assert len(catalog.entries) == len(CATALOG)
    own = catalog.entries[0]
    assert own.name == DEFAULT_MODEL
    assert own.urls == ("https://mirror.example/q.gguf",)
    assert (own.pinned, own.size, own.mirror) == (False, 0, ())
    # It is the same model from elsewhere: what is not said of it is as it was.
    old = CATALOG[0]
    assert (own.family, own.parameters, own.quantisation) == (old.family, old.parameters, old.quantisation)
    assert own.kv_bytes_per_token == old.kv_bytes_per_token


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[[model]]\nname = "a"', "the model a is left out: it has no source"),
        (
            '[[model]]\nurls = ["https://x.example/a.gguf"]',
            "number 1, which has no name, is left out: `name`",
        ),
        ('[[model]]\nname = "a"\nurls = ["http://x.example/a.gguf"]', "model a is left out: `urls.0`"),
        (
            '[[model]]\nname = "a"\nurls = ["https://me:secret@x.example/a.gguf"]',
            "model a is left out: `urls.0`",
        ),
        ('[[model]]\nname = "A b"\nurls = ["https://x.example/a.gguf"]', "the model A b is left out: `name`"),
        (
            '[[model]]\nname = "a"\nhub = { repo = "../x", file = "a.gguf" }',
            "model a is left out: `hub.repo`",
        ),
        (
            '[[model]]\nname = "a"\nhub = { repo = "o/r", file = "../a.gguf" }',
            "model a is left out: `hub.file`",
        ),
        (
            '[[model]]\nname = "a"\nfile = "a@0123abcd.gguf"\nurls = ["https://x.example/a.gguf"]',
            "model a is left out: `file`",
        ),
        ('[[model]]\nname = "a"\nfile = "../../a.gguf"', "model a is left out: `file`"),
        ('[[model]]\nname = "a"\nsize = 3', "model a is left out: `size` is no key of a model"),
        (WHOLE.replace(DIGEST, "ABC"), "the model mine-7b is left out: `sha256`"),
        (WHOLE.replace("bytes = 1_000", ""), "needs `bytes` too"),
        (WHOLE.replace('"chat"', '"dancing"'), "model mine-7b is left out: `good_for.0`"),
        (WHOLE.replace("parameters = 7", 'parameters = "seven"'), "`parameters`"),
        ("[[model]", "this is not TOML"),
        ("model = 3", "`model` has to be a list of tables"),
        ("model = [3]", "model number 1"),
        ('[models]\nname = "a"', "`models` is nothing that a catalogue has"),
        (WHOLE + WHOLE, "the model mine-7b is there twice"),
        (WHOLE + f'file = "{CATALOG[0].file}"', f"{CATALOG[0].name} has the file name"),
    ],
)
def test_what_is_wrong_is_named_and_the_rest_counts(tmp_path: Path, text: str, said: str) -> None:
    catalog = _load(tmp_path, text)
    assert len(catalog.problems) == 1
    assert catalog.problems[0].startswith(f"{tmp_path / 'models.toml'}: ")
    assert said in catalog.problems[0]
    assert catalog.entries[: len(CATALOG)] == CATALOG


def test_one_broken_entry_does_not_cost_the_others(tmp_path: Path) -> None:
    catalog = _load(tmp_path, '[[model]]\nname = "broken"\n' + WHOLE)
    assert len(catalog.problems) == 1
    assert catalog.find("mine-7b") is not None


def test_a_file_that_cannot_be_read_is_one_problem(tmp_path: Path) -> None:
    (tmp_path / "models.toml").write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in load_catalog(tmp_path / "models.toml").problems[0]
    (tmp_path / "folder").mkdir()
    assert "cannot be read" in load_catalog(tmp_path / "folder").problems[0]

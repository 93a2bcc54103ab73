"""`nexo-lsp models list` and `models info`, and models that no catalogue has, through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from nexo_lsp.cli import models as cli
from nexo_lsp.cli import models_shown
from nexo_lsp.models.catalog import CATALOG, DEFAULT_MODEL
from nexo_lsp.models.store import ModelStore
from tests.engine.tiny_gguf import write_tiny_model

from .conftest import WebServer

HF = "hf:org/tiny-GGUF/tiny-coder.gguf"

models_shown.add_to(cli.app)


@pytest.fixture
def store(tmp_path: Path, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> ModelStore:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    store = ModelStore(tmp_path / "models", environ)
    monkeypatch.setattr(cli, "open_store", lambda: store)
    return store


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, list(arguments), env={"COLUMNS": "100"})


def test_the_list_shows_what_a_choice_needs_to_know(store: ModelStore, tmp_path: Path) -> None:
    store.folder.mkdir()
    write_tiny_model(store.folder / "own.gguf")
    result = _run("list")
    assert result.exit_code == 0
    lines = [line.rstrip() for line in result.stdout.splitlines()]
    at = next(number for number, line in enumerate(lines) if line.startswith(DEFAULT_MODEL))
    assert lines[at].split()[1:] == ["0.5", "491", "MB", "900", "MB", "no"]
    assert lines[at + 1].split("; ") == ["  Q4_K_M", "completion, chat, review", "pinned"]
    own = next(number for number, line in enumerate(lines) if line.startswith("own.gguf"))
    assert lines[own].endswith("yes")
    assert lines[own + 1].strip() == "F32", "its own header tells of it"
    assert sum("not pinned" in line for line in lines) == sum(not entry.pinned for entry in CATALOG)
    assert f"Folder: {store.folder}" in lines


def test_a_wide_terminal_has_room_for_a_sentence_about_each(store: ModelStore) -> None:
    wide = CliRunner().invoke(cli.app, ["list"], env={"COLUMNS": "200"})
    assert "The default: quick on any laptop" in wide.stdout


def test_the_list_for_machines_has_the_figures(store: ModelStore) -> None:
    rows = json.loads(_run("list", "--json").stdout)
    assert len(rows) == len(CATALOG)
    assert [row["size"] for row in rows[:-1]] == sorted(row["size"] for row in rows[:-1]), (
        "the smallest first"
    )
    row = next(row for row in rows if row["name"] == DEFAULT_MODEL)
    assert row["default"]
    assert (row["parameters"], row["quantisation"], row["memory_bytes"]) == (0.494, "Q4_K_M", 900_000_000)
    assert (row["pinned"], row["good_for"]) == (True, ["completion", "chat", "review"])


def test_info_of_a_model_that_is_not_here(store: ModelStore) -> None:
    result = _run("info")
    assert result.exit_code == 0
    assert "not on this machine" in result.stdout
    assert "pinned by the catalogue" in " ".join(result.stdout.split())
    facts = json.loads(_run("info", "codestral-22b-v0.1-q4_k_m", "--json").stdout)
    assert (facts["installed"], facts["path"], facts["family"]) == (False, None, "codestral")
    assert "header" not in facts


def test_info_of_any_file(store: ModelStore, tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "own.gguf", template=None)
    result = _run("info", str(path))
    assert result.exit_code == 0, result.output
    for said in ("tiny", "architecture llama", "8,192 tokens", "<|fim_prefix|>", "none", "unknown"):
        assert said in result.stdout
    facts = json.loads(_run("info", str(path), "--json").stdout)
    assert (facts["name"], facts["family"], facts["chat_template"]) == ("tiny", "", False)
    assert facts["infill"] == ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"]
    assert facts["size"] == path.stat().st_size
    assert facts["memory_bytes"] > facts["size"]
    path.write_bytes(path.read_bytes()[:-1])
    assert "cut off" in _run("info", str(path)).stdout


def test_info_of_what_is_no_model(store: ModelStore, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_text("no model")
    result = _run("info", str(tmp_path / "x.gguf"))
    assert result.exit_code == 3
    assert "not a GGUF file" in result.stderr
    unknown = _run("info", "no-such-model")
    assert unknown.exit_code == 2
    wrong = _run("info", "hf:nothing", "--json")
    assert json.loads(wrong.stdout)["error"] == "model-unknown"


def test_a_model_that_no_catalogue_has_is_fetched_listed_checked_and_removed(
    store: ModelStore, hub: WebServer, tmp_path: Path
) -> None:
    data = write_tiny_model(tmp_path / "source.gguf").read_bytes()
    hub.commit = "c" * 40
    for revision in ("main", hub.commit):
        hub.files[f"/org/tiny-GGUF/resolve/{revision}/tiny-coder.gguf"] = data
    pulled = _run("pull", HF)
    assert pulled.exit_code == 0, pulled.output
    assert f"{HF} is ready" in pulled.stdout
    assert "not pinned: its SHA-256" in pulled.stderr
    row = next(row for row in json.loads(_run("list", "--json").stdout) if row["installed"])
    assert (row["name"], row["pinned"], row["verified"]) == (HF, False, True)
    told = _run("info", HF)
    assert "that Hugging Face announced" in " ".join(told.stdout.split())
    verified = _run("verify")
    assert f"{HF} is right (not pinned" in verified.stdout
    assert json.loads(_run("verify", HF, "--json").stdout)[0]["note"].startswith("not pinned")
    assert _run("remove", HF).exit_code == 0
    assert store.installed() == ()


def test_an_address_that_nobody_answers_for_is_told(store: ModelStore, hub: WebServer) -> None:
    result = _run("pull", "hf:org/none/none.gguf")
    assert result.exit_code == 3
    assert "404 Not Found" in result.stderr


def test_the_users_own_catalogue_counts_and_its_mistakes_are_named(
    nexo_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (nexo_home / "config").mkdir()
    (nexo_home / "config" / "models.toml").write_text(
        '[[model]]\nname = "mine"\nurls = ["https://models.example/mine.gguf"]\n[[model]]\nname = "broken"\n'
    )
    store = cli.open_store()
    assert store.entry("mine").urls == ("https://models.example/mine.gguf",)
    assert "the model broken is left out" in capsys.readouterr().err

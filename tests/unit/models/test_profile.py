"""What is known of a model file, whether or not a catalogue has it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nexo_lsp.errors import ModelError
from nexo_lsp.models.catalog import CATALOG
from nexo_lsp.models.header import Header, InfillTokens, read_header
from nexo_lsp.models.profile import family_of, profile_of
from tests.engine.tiny_gguf import write_tiny_model


def test_a_file_that_nobody_knows_tells_of_itself(tmp_path: Path) -> None:
    profile = profile_of(write_tiny_model(tmp_path / "own.gguf", context=2048), CATALOG)
    assert (profile.name, profile.family, profile.context_tokens) == ("tiny", "", 2048)
    assert profile.infill_texts == ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
    assert (profile.chat, profile.quantisation, profile.entry) == (True, "F32", None)
    assert 0 < profile.parameters < 0.001
    assert profile.kv_bytes_per_token == 2 * 2 * 64 * 2
    assert not profile_of(write_tiny_model(tmp_path / "plain.gguf", template=None), CATALOG).chat


def test_a_file_of_the_catalogue_has_its_name_and_family_from_there(tmp_path: Path) -> None:
    entry = CATALOG[0]
    for name in (entry.file, entry.file.replace(".gguf", "@0123abcd.gguf")):
        profile = profile_of(write_tiny_model(tmp_path / name), CATALOG)
        assert (profile.name, profile.family, profile.entry) == (entry.name, entry.family, entry)
        assert profile.parameters == entry.parameters
        assert profile.context_tokens == 8192, "what a file was made with counts more than what its kind can"


def test_what_is_no_model_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"no model")
    with pytest.raises(ModelError, match="not a GGUF"):
        profile_of(tmp_path / "x.gguf", CATALOG)


@pytest.fixture(scope="module")
def header(tmp_path_factory: pytest.TempPathFactory) -> Header:
    return read_header(write_tiny_model(tmp_path_factory.mktemp("tiny") / "tiny.gguf"))


@pytest.mark.parametrize(
    ("architecture", "name", "file", "family"),
    [
        ("qwen2", "Qwen2.5 Coder 7B Instruct", "", "qwen2.5-coder"),
        ("qwen2", "Qwen2.5 7B Instruct", "", ""),
        ("qwen3moe", "Qwen3 Coder 30B A3B", "", "qwen3-coder"),
        ("qwen3next", "", "Qwen3-Coder-Next-UD-Q4_K_M", "qwen3-coder"),
        ("starcoder2", "whatever", "", "starcoder2"),
        ("gemma", "", "codegemma-2b-Q4_K_M", "codegemma"),
        ("gemma2", "Gemma 2", "", ""),
        ("deepseek2", "DeepSeek-Coder-V2-Lite", "", "deepseek-coder"),
        ("llama", "", "deepseek-coder-6.7b-instruct", "deepseek-coder"),
        ("granitehybrid", "Granite 4.0 H Tiny", "", "granite"),
        ("llama", "Codestral-22B-v0.1", "", "codestral"),
        ("mistral3", "Devstral Small 2", "", "devstral"),
        ("llama", "Llama 3", "model", ""),
        ("", "", "", ""),
    ],
)
def test_families_are_told_by_architecture_and_name(
    header: Header, architecture: str, name: str, file: str, family: str
) -> None:
    assert family_of(replace(header, architecture=architecture, name=name), file) == family


@pytest.mark.model
def test_the_real_model(model_path: Path) -> None:
    profile = profile_of(model_path, ())
    assert profile.family == "qwen2.5-coder"
    assert profile.infill == InfillTokens(
        "<|fim_prefix|>",
        "<|fim_suffix|>",
        "<|fim_middle|>",
        ("<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<|im_end|>"),
    )
    entry = CATALOG[0]
    known = profile_of(model_path, CATALOG)
    assert (known.kv_bytes_per_token, known.context_tokens) == (
        entry.kv_bytes_per_token,
        entry.context_tokens,
    )
    assert (known.file_bytes, known.quantisation) == (entry.size, entry.quantisation)

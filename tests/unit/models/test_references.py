"""What an address of a model can look like, and which entry and which file follow from it."""

from __future__ import annotations

import re

import pytest

from nexo_lsp.errors import ModelUnknown
from nexo_lsp.models.catalog import CATALOG
from nexo_lsp.models.references import entry_of, file_of, is_reference


@pytest.mark.parametrize(
    ("text", "repo", "file", "revision", "name"),
    [
        ("hf:me/repo/model.gguf", "me/repo", "model.gguf", "main", "me--repo--model.gguf"),
        ("hf:me/repo/sub/model.gguf", "me/repo", "sub/model.gguf", "main", "me--repo--sub--model.gguf"),
        ("hf:me/repo/m.gguf@0123abcd", "me/repo", "m.gguf", "0123abcd", "me--repo@0123abcd--m.gguf"),
        ("hf:me/repo/m.gguf@main", "me/repo", "m.gguf", "main", "me--repo--m.gguf"),
        ("hf:me/repo/m.gguf@refs/pr/1", "me/repo", "m.gguf", "refs/pr/1", "me--repo@refs--pr--1--m.gguf"),
        (
            "https://huggingface.co/me/repo/resolve/v1/m.gguf",
            "me/repo",
            "m.gguf",
            "v1",
            "me--repo@v1--m.gguf",
        ),
        (
            "https://huggingface.co/me/repo/blob/main/sub/m.gguf?download=true",
            "me/repo",
            "sub/m.gguf",
            "main",
            "me--repo--sub--m.gguf",
        ),
    ],
)
def test_a_file_on_the_hub(text: str, repo: str, file: str, revision: str, name: str) -> None:
    assert is_reference(text)
    entry = entry_of(text, CATALOG)
    assert (entry.hub_repo, entry.hub_file, entry.hub_revision, entry.file) == (repo, file, revision, name)
    assert entry.urls == (f"https://huggingface.co/{repo}/resolve/{revision}/{file}",)
    assert (entry.pinned, entry.size, entry.sha256, entry.family) == (False, 0, "", "")
    assert entry_of(entry.name, CATALOG) == entry, "an entry is found again by its name"


def test_a_file_that_the_catalogue_has_is_the_catalogues() -> None:
    small = CATALOG[0]
    assert entry_of(f"hf:{small.hub_repo}/{small.hub_file}", CATALOG) is small
    assert entry_of(f"hf:{small.hub_repo}/{small.hub_file}@{small.hub_revision}", CATALOG) is small
    assert entry_of(small.urls[0], CATALOG) is small
    assert entry_of(f"hf:{small.hub_repo}/{small.hub_file}@{'1' * 40}", CATALOG) is not small


def test_a_file_on_another_server() -> None:
    one = entry_of("https://models.example/a/b/coder%2Dx.gguf?key=secret#top", CATALOG)
    assert one.name == "https://models.example/a/b/coder%2Dx.gguf"
    assert one.urls == ("https://models.example/a/b/coder%2Dx.gguf?key=secret#top",)
    assert re.fullmatch(r"coder-x\.[0-9a-f]{8}\.gguf", one.file)
    assert one.file_names == (one.file, "coder%2Dx.gguf")
    other = entry_of("https://models.example/a/c/coder%2Dx.gguf", CATALOG)
    assert other.file != one.file
    assert entry_of(one.name, CATALOG).file == one.file
    assert entry_of("http://127.0.0.1:8000/x.gguf", CATALOG).urls == ("http://127.0.0.1:8000/x.gguf",)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hf:", "hf:owner/repo/file.gguf"),
        ("hf:me/repo", "hf:owner/repo/file.gguf"),
        ("hf:me/repo/model.bin", "hf:owner/repo/file.gguf"),
        ("hf:me/../repo/m.gguf", "hf:owner/repo/file.gguf"),
        ("hf:me/repo/../../m.gguf", "hf:owner/repo/file.gguf"),
        ("hf:me/repo/m.gguf@../x", "hf:owner/repo/file.gguf"),
        ("hf:me/repo/m.gguf@", "hf:owner/repo/file.gguf"),
        ("https://huggingface.co/me/repo", "hf:owner/repo/file.gguf"),
        ("https://huggingface.co/me/repo/resolve/main/..%2F..%2Fm.gguf", "hf:owner/repo/file.gguf"),
        ("http://models.example/m.gguf", "https://"),
        ("ftp://models.example/m.gguf", "https://"),
        ("file:///etc/m.gguf", "https://"),
        ("https://me:pass@models.example/m.gguf", "no user"),
        ("https:///m.gguf", "host"),
        ("https://models.example/", "does not end with"),
        ("https://models.example/model.safetensors", "does not end with"),
        ("https://models.example/..%2Fm.gguf%00.gguf", "does not end with"),
        ("https://[bad/m.gguf", "address"),
        ("hf:me/repo/big-00001-of-00004.gguf", "one of several parts"),
        ("https://models.example/big-00002-of-00004.gguf", "one of several parts"),
    ],
)
def test_what_is_no_address_of_a_model_is_told_so(text: str, said: str) -> None:
    assert is_reference(text)
    with pytest.raises(ModelUnknown, match=re.escape(said)) as failure:
        entry_of(text, CATALOG)
    assert "pass@" not in str(failure.value), "what may be a password is not repeated"
    assert file_of(text, CATALOG) == text


def test_a_server_may_be_named_in_capitals() -> None:
    assert is_reference("HTTPS://models.example/m.gguf")
    assert entry_of("HTTPS://models.example/m.gguf", CATALOG).name == "https://models.example/m.gguf"


@pytest.mark.parametrize("text", ["auto", "a.gguf", "/x/a.gguf", "C:\\x\\a.gguf", "~/a.gguf", "a@0123abcd"])
def test_names_and_paths_are_no_references(text: str) -> None:
    assert not is_reference(text)
    assert file_of(text, CATALOG) == text

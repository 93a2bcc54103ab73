"""Which language a document is in, and grammars that are not there."""

from __future__ import annotations

import logging
import sys
import types

import pytest

from nexo_lsp.syntax import languages
from nexo_lsp.syntax.languages import LANGUAGES, has_grammar, language_for
from nexo_lsp.syntax.outline import Outline
from nexo_lsp.syntax.parsing import parse


@pytest.mark.parametrize(
    ("language_id", "uri", "name"),
    [
        ("python", "", "Python"),
        ("Python", "", "Python"),
        ("javascriptreact", "file:///a.jsx", "JavaScript"),
        ("typescriptreact", "", "TSX"),
        ("sh", "", "Bash"),
        ("bash", "", "Bash"),
        ("shellscript", "", "Bash"),
        ("cs", "", "C#"),
        ("c", "file:///a.h", "C"),
        ("cpp", "file:///a.h", "C++"),
        ("", "file:///src/main.rs", "Rust"),
        ("plaintext", "untitled:Untitled-1", None),
        ("plaintext", "file:///a%20b.KT", "Kotlin"),
        ("", "git:/repo/a.py?%7B%22ref%22%3A%22HEAD%22%7D", "Python"),
        ("python", "vscode-notebook-cell:/n.ipynb#W0s", "Python"),
        ("markdown", "vscode-notebook-cell:/n.ipynb#W0s", None),
        ("", r"C:\code\a.cs", "C#"),
        ("", "/home/me/.py", None),
        ("cobol", "", None),
        ("", "", None),
    ],
)
def test_a_language_is_found_by_id_or_extension(language_id: str, uri: str, name: str | None) -> None:
    language = language_for(language_id, uri)
    assert (language.name if language else None) == name


def test_ids_aliases_and_extensions_are_each_of_one_language() -> None:
    ids = [name for language in LANGUAGES for name in (language.id, *language.aliases)]
    extensions = [extension for language in LANGUAGES for extension in language.extensions]
    assert len(ids) == len(set(ids))
    assert len(extensions) == len(set(extensions))
    assert all(has_grammar(language) for language in LANGUAGES)


@pytest.fixture
def fresh_caches(monkeypatch: pytest.MonkeyPatch):
    """Grammars are loaded once for a process; these tests want them loaded again, before and after."""
    for cached in (languages._load, languages._from_pack, languages._has_pack):
        cached.cache_clear()
    yield monkeypatch
    for cached in (languages._load, languages._from_pack, languages._has_pack):
        cached.cache_clear()


def test_a_missing_grammar_is_a_warning_and_no_tree(
    fresh_caches: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fresh_caches.setitem(sys.modules, "tree_sitter_lua", None)
    language = language_for("lua")
    assert language is not None
    with caplog.at_level(logging.WARNING):
        assert parse(language, "x = 1") is None
        assert parse(language, "x = 2") is None
    assert len(caplog.records) == 1
    assert "tree_sitter_lua" in caplog.text


def test_a_grammar_that_does_not_fit_is_a_warning_and_no_tree(
    fresh_caches: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    module = types.ModuleType("tree_sitter_lua")
    module.language = lambda: "not a grammar"
    fresh_caches.setitem(sys.modules, "tree_sitter_lua", module)
    language = language_for("lua")
    assert language is not None
    assert not has_grammar(language)
    assert "tree_sitter_lua" in caplog.text


def test_the_language_pack_gives_trees_to_other_languages(fresh_caches: pytest.MonkeyPatch) -> None:
    python = languages.grammar_of(LANGUAGES[0])
    module = types.ModuleType("tree_sitter_language_pack")

    def get_language(name: str) -> object:
        if name != "swift":
            raise LookupError(name)
        return python  # any grammar will do: what counts is that it is used

    module.get_language = get_language
    module.__spec__ = types.SimpleNamespace(name="tree_sitter_language_pack")
    fresh_caches.setitem(sys.modules, "tree_sitter_language_pack", module)
    language = language_for("swift", "file:///a.swift")
    assert language is not None
    tree = parse(language, "x = 1\n")
    assert tree is not None
    assert not tree.has_errors
    assert tree.outline() == Outline()
    assert language_for("cobol") is None

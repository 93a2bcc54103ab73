"""The languages the project knows: their names, comments and grammars.

Grammars are native modules; each is loaded when its language is first parsed, and one that is missing or was
built for another tree-sitter is a logged warning and a language without a tree.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import tree_sitter

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DocStyle:
    """How a language writes documentation: `open`, then lines that each begin with `line`, then `close`.

    `open` and `close` are empty where the lines stand for themselves. `inside` says that the documentation is
    the first statement of the body (Python) instead of a comment above.
    """

    line: str
    open: str = ""
    close: str = ""
    inside: bool = False


_DOCSTRING = DocStyle(line="", open='"""', close='"""', inside=True)
_JAVADOC = DocStyle(line=" * ", open="/**", close=" */")
_TRIPLE_SLASH = DocStyle(line="/// ")
_DOXYGEN = DocStyle(line=" * ", open="/**", close=" */")
_SLASHES = DocStyle(line="// ")
_HASHES = DocStyle(line="# ")
_DASHES = DocStyle(line="--- ")


@dataclass(frozen=True, slots=True)
class Language:
    """One language. `id` is LSP's language id, and the name of the language's query file if it has one."""

    id: str
    name: str
    """For people: "C++"."""
    grammar: str
    """Python module and function that hand out the grammar, `module:function`; a `pack:name` is looked up in
    the optional language pack."""
    line_comment: str
    block_comment: tuple[str, str] | None
    doc: DocStyle
    extensions: tuple[str, ...]
    aliases: tuple[str, ...] = ()
    """Other ids: those that editors give to files of this language."""
    query: str = ""
    """The query file, without its suffix; empty where there is none (a tree, but no outline)."""
    indent_blocks: bool = False
    """Whether indentation, not brackets or keywords, ends a block."""


_C_BLOCK = ("/*", "*/")

LANGUAGES: tuple[Language, ...] = (
    Language(
        "python",
        "Python",
        "tree_sitter_python:language",
        "#",
        None,
        _DOCSTRING,
        (".py", ".pyi", ".pyw"),
        query="python",
        indent_blocks=True,
    ),
    Language(
        "javascript",
        "JavaScript",
        "tree_sitter_javascript:language",
        "//",
        _C_BLOCK,
        _JAVADOC,
        (".js", ".mjs", ".cjs", ".jsx"),
        ("javascriptreact", "javascript.jsx", "jsx"),
        query="javascript",
    ),
    Language(
        "typescript",
        "TypeScript",
        "tree_sitter_typescript:language_typescript",
        "//",
        _C_BLOCK,
        _JAVADOC,
        (".ts", ".mts", ".cts"),
        query="typescript",
    ),
    Language(
        "typescriptreact",
        "TSX",
        "tree_sitter_typescript:language_tsx",
        "//",
        _C_BLOCK,
        _JAVADOC,
        (".tsx",),
        ("typescript.tsx", "tsx"),
        query="typescript",
    ),
    Language(
        "go", "Go", "tree_sitter_go:language", "//", _C_BLOCK, _SLASHES, (".go",), ("golang",), query="go"
    ),
    Language(
        "rust", "Rust", "tree_sitter_rust:language", "//", _C_BLOCK, _TRIPLE_SLASH, (".rs",), query="rust"
    ),
    Language("java", "Java", "tree_sitter_java:language", "//", _C_BLOCK, _JAVADOC, (".java",), query="java"),
    Language("c", "C", "tree_sitter_c:language", "//", _C_BLOCK, _DOXYGEN, (".c", ".h"), query="c"),
    Language(
        "cpp",
        "C++",
        "tree_sitter_cpp:language",
        "//",
        _C_BLOCK,
        _DOXYGEN,
        (".cc", ".cpp", ".cxx", ".c++", ".hh", ".hpp", ".hxx", ".h++", ".ipp"),
        ("c++", "cuda-cpp"),
        query="cpp",
    ),
    Language(
        "csharp",
        "C#",
        "tree_sitter_c_sharp:language",
        "//",
        _C_BLOCK,
        _TRIPLE_SLASH,
        (".cs", ".csx"),
        ("cs", "c#"),
        query="csharp",
    ),
    Language(
        "ruby",
        "Ruby",
        "tree_sitter_ruby:language",
        "#",
        None,
        _HASHES,
        (".rb", ".rake", ".gemspec"),
        query="ruby",
    ),
    Language(
        "php",
        "PHP",
        "tree_sitter_php:language_php",
        "//",
        _C_BLOCK,
        _JAVADOC,
        (".php", ".phtml"),
        query="php",
    ),
    Language(
        "shellscript",
        "Bash",
        "tree_sitter_bash:language",
        "#",
        None,
        _HASHES,
        (".sh", ".bash"),
        ("sh", "bash", "shell"),
        query="bash",
    ),
    Language("lua", "Lua", "tree_sitter_lua:language", "--", ("--[[", "]]"), _DASHES, (".lua",), query="lua"),
    Language(
        "kotlin",
        "Kotlin",
        "tree_sitter_kotlin:language",
        "//",
        _C_BLOCK,
        _JAVADOC,
        (".kt", ".kts"),
        query="kotlin",
    ),
)

_BY_ID = {name: language for language in LANGUAGES for name in (language.id, *language.aliases)}
_BY_EXTENSION = {extension: language for language in LANGUAGES for extension in language.extensions}
# Ids that mean "the editor does not know", so that the file's name decides.
_UNKNOWN_IDS = frozenset({"", "plaintext", "text", "plain"})


def language_for(language_id: str, uri_or_path: str = "") -> Language | None:
    """The language of an LSP language id (or editor's file type), else of the file's extension, else None."""
    wanted = language_id.strip().lower()
    known = _BY_ID.get(wanted)
    if known is not None:
        return known
    if wanted not in _UNKNOWN_IDS:
        packed = _from_pack(wanted)
        if packed is not None:
            return packed
    return _BY_EXTENSION.get(_extension(uri_or_path))


def grammar_of(language: Language) -> tree_sitter.Language | None:
    """The loaded grammar, or None (with one logged warning) where it is missing or does not fit."""
    return _load(language.grammar)


def has_grammar(language: Language) -> bool:
    """Whether texts of `language` can be parsed on this machine."""
    return grammar_of(language) is not None


def _extension(uri_or_path: str) -> str:
    # A query or fragment (`git:/a.py?{...}`) is cut off first; a local path with such a character in its last
    # part only loses its language, which the id normally gives anyway.
    name = uri_or_path.split("?", 1)[0].split("#", 1)[0].replace("\\", "/").rsplit("/", 1)[-1]
    stem, dot, extension = name.rpartition(".")
    return (dot + extension).lower() if stem else ""


@cache
def _load(grammar: str) -> tree_sitter.Language | None:
    source, _, name = grammar.partition(":")
    try:
        if source == "pack":
            pack: Any = importlib.import_module("tree_sitter_language_pack")
            return cast("tree_sitter.Language", pack.get_language(name))
        capsule: object = getattr(importlib.import_module(source), name)()
        return tree_sitter.Language(capsule)
    except (ImportError, AttributeError, LookupError, OSError, TypeError, ValueError) as error:
        # ValueError is what py-tree-sitter raises for an ABI it does not support.
        _log.warning("no grammar for %s: %s: %s", grammar, type(error).__name__, error)
        return None


@cache
def _from_pack(language_id: str) -> Language | None:
    """A language that only the optional pack knows: it gets a tree, and line-based everything else."""
    if not language_id.isidentifier() or not _has_pack():
        return None
    grammar = f"pack:{language_id}"
    if _load(grammar) is None:
        return None
    return Language(language_id, language_id.capitalize(), grammar, "", None, _HASHES, ())


@cache
def _has_pack() -> bool:
    return importlib.util.find_spec("tree_sitter_language_pack") is not None

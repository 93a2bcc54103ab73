"""One fixture a language, and beside it, readable, what is to be known of it (`<fixture>.outline`).

The Python one ends in `.txt`, since formatters and linters would mend what it is there for.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from nexo_lsp.syntax.languages import LANGUAGES, Language, language_for
from nexo_lsp.syntax.outline import Outline, Symbol, SymbolKind
from nexo_lsp.syntax.parsing import SyntaxTree, parse
from nexo_lsp.text import Span

FIXTURES = Path(__file__).parent / "fixtures"
SOURCES = sorted(path for path in FIXTURES.iterdir() if path.suffix != ".outline")


def tree_of(path: Path) -> SyntaxTree:
    language = language_for("", path.name.removesuffix(".txt"))
    assert language is not None
    tree = parse(language, path.read_text(encoding="utf-8"))
    assert tree is not None
    return tree


def parsed(language_id: str, text: str) -> SyntaxTree:
    language = language_for(language_id)
    assert language is not None
    tree = parse(language, text)
    assert tree is not None
    return tree


def described(text: str, outline: Outline) -> str:
    """An outline as lines of text: symbols with their marks, then imports, calls and comments."""

    def cut(span: Span) -> str:
        return repr(text[span.start : span.end])

    def symbol_lines(symbol: Symbol) -> list[str]:
        names = [symbol.name]
        above = outline.parent_of(symbol)
        while above is not None:
            names.insert(0, above.name)
            above = outline.parent_of(above)
        lines = [f"{symbol.kind} {'.'.join(names)}{' (stub)' if symbol.stub else ''}"]
        lines.append(f"    signature {symbol.signature!r}")
        if not text[symbol.span.start :].startswith(symbol.signature):
            lines.append(f"    starts with {text[symbol.span.start :].splitlines()[0]!r}")
        if symbol.doc is not None and symbol.doc_span is not None:
            lines.append(f"    doc {symbol.doc!r}")
            lines.append(f"    written {cut(symbol.doc_span)}")
        if symbol.kind is not SymbolKind.CLASS:
            lines.append(f"    body {cut(symbol.body) if symbol.body else None}")
        return lines

    lines = [line for symbol in outline.symbols for line in symbol_lines(symbol)]
    lines += [f"import {cut(span)}" for span in outline.imports]
    lines += [f"comment {cut(span)}" for span in outline.comments]
    lines.append("calls " + " ".join(call.name for call in outline.calls))
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_the_outline_of_each_language(path: Path) -> None:
    tree = tree_of(path)
    wanted = path.with_name(path.name + ".outline").read_text(encoding="utf-8")
    assert described(tree.text, tree.outline()) == wanted


def test_every_language_has_a_fixture_that_parses() -> None:
    trees = [tree_of(path) for path in SOURCES]
    assert {tree.language.id for tree in trees} == {language.id for language in LANGUAGES}
    assert [tree.error_count() for tree in trees] == [0] * len(trees)


@pytest.mark.parametrize("language", LANGUAGES, ids=lambda language: language.id)
def test_a_text_of_nothing_has_an_empty_outline(language: Language) -> None:
    tree = parse(language, "")
    assert tree is not None
    assert tree.outline() == Outline()
    assert tree.error_count() == 0


def test_offsets_are_code_points_also_behind_characters_of_many_bytes() -> None:
    head = "# 😀 漢字 é \u2028 \x0c\n" * 400
    tree = parsed("python", head + "def größe():\n    return f('😀').ende()\n")
    (symbol,) = tree.outline().symbols
    assert tree.text[symbol.span.start : symbol.span.end] == "def größe():\n    return f('😀').ende()"
    assert symbol.name == "größe"
    assert [tree.text[c.span.start : c.span.end] for c in tree.outline().calls] == ["f", "ende"]
    assert tree.outline().comments == (Span(0, len(head) - 1),)


def test_lone_surrogates_and_nul_keep_offsets_right() -> None:
    tree = parsed("javascript", "const a = '\ud83d\x00';\nfunction f() {}\n")
    (symbol,) = tree.outline().symbols
    assert tree.text[symbol.name_span.start : symbol.name_span.end] == "f"


def test_definitions_before_a_syntax_error_are_still_found() -> None:
    outline = parsed("python", "def a(): pass\n\ndef b(x):\n    return (x\n\nclass C:\n").outline()
    assert "a" in [symbol.name for symbol in outline.symbols]


def test_a_large_definition_is_searched_in_pieces_with_the_same_answer() -> None:
    methods = "".join(
        f"    def m{n}(self):\n        # c{n}\n        return call{n}(1)\n\n" for n in range(3000)
    )
    outline = parsed("python", f"class Large:\n{methods}").outline()
    assert [symbol.name for symbol in outline.symbols] == ["Large", *(f"m{n}" for n in range(3000))]
    assert {symbol.parent for symbol in outline.symbols[1:]} == {0}
    assert [call.name for call in outline.calls] == [f"call{n}" for n in range(3000)]
    assert len(outline.comments) == 3000


def test_enclosing_is_the_innermost_and_can_be_asked_for_a_kind() -> None:
    text = "class A:\n    def f(self):\n        def g():\n            return 1\n        return g\n"
    outline = parsed("python", text).outline()
    at = text.index("return 1")
    names = [outline.enclosing(at), outline.enclosing(at, SymbolKind.METHOD, SymbolKind.CLASS)]
    assert [symbol.name for symbol in names if symbol] == ["g", "f"]
    assert [symbol.name for symbol in outline.functions()] == ["f"]


STUBS = [
    ("python", "def f():\n    {}\n", ["pass", "...", "raise NotImplementedError", "'''Doc.'''\n    pass"]),
    ("rust", "fn f() {{ {} }}", ["", "todo!()", 'unimplemented!("x");', "// TODO: x\n", 'panic!("todo")']),
    ("go", "package p\nfunc f() {{ {} }}", ["", 'panic("not implemented")', "// implement me\n"]),
    (
        "java",
        "class A {{ void f() {{ {} }} }}",
        ["", "throw new UnsupportedOperationException();", "// TODO\n"],
    ),
    ("kotlin", "fun f() {{ {} }}", ["", "TODO()", 'TODO("x")', "throw NotImplementedError()"]),
    ("csharp", "class A {{ void F() {{ {} }} }}", ["", "throw new System.NotImplementedException();"]),
    ("javascript", "function f() {{ {} }}", ["", "throw new Error('Not yet implemented');", "/* TODO */"]),
    ("cpp", "int f() {{ {} }}", ["", 'throw std::runtime_error("not implemented");']),
    ("ruby", "def f\n{}\nend", ["", "raise NotImplementedError", "raise 'not implemented'", "# TODO"]),
    ("php", "<?php function f() {{ {} }}", ["", "throw new \\RuntimeException('Not implemented');"]),
    ("shellscript", "f() {{\n{}\n}}", [":", "# TODO\n:", "true"]),
    ("lua", "function f()\n{}\nend", ["", "-- TODO", "error('not implemented')"]),
]
WORK = [
    ("python", "def f():\n    {}\n", ["return None", "pass; g()", "raise ValueError", "x = ...", "yield"]),
    ("rust", "fn f() {{ {} }}", ["1", "let x = todo!(); use_it(x)", 'panic!("wrong input")']),
    ("go", "package p\nfunc f() {{ {} }}", ['panic("out of range")', "// nothing to do\n", "return"]),
    ("javascript", "function f() {{ {} }}", ["throw new Error('no such key')", "return", "/* unused */"]),
    ("ruby", "def f\n{}\nend", ["nil", "raise ArgumentError", "# Nothing to do."]),
    ("lua", "function f()\n{}\nend", ["return true", "error('no')"]),
    ("c", "void f(void) {{ {} }}", ["return;", "assert(x);", "exit(1);"]),
]


@pytest.mark.parametrize(
    ("language_id", "template", "body"),
    [(language, template, body) for language, template, bodies in STUBS for body in bodies],
)
def test_stubs_are_known(language_id: str, template: str, body: str) -> None:
    (symbol,) = [s for s in parsed(language_id, template.format(body)).outline().symbols if s.name in "fF"]
    assert symbol.stub


@pytest.mark.parametrize(
    ("language_id", "template", "body"),
    [(language, template, body) for language, template, bodies in WORK for body in bodies],
)
def test_real_bodies_are_no_stubs(language_id: str, template: str, body: str) -> None:
    (symbol,) = parsed(language_id, template.format(body)).outline().symbols
    assert not symbol.stub

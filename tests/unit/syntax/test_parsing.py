"""Trees: what stands at a place, errors, and incremental parses."""

from __future__ import annotations

import pytest

from nexo_lsp.syntax.languages import language_for
from nexo_lsp.syntax.outline import CodeKind
from nexo_lsp.syntax.parsing import SyntaxTree, parse
from nexo_lsp.text import Edit, Span


def tree_of(language_id: str, text: str) -> SyntaxTree:
    language = language_for(language_id)
    assert language is not None
    tree = parse(language, text)
    assert tree is not None
    return tree


def marked(text: str) -> tuple[str, int]:
    """A text without its `‸`, and where that stood."""
    return text.replace("‸", ""), text.index("‸")


@pytest.mark.parametrize(
    ("language_id", "text", "kind"),
    [
        ("python", "x = 1 # no‸te\n", CodeKind.COMMENT),
        ("python", "x = 1 # note‸\n", CodeKind.COMMENT),
        ("python", "x = 1 # note‸", CodeKind.COMMENT),
        ("python", "x = 1 ‸# note\n", CodeKind.CODE),
        ("python", "x = 'é‸'", CodeKind.STRING),
        ("python", "x = ‸'é'", CodeKind.CODE),
        ("python", "x = 'é'‸", CodeKind.CODE),
        ("python", "x = f'a{b‸c}'", CodeKind.CODE),
        ("python", "x = f'a‸{bc}'", CodeKind.STRING),
        ("python", "def f():\n    '''Do‸c.'''\n", CodeKind.STRING),
        ("python", "‸", CodeKind.CODE),
        ("javascript", "a /* no‸te */ b", CodeKind.COMMENT),
        ("javascript", "a /* note */‸ b", CodeKind.CODE),
        ("javascript", "x = `a${b‸c}`", CodeKind.CODE),
        ("javascript", "x = `a‸b${c}`", CodeKind.STRING),
        ("go", "package p\n// no‸te\n", CodeKind.COMMENT),
        ("go", "package p\nvar x = `r‸aw`\n", CodeKind.STRING),
        ("rust", "/// do‸c\nfn f() {}\n", CodeKind.COMMENT),
        ("rust", "/// doc\n‸fn f() {}\n", CodeKind.CODE),
        ("rust", 'fn f() { let a = "é‸"; }', CodeKind.STRING),
        ("java", 'class A { String s = "a‸b"; }', CodeKind.STRING),
        ("c", 'char *s = "a‸b";', CodeKind.STRING),
        ("cpp", "char c = '‸x';", CodeKind.STRING),
        ("cpp", 'auto s = R"(a‸b)";', CodeKind.STRING),
        ("csharp", 'class A { string s = $"a‸b{c}"; }', CodeKind.STRING),
        ("csharp", 'class A { string s = $"ab{c‸d}"; }', CodeKind.CODE),
        ("ruby", 'x = "a#{b‸c}"', CodeKind.CODE),
        ("ruby", 'x = "a‸#{bc}"', CodeKind.STRING),
        ("php", "<?php $x = 'a‸b';", CodeKind.STRING),
        ("shellscript", 'echo "a‸b"', CodeKind.STRING),
        ("shellscript", 'echo "$(wh‸oami)"', CodeKind.CODE),
        ("lua", "x = [[a‸b]]", CodeKind.STRING),
        ("lua", "--[[ a‸b ]]", CodeKind.COMMENT),
        ("kotlin", 'val s = "a‸b"', CodeKind.STRING),
        ("kotlin", 'val s = "a${b‸c}"', CodeKind.CODE),
    ],
)
def test_what_stands_at_a_place(language_id: str, text: str, kind: CodeKind) -> None:
    plain, offset = marked(text)
    assert tree_of(language_id, plain).code_kind_at(offset) is kind


@pytest.mark.parametrize(
    ("language_id", "text", "count"),
    [
        ("python", "x = 1\n", 0),
        ("javascript", "f(1", 1),  # a bracket made up
        ("javascript", "function f() { return 1 }", 0),
        ("c", "int main( {", 1),
    ],
)
def test_errors_are_counted(language_id: str, text: str, count: int) -> None:
    tree = tree_of(language_id, text)
    assert min(tree.error_count(), 1) == count
    assert tree.has_errors is bool(count)


def test_more_breakage_counts_more() -> None:
    one = tree_of("javascript", "function f() { ) }\nfunction g() { }\n")
    two = tree_of("javascript", "function f() { ) }\nfunction g() { ) }\n")
    assert 0 < one.error_count() < two.error_count()


def test_an_edited_tree_is_what_a_fresh_parse_gives() -> None:
    text = "# é😀\r\rdef f(a):\r\n    return a\n\n\ndef g():\n    return f(1)\n"
    tree = tree_of("python", text)
    start = text.index("return f")
    edit = Edit(Span(start, start), "größe = '\u2028'\n    ")
    after = text[:start] + edit.text + text[start:]
    parsed = parse(tree.language, after, tree.edited(edit))
    assert parsed is not None
    assert parsed.sexp() == tree_of("python", after).sexp()
    assert parsed.outline() == tree_of("python", after).outline()
    # The tree that was edited still answers for its own text.
    assert tree.sexp() == tree_of("python", text).sexp()
    assert tree.code_kind_at(3) is CodeKind.COMMENT


def test_a_parse_for_a_thread_gives_the_same_tree() -> None:
    text = "def f():\n    return '漢字😀'\n" * 5_000
    language = language_for("python")
    assert language is not None
    here, there = parse(language, text), parse(language, text, in_thread=True)
    assert here is not None
    assert there is not None
    assert there.sexp() == here.sexp()


def test_deep_nesting_is_survived() -> None:
    tree = tree_of("javascript", "(" * 20_000)
    assert tree.has_errors
    assert tree.error_count() > 0
    assert tree.outline().symbols == ()

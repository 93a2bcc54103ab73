"""What the prefix cache is built from: the tree of token sequences, and the account of shared cells."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from nexo_lsp.engines.llama import radix
from nexo_lsp.engines.llama.cells import Cells
from nexo_lsp.engines.llama.leases import common_prefix
from nexo_lsp.engines.llama.radix import RadixTree

from .fake_memory import FakeMemory


def test_a_tree_finds_the_longest_beginning_and_all_that_share_it() -> None:
    tree: RadixTree[str] = RadixTree()
    for word in ("review", "revise", "rev", "hover"):
        tree.add(radix.pack(list(map(ord, word))), word)
    length, node = tree.find(radix.pack(list(map(ord, "revolt"))))
    assert length == 3
    assert sorted(tree.below(node)) == ["rev", "review", "revise"]
    length, node = tree.find(radix.pack(list(map(ord, "reviews"))))
    assert (length, list(tree.below(node))) == (6, ["review"])
    assert tree.above(node) == ["rev"]
    assert tree.find(radix.pack([1]))[0] == 0


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), max_size=20), st.data())
def test_a_tree_equals_a_list_of_sequences(words: list[list[int]], data: st.DataObject) -> None:
    tree: RadixTree[int] = RadixTree()
    nodes = {index: tree.add(radix.pack(word), index) for index, word in enumerate(words)}
    for index in data.draw(st.permutations(sorted(nodes))):
        if data.draw(st.booleans()):
            tree.remove(nodes.pop(index), index)
        wanted = data.draw(st.lists(st.integers(0, 2), max_size=14))
        length, node = tree.find(radix.pack(wanted))
        best = max((common_prefix(words[other], wanted) for other in nodes), default=0)
        assert length == best
        assert set(tree.below(node)) == {i for i in nodes if words[i][:best] == wanted[:best]}
        for other, place in nodes.items():
            assert list(radix.unpack(tree.key(place))) == words[other]
            assert set(tree.above(place)) == {
                i
                for i in nodes
                if len(words[i]) < len(words[other]) and words[other][: len(words[i])] == words[i]
            }


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 1), max_size=600), st.lists(st.integers(0, 1), max_size=600), st.integers(0, 600)
)
def test_two_ways_to_compare_agree(left: list[int], right: list[int], same: int) -> None:
    right = left[:same] + right
    equal = next(
        (i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right))
    )
    assert radix.shared(radix.pack(left), radix.pack(right)) == equal
    assert common_prefix(left, tuple(right)) == equal


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 9)), max_size=60))
def test_cells_are_counted_as_a_context_counts_them(steps: list[tuple[int, int, int]]) -> None:
    cells, memory = Cells(), FakeMemory(4)
    for one, other, length in steps:
        present = len(memory.cells[one])
        if one != other and not memory.cells[other] and 0 < length <= present:
            memory.copy(one, other, length)
            cells.share(one, other, length)
        else:
            memory.truncate(one, length)
            memory.evaluate(one, [0] * max(0, length - present), min(present, length))
            cells.set(one, length)
        assert cells.total() == memory.used
        assert [cells.length(sequence) for sequence in range(4)] == [len(of) for of in memory.cells]
        rest = {cell for sequence in range(4) if sequence != one for cell, _token in memory.cells[sequence]}
        assert cells.only(one) == memory.used - len(rest)

"""A radix tree over token sequences: what begins like this prompt, found in one walk.

Tokens are packed into bytes, four a token, so that comparing stretches of thousands is one `memcmp`.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

_T = TypeVar("_T")

TOKEN_BYTES = array("i").itemsize


def pack(tokens: Sequence[int]) -> bytes:
    """The key of `tokens`: each as a C int, in the machine's byte order."""
    return array("i", tokens).tobytes()


def unpack(key: bytes) -> array[int]:
    """The tokens of a key."""
    return array("i", key)


def length_of(key: bytes) -> int:
    """How many tokens a key has."""
    return len(key) // TOKEN_BYTES


def first(key: bytes, tokens: int) -> bytes:
    """The key of the first `tokens` tokens."""
    return key[: tokens * TOKEN_BYTES]


def shared(a: bytes, b: bytes) -> int:
    """How many tokens both keys begin with."""
    size = min(len(a), len(b))
    if a[:size] == b[:size]:
        return length_of(a[:size])
    equal, differs = 0, size // TOKEN_BYTES
    # The first `equal` tokens are the same, the first `differs` are not.
    while differs - equal > 1:
        middle = (equal + differs) // 2
        stretch = slice(equal * TOKEN_BYTES, middle * TOKEN_BYTES)
        if a[stretch] == b[stretch]:
            equal = middle
        else:
            differs = middle
    return equal


class Node(Generic[_T]):
    """A stretch of tokens that some sequences have in common, and the values of those that end with it."""

    __slots__ = ("children", "parent", "segment", "stop", "values")

    def __init__(self, segment: bytes, stop: int, parent: Node[_T] | None) -> None:
        self.segment = segment
        self.stop = stop
        """How many tokens there are from the root to the end of the segment."""
        self.parent = parent
        self.children: dict[bytes, Node[_T]] = {}
        """By the first token of their segments, which differ."""
        self.values: list[_T] = []


class RadixTree(Generic[_T]):
    """Token sequences with a value each; a common beginning is stored once.

    Every node but the root has a value somewhere below or at it: what is removed leaves nothing behind.
    """

    def __init__(self) -> None:
        self._root: Node[_T] = Node(b"", 0, None)

    def add(self, key: bytes, value: _T) -> Node[_T]:
        """Put a sequence in; its node stays valid until `remove`."""
        length, node = self.find(key)
        if length < node.stop:
            node = self._split(node, length)
        if length < length_of(key):
            rest = key[length * TOKEN_BYTES :]
            child = Node(rest, length_of(key), node)
            node.children[first(rest, 1)] = child
            node = child
        node.values.append(value)
        return node

    def remove(self, node: Node[_T], value: _T) -> None:
        """Take out what `add` put at `node`."""
        node.values.remove(value)
        while node.parent is not None and not node.values and not node.children:
            del node.parent.children[first(node.segment, 1)]
            node = node.parent
        if node.parent is not None and not node.values and len(node.children) == 1:
            (child,) = node.children.values()
            node.parent.children[first(node.segment, 1)] = child
            child.segment = node.segment + child.segment
            child.parent = node.parent

    def find(self, key: bytes) -> tuple[int, Node[_T]]:
        """The longest beginning of `key` that is known, in tokens, and a node: all values below share it."""
        node, at = self._root, 0
        while True:
            start = at * TOKEN_BYTES
            child = node.children.get(key[start : start + TOKEN_BYTES])
            if child is None:
                return at, node
            at += shared(child.segment, key[start : start + len(child.segment)])
            if at < child.stop:
                return at, child
            node = child

    def key(self, node: Node[_T]) -> bytes:
        """The tokens from the root to `node`, packed."""
        parts: list[bytes] = []
        up: Node[_T] | None = node
        while up is not None:
            parts.append(up.segment)
            up = up.parent
        return b"".join(reversed(parts))

    def below(self, node: Node[_T]) -> Iterator[_T]:
        """The values at and below `node`: of the sequences that begin with its tokens."""
        stack = [node]
        while stack:
            node = stack.pop()
            yield from node.values
            stack.extend(node.children.values())

    def above(self, node: Node[_T]) -> list[_T]:
        """The values strictly above `node`: of the sequences that its tokens begin with."""
        values: list[_T] = []
        up = node.parent
        while up is not None:
            values += up.values
            up = up.parent
        return values

    def stop_above(self, node: Node[_T]) -> int:
        """How many tokens of a sequence that ends at `node`, alone and nothing longer, others have too."""
        return node.parent.stop if node.parent is not None else 0

    def _split(self, node: Node[_T], at: int) -> Node[_T]:
        """Cut the segment of `node` at `at` tokens from the root; the new node is the upper one."""
        parent = node.parent
        assert parent is not None  # noqa: S101 -- the root has no tokens to cut
        cut = (at - node.stop) * TOKEN_BYTES + len(node.segment)
        upper = Node(node.segment[:cut], at, parent)
        parent.children[first(node.segment, 1)] = upper
        node.segment = node.segment[cut:]
        node.parent = upper
        upper.children[first(node.segment, 1)] = node
        return upper

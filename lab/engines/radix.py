"""A token-level radix tree of cached prompts: what prefix-aware schedulers walk where Feather has its hash tree."""

from collections.abc import Sequence


class RadixNode:
    __slots__ = ("tokens", "children", "parent", "used")

    def __init__(self, tokens: list[int], parent: "RadixNode | None"):
        self.tokens = tokens  # the edge that leads here
        self.children: dict[int, RadixNode] = {}  # by the first token of their edge
        self.parent = parent
        self.used = 0  # when it was last matched or inserted


class RadixTree:
    """Prompts by their tokens, the least recently used leaves dropped above ``capacity`` tokens."""

    def __init__(self, capacity: int):
        self.root = RadixNode([], None)
        self.capacity = capacity
        self.size = 0
        self._clock = 0

    def match(self, tokens: Sequence[int]) -> tuple[int, RadixNode]:
        """Length of the longest cached prefix, and the node that ends there: an edge that it ends within is split."""
        self._clock += 1
        node, depth = self.root, 0
        while depth < len(tokens) and (child := node.children.get(tokens[depth])) is not None:
            shared = _common(child.tokens, tokens, depth)
            partial = shared < len(child.tokens)
            node = self._split(child, shared) if partial else child
            node.used = self._clock
            depth += shared
            if partial:
                break
        return depth, node

    def insert(self, tokens: Sequence[int]) -> None:
        self._clock += 1
        node, depth = self.root, 0
        while depth < len(tokens):
            child = node.children.get(tokens[depth])
            if child is None:
                child = node.children[tokens[depth]] = RadixNode(list(tokens[depth:]), node)
                self.size += len(child.tokens)
            shared = _common(child.tokens, tokens, depth)
            if shared < len(child.tokens):
                child = self._split(child, shared)
            child.used = self._clock
            node, depth = child, depth + shared
        if self.size > self.capacity:
            self._evict()

    def _split(self, node: RadixNode, at: int) -> RadixNode:
        upper = RadixNode(node.tokens[:at], node.parent)
        upper.used = node.used
        node.parent.children[node.tokens[0]] = upper
        node.tokens, node.parent = node.tokens[at:], upper
        upper.children[node.tokens[0]] = node
        return upper

    def _evict(self) -> None:
        leaves = [node for node in self.nodes() if not node.children]
        for leaf in sorted(leaves, key=lambda node: node.used):
            if self.size <= self.capacity:
                return
            del leaf.parent.children[leaf.tokens[0]]
            self.size -= len(leaf.tokens)

    def nodes(self) -> list[RadixNode]:
        """All nodes but the root, parents before their children."""
        found, frontier = [], list(self.root.children.values())
        while frontier:
            node = frontier.pop()
            found.append(node)
            frontier.extend(node.children.values())
        return found


def _common(edge: list[int], tokens: Sequence[int], start: int) -> int:
    """How many leading tokens of the edge stand in ``tokens`` from ``start`` on."""
    length = min(len(edge), len(tokens) - start)
    if edge[:length] == tokens[start : start + length]:
        return length
    return next(i for i in range(length) if edge[i] != tokens[start + i])

"""A radix tree over sequences: what prefix-aware schedulers walk where Feather has its hash tree, and how the modelled device tells
which rows share KV blocks."""

from collections.abc import Sequence


class RadixNode:
    __slots__ = ("edge", "parent", "children", "mark")

    def __init__(self, edge: Sequence, parent: "RadixNode | None", mark: int = 0):
        self.edge, self.parent = edge, parent
        self.children: dict = {}
        """by the first item of their edge"""
        self.mark = mark
        """whatever the tree's user notes on the node; where a node is split, both parts have it"""


class RadixTree:
    """``size`` is the number of items on all edges."""

    def __init__(self) -> None:
        self.root = RadixNode((), None)
        self.size = 0

    def walk(self, sequence: Sequence, grow: bool = False) -> list[RadixNode]:
        """The nodes that lead to the end of the longest prefix that is here, the root left out; an edge that it ends within is split.
        ``grow``: what is missing is added, and so the last node stands for the whole sequence."""
        node, depth, path = self.root, 0, []
        while depth < len(sequence):
            child = node.children.get(sequence[depth])
            if child is None:
                if grow:
                    path.append(self._add(node, list(sequence[depth:])))
                break
            shared = _common(child.edge, sequence, depth)
            partial = shared < len(child.edge)
            node = self._split(child, shared) if partial else child
            path.append(node)
            depth += shared
            if partial and not grow:
                break
        return path

    def remove(self, leaf: RadixNode) -> None:
        """Take out a node without children."""
        del leaf.parent.children[leaf.edge[0]]
        self.size -= len(leaf.edge)

    def nodes(self) -> list[RadixNode]:
        """All nodes but the root, parents before their children."""
        found, frontier = [], list(self.root.children.values())
        while frontier:
            node = frontier.pop()
            found.append(node)
            frontier.extend(node.children.values())
        return found

    def _add(self, parent: RadixNode, edge: list) -> RadixNode:
        parent.children[edge[0]] = node = RadixNode(edge, parent)
        self.size += len(edge)
        return node

    @staticmethod
    def _split(node: RadixNode, at: int) -> RadixNode:
        """A new node takes the first ``at`` items of this one's edge and becomes its parent."""
        upper = RadixNode(node.edge[:at], node.parent, node.mark)
        node.parent.children[node.edge[0]] = upper
        node.edge, node.parent = node.edge[at:], upper
        upper.children[node.edge[0]] = node
        return upper


def _common(edge: Sequence, sequence: Sequence, start: int) -> int:
    """How many leading items of the edge stand in ``sequence`` from ``start`` on."""
    length = min(len(edge), len(sequence) - start)
    if edge[:length] == sequence[start : start + length]:
        return length
    return next(place for place in range(length) if edge[place] != sequence[start + place])

"""The rows of a running batch: who sits where, and which stretches of the KV cache they share."""

from collections.abc import Collection, Iterable, Sequence

from lab.model.steptime import Batch


class Rows:
    """The order in which vLLM's V1 model runner keeps requests: a new one takes the lowest row that has become free, and
    what rows are still free are then filled from the end."""

    def __init__(self) -> None:
        self.ids: list[str] = []

    def update(self, scheduled: Collection[str]) -> tuple[list[str], list[str]]:
        """Bring the rows in line with the requests of a step. Returns who came and who left."""
        present = set(self.ids)
        free = [row for row, id_ in enumerate(self.ids) if id_ not in scheduled]
        left = [self.ids[row] for row in free]
        came = [id_ for id_ in scheduled if id_ not in present]
        for row, id_ in zip(free, came):
            self.ids[row] = id_
        self.ids += came[len(free) :]
        for row in free[len(came) :]:  # ascending: the lowest is filled from the end first
            while len(self.ids) > row and self.ids[-1] not in scheduled:
                self.ids.pop()
            if len(self.ids) > row:
                self.ids[row] = self.ids.pop()
        return came, left


class _Node:
    __slots__ = ("blocks", "parent", "children", "rows")

    def __init__(self, blocks: Sequence[int], parent: "_Node | None"):
        self.blocks, self.parent = blocks, parent
        self.children: dict[int, _Node] = {}
        self.rows = 0


class SharedBlocks:
    """Which leading KV blocks the rows have in common, as a radix tree of their block tables, kept up to date row by row.
    What is shared is told by the block ids of vLLM's own KV manager, so by what is really stored once."""

    def __init__(self, block_size: int):
        self.block_size = block_size
        self._root = _Node((), None)
        self._ends: dict[str, _Node] = {}

    def put(self, id_: str, blocks: Sequence[int]) -> None:
        """A row with these full blocks, in place of what was known of it."""
        if id_ in self._ends:
            self.remove(id_)
        node, start = self._root, 0
        while start < len(blocks):
            child = node.children.get(blocks[start])
            if child is None:
                child = node.children[blocks[start]] = _Node(blocks[start:], node)
            elif (length := _common(child.blocks, blocks, start)) < len(child.blocks):
                child = self._split(child, length)
            node, start = child, start + len(child.blocks)
        self._ends[id_] = node
        while node is not None:
            node.rows += 1
            node = node.parent

    def remove(self, id_: str) -> None:
        node = self._ends.pop(id_)
        while node.parent is not None:
            node.rows -= 1
            if not node.rows:
                del node.parent.children[node.blocks[0]]
            node = node.parent
        node.rows -= 1

    def batch(self, ids: Iterable[str], contexts: Sequence[int], new: Sequence[int] | None) -> Batch:
        """The rows as the step model takes them: a stretch is what at least two rows share."""
        places: dict[_Node, int] = {}
        members = []
        for id_ in ids:
            node = self._ends[id_]
            while node.rows < 2 and node.parent is not None:
                node = node.parent
            members.append(places.setdefault(node, len(places)))
        return Batch(contexts, members, [self._path(node) for node in places], new)

    def _path(self, node: _Node) -> list[tuple[int, int]]:
        path = []
        while node.parent is not None:
            path.append((node.blocks[0], len(node.blocks) * self.block_size))
            node = node.parent
        return path

    @staticmethod
    def _split(node: _Node, length: int) -> _Node:
        """A new node takes the first blocks of this one and becomes its parent."""
        upper = _Node(node.blocks[:length], node.parent)
        upper.rows = node.rows
        node.parent.children[node.blocks[0]] = upper
        node.blocks, node.parent = node.blocks[length:], upper
        upper.children[node.blocks[0]] = node
        return upper


def _common(edge: Sequence[int], blocks: Sequence[int], start: int) -> int:
    """How many leading blocks of the edge stand in ``blocks`` from ``start`` on."""
    length = min(len(edge), len(blocks) - start)
    if edge[:length] == blocks[start : start + length]:
        return length
    return next(place for place in range(length) if edge[place] != blocks[start + place])

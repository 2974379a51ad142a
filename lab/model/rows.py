"""The rows of a running batch: who sits where, and which stretches of the KV cache they share."""

from collections.abc import Collection, Iterable, Sequence

from lab.model.steptime import Batch
from lab.radix import RadixNode, RadixTree


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


class SharedBlocks:
    """Which leading KV blocks the rows have in common, as a radix tree of their block tables, kept up to date row by row.
    What is shared is told by the block ids of vLLM's own KV manager, so by what is really stored once."""

    def __init__(self, block_size: int):
        self.block_size = block_size
        self._tree = RadixTree()  # marks count the rows through a node
        self._ends: dict[str, RadixNode] = {}

    def put(self, id_: str, blocks: Sequence[int]) -> None:
        """A row with these full blocks, in place of what was known of it."""
        if id_ in self._ends:
            self.remove(id_)
        path = self._tree.walk(blocks, grow=True)
        for node in path:
            node.mark += 1
        self._ends[id_] = path[-1] if path else self._tree.root

    def remove(self, id_: str) -> None:
        node = self._ends.pop(id_)
        while node.parent is not None:
            node.mark -= 1
            if not node.mark:
                self._tree.remove(node)
            node = node.parent

    def by_prefix(self, ids: Iterable[str]) -> list[str]:
        """The rows as a depth-first walk through the tree lists them, so that rows of one prefix stand side by side, deeper levels too."""
        return sorted(ids, key=lambda id_: [key for key, _ in reversed(self._path(self._ends[id_]))])

    def batch(self, ids: Iterable[str], contexts: Sequence[int], new: Sequence[int] | None) -> Batch:
        """The rows as the step model takes them: a stretch is what at least two rows share."""
        places: dict[RadixNode, int] = {}
        members = []
        for id_ in ids:
            node = self._ends[id_]
            while node.mark < 2 and node.parent is not None:
                node = node.parent
            members.append(places.setdefault(node, len(places)))
        return Batch(contexts, members, [self._path(node) for node in places], new)

    def _path(self, node: RadixNode) -> list[tuple[int, int]]:
        path = []
        while node.parent is not None:
            path.append((node.edge[0], len(node.edge) * self.block_size))
            node = node.parent
        return path

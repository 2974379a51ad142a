"""A walk through the Chunked Hash Tree: a few requests, drawn after every operation."""

from collections.abc import Mapping

import matplotlib.pyplot as plt

from feather.cht import ChunkedHashTree
from feather.hashing import hash_tokens
from feather.request import Request
from lab.figures.tree import draw_tree

CHUNK = 4  # tokens


class Walk:
    """A tree of ``requests`` (name → text, in which every letter stands for a chunk of equal tokens), all of them waiting, and a figure with
    room for ``stages`` drawings of it, two in a row."""

    def __init__(self, requests: Mapping[str, str], stages: int = 4):
        self.tree = ChunkedHashTree()
        paths = {name: hash_tokens([ord(letter) for letter in text for _ in range(CHUNK)], CHUNK) for name, text in requests.items()}
        self._names = {hash_: text[depth] for name, text in requests.items() for depth, hash_ in enumerate(paths[name])}
        self._ends = {path[-1]: name for name, path in paths.items()}
        for name, path in paths.items():
            self.tree.insert(Request(name, path))
        rows = (stages + 1) // 2
        self.figure, places = plt.subplots(rows, 2, figsize=(12, 4.2 * rows), squeeze=False)
        plt.close(self.figure)  # shown when it is complete, not with the cell that begins it
        self._places = iter(places.flat)
        self.tips: list[tuple[str, int]] = []
        """operation → depth of the shared-prefix tip after it, in chunks"""

    def show(self, operation: str) -> None:
        """Draw the tree in the next place, under the name of what was just done to it."""
        draw_tree(self.tree, self._names, self._ends, operation, next(self._places))
        self.figure.tight_layout()
        self.tips.append((operation, self.tree.tip_depth))

    def finding(self) -> str:
        """What the drawings show, in a sentence."""
        return (
            "Who joins can shorten the prefix that a batch shares, who leaves can lengthen it again: "
            f"{', '.join(str(depth) for _, depth in self.tips)} chunks"
        )

    def found(self) -> str:
        """What was found, as Markdown: the tip after each operation."""
        rows = "\n".join(f"| {operation} | {depth} |" for operation, depth in self.tips)
        return f"| operation | chunks that all running requests share |\n|---|---|\n{rows}"

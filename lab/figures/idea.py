"""The picture of the idea: a tree of shared prefixes, and a homogeneous beside a mixed batch.

``python -m lab.figures.idea [FILE]`` writes it, to ``figures/idea.png`` unless told otherwise. Numbers in it come from the tree itself.
It shows a principle and measures nothing.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import seaborn as sns

from feather.cht import ChunkedHashTree
from feather.request import Request
from lab.figures.charts import style

FILE = Path(__file__).resolve().parents[2] / "figures" / "idea.png"

# A prefix has a colour, a hatch and a letter: any one of the three tells it from the others.
_PALETTE = sns.color_palette("colorblind")
_LOOKS = {"A": (_PALETTE[0], ""), "B": (_PALETTE[1], "///"), "C": (_PALETTE[2], "..."), "D": (_PALETTE[4], "xxx")}
_CHUNKS = 3  # of each prefix
_SIZE = 11  # points; the picture is 10 inches wide, so that this is 12 pixels where it is shown 800 wide


def draw_idea():
    """The whole picture, 10 × 5.6 inches. Returns the figure."""
    style()
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 5.6), gridspec_kw={"width_ratios": [1, 1.05], "wspace": 0.06})
    _draw_choice(left)
    _draw_batches(right)
    figure.subplots_adjust(left=0.01, right=0.99, top=0.99, bottom=0.01)
    return figure


def _tree(running: str, waiting: str = "") -> ChunkedHashTree:
    """Requests 1, 2, 3 … with the prefixes named by the letters: first those that run, then those that wait."""
    tree = ChunkedHashTree()
    for number, prefix in enumerate(running + waiting, 1):
        tree.insert(Request(number, [f"{prefix}{chunk}" for chunk in range(1, _CHUNKS + 1)]))
        if number <= len(running):
            tree.add_to_batch(number)
    return tree


def _draw_choice(axes) -> None:
    """Three requests of prefix A run; one of A and one of B wait."""
    tree = _tree("AAA", "AB")
    relative = tree.find_best()
    tree.remove(relative.request_id)
    stranger = tree.find_best()
    axes.set(xlim=(-0.3, 7.6), ylim=(-5.75, 1.35))
    axes.axis("off")
    axes.text(-0.2, 1.2, "The tree knows who shares what", fontsize=13, fontweight="bold", va="top")
    axes.text(-0.2, 0.78, "filled: in the working set, what running requests hold", fontsize=_SIZE, va="top", color="0.3")
    axes.plot(3.6, 0.05, "o", ms=9, color="0.5")
    axes.text(3.9, 0.05, "root", fontsize=_SIZE, va="center", color="0.3")
    columns = {"A": 1.8, "B": 5.6}
    for view in tree.nodes():
        prefix, depth = view.hash[0], int(view.hash[1:])
        x, y = columns[prefix], 0.05 - depth
        parent = (3.6, 0.05) if view.parent is None else (x, y + 1)
        axes.plot([parent[0], x], [parent[1], y], color="0.6", lw=1.5, zorder=0)
        if view.tip:
            axes.plot(x, y, "o", ms=34, mfc="none", mec="0.1", mew=2)
            axes.annotate(
                "tip: all that\nrun share it", (x, y), (-24, 24), textcoords="offset points", fontsize=_SIZE, ha="right", va="center"
            )
        axes.plot(x, y, "o", ms=26, mfc=_PALETTE[0] if view.active else "white", mec="0.3", mew=1.2)
        axes.text(x, y, view.hash, fontsize=_SIZE, ha="center", va="center", color="white" if view.active else "0.1", fontweight="bold")
    places = {1: 0.15, 2: 1.05, 3: 1.95, 4: 3.1, 5: 5.6}
    for number, x in places.items():
        prefix, runs = ("B" if number == stranger.request_id else "A"), number <= 3
        axes.plot([columns[prefix], x], [0.05 - _CHUNKS, -3.95], color="0.6", lw=1.5, ls="-" if runs else ":", zorder=0)
        box = {"boxstyle": "round,pad=0.35", "fc": _PALETTE[0] if runs else "white", "ec": "0.3", "ls": "-" if runs else ":"}
        axes.text(
            x, -3.95, f"{number}", fontsize=_SIZE, ha="center", va="center", bbox=box, color="white" if runs else "0.1", fontweight="bold"
        )
    axes.text(1.05, -4.45, "running", fontsize=_SIZE, ha="center", va="top")
    for found, x in ((relative, places[4]), (stranger, places[5])):
        loss = found.tip_before - found.tip_after
        axes.text(x, -4.45, f"waiting\nΔ = {loss}\n" + ("add" if not loss else "add, or stop?"), fontsize=_SIZE, ha="center", va="top")


def _draw_batches(axes) -> None:
    axes.set(xlim=(-0.3, 10.2), ylim=(-10.35, 2.5))
    axes.axis("off")
    axes.text(-0.2, 2.22, "A step reads the KV cache of every row", fontsize=13, fontweight="bold", va="top")
    below = _draw_batch(axes, "AAAA", 0.4, "Small and homogeneous")
    _draw_batch(axes, "ABCDABCD", below - 1.35, "Large and mixed")


def _draw_batch(axes, batch: str, top: float, name: str) -> float:
    """Rows of prefix chunks and each row's own tokens, downwards from ``top``. Returns where it ends."""
    tree = _tree(batch)
    distinct, all_chunks = len(tree.nodes()), _CHUNKS * len(batch)
    axes.text(-0.2, top + 0.18, f"{name}: {len(batch)} rows", fontsize=_SIZE, va="bottom", fontweight="bold")
    height = 0.72
    for number, prefix in enumerate(batch):
        y = top - height * (number + 1)
        colour, hatch = _LOOKS[prefix]
        for chunk in range(_CHUNKS):
            axes.add_patch(plt.Rectangle((1.5 * chunk, y), 1.42, 0.6, fc=colour, ec="white", hatch=hatch, lw=0))
            axes.text(1.5 * chunk + 0.71, y + 0.29, f"{prefix}{chunk + 1}", fontsize=_SIZE - 1, ha="center", va="center", fontweight="bold",
                      bbox={"boxstyle": "round,pad=0.08", "fc": "white", "ec": "none"})  # fmt: skip
        axes.add_patch(plt.Rectangle((1.5 * _CHUNKS, y), 0.6, 0.6, fc="0.85", ec="0.5", lw=0.8))
    middle = top - height * len(batch) / 2
    text = f"{all_chunks} chunks swept,\n{distinct} of them different\nhomogeneity {tree.homogeneity:.2f}"
    axes.text(5.75, middle, text, fontsize=_SIZE, va="center")
    return top - height * len(batch)


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else FILE
    draw_idea().savefig(target, dpi=160)
    print(target)

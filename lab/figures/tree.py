"""Pictures of the Chunked Hash Tree."""

from collections.abc import Hashable, Mapping

import matplotlib.pyplot as plt
import seaborn as sns

from feather.cht import ChunkedHashTree


def draw_tree(tree: ChunkedHashTree, names: Mapping, ends: Mapping, title: str, axes=None):
    """Draw the nodes: filled where they are in the working set, ringed where the shared-prefix tip is.

    ``names`` labels a node by its hash, ``ends`` gives the requests that end at it. Returns the axes.
    """
    axes = axes or plt.subplots(figsize=(6, 3.2))[1]
    views = tree.nodes()
    places = _layout(views)
    blue, orange = sns.color_palette("colorblind")[:2]
    axes.plot(*places[None], "o", ms=10, color="0.7")
    axes.annotate("root", places[None], (10, 0), textcoords="offset points", va="center", fontsize=9, color="0.4")
    for view in views:
        x, y = places[view.hash]
        axes.plot(*zip(places[view.parent], (x, y)), color="0.7", zorder=0)
        if view.tip:
            axes.plot(x, y, "o", ms=34, mfc="none", mec=orange, mew=3)
        axes.plot(x, y, "o", ms=25, mfc=blue if view.active else "white", mec=blue)
        axes.annotate(names[view.hash], (x, y), ha="center", va="center", fontsize=9, color="white" if view.active else "0.2")
        text = f"{view.active} active\n{view.waiting} waiting"
        axes.annotate(text, (x, y), (24 if view.tip else 19, 0), textcoords="offset points", va="center", fontsize=7.5, color="0.35")
        if view.hash in ends:
            axes.annotate(ends[view.hash], (x, y), (0, -30), textcoords="offset points", ha="center", fontsize=10, weight="bold")
    axes.set_title(title)
    axes.margins(0.25, 0.2)
    axes.axis("off")
    return axes


def _layout(views) -> dict[Hashable, tuple[float, float]]:
    """Leaves side by side, parents above the middle of their children."""
    children: dict[Hashable, list] = {None: []}
    for view in views:
        children.setdefault(view.parent, []).append(view.hash)
        children.setdefault(view.hash, [])
    places: dict[Hashable, tuple[float, float]] = {}
    column = 0

    def place(node: Hashable, depth: int) -> float:
        nonlocal column
        if children[node]:
            below = [place(child, depth + 1) for child in children[node]]
            x = (below[0] + below[-1]) / 2
        else:
            x, column = column, column + 1
        places[node] = (x, -depth)
        return x

    place(None, 0)
    return places

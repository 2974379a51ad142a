"""What a stopping policy decides: over all that it could be asked, and over what it was asked."""

from itertools import product

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch

STOP, ADD = "0.35", "#a6cee3"  # dark and light, in print too


def maps(table: pd.DataFrame):
    """Where each policy adds and where it stops: a row of panels for every w, a column for every policy, batch size and loss to scale.
    ``table``: columns policy, b (requests), Δ (chunks), w (requests) and add, as ``learning.decisions`` gives them."""
    policies, sharing = list(table["policy"].unique()), list(table["w"].unique())
    figure, places = plt.subplots(len(sharing), len(policies), figsize=(3 * len(policies) + 1.2, 2.1 * len(sharing) + 0.5),
                                  sharex=True, sharey=True, squeeze=False, layout="constrained")  # fmt: skip
    for (row, w), (column, policy) in product(enumerate(sharing), enumerate(policies)):
        axes, part = places[row][column], table[(table["w"] == w) & (table["policy"] == policy)]
        grid = part.pivot(index="Δ", columns="b", values="add").astype(float)
        axes.pcolormesh(
            _edges(grid.columns),
            _edges(grid.index),
            grid,
            cmap=ListedColormap([STOP, ADD]),
            vmin=0,
            vmax=1,
            edgecolors="white",
            linewidth=0.4,
        )
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.set_xticks([1, 4, 16, 64, 256], ["1", "4", "16", "64", "256"])
        axes.set_yticks([1, 2, 4, 8, 16], ["1", "2", "4", "8", "16"])
        axes.minorticks_off()
        axes.set(xlim=_edges(grid.columns)[[0, -1]], ylim=_edges(grid.index)[[0, -1]])
        axes.grid(False)
        if not row:
            axes.set_title(policy)
        if not column:
            axes.set_ylabel(f"w = {w}\nΔ, chunks")
        if row == len(sharing) - 1:
            axes.set_xlabel("b, requests")
    handles = [Patch(color=ADD, label="ADD"), Patch(color=STOP, label="STOP")]
    places[0][-1].legend(handles=handles, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure


def _edges(values) -> np.ndarray:
    """Where one value's cell ends and the next one's begins, on a logarithmic axis."""
    logs = np.log2(np.asarray(values, float))
    between = (logs[1:] + logs[:-1]) / 2
    return 2 ** np.concatenate([[2 * logs[0] - between[0]], between, [2 * logs[-1] - between[-1]]])


def asked(made: pd.DataFrame):
    """ADD's share by batch size and loss of prefix, in powers of two, where something could be lost; columns batch, loss, added."""
    costly = made[made["loss"] > 0]
    buckets = costly.assign(**{name: costly[name].map(lambda value: 2 ** (int(value).bit_length() - 1)) for name in ("batch", "loss")})
    counts = buckets.groupby(["batch", "loss"])["added"].agg(**{"share of ADD": "mean", "times": "size"}).reset_index()
    figure, axes = plt.subplots()
    sns.scatterplot(
        counts,
        x="batch",
        y="loss",
        hue="share of ADD",
        size="times",
        sizes=(30, 300),
        palette="vlag",
        hue_norm=(0, 1),
        edgecolor="0.3",
        ax=axes,
    )
    for one in counts.itertuples():
        axes.annotate(f"{one[3]:.0%}", (one.batch, one.loss), (0, 11), textcoords="offset points", ha="center", fontsize=8)
    axes.set(xlabel="requests in the batch (b), at least", ylabel="shared prefix at stake (Δ), chunks, at least")
    for name, scale, ticks, limits in (
        ("batch", axes.set_xscale, axes.set_xticks, axes.set_xlim),
        ("loss", axes.set_yscale, axes.set_yticks, axes.set_ylim),
    ):
        values = 2.0 ** np.arange(0, np.log2(counts[name].max()) + 1)
        scale("log", base=2)
        ticks(values, [f"{value:g}" for value in values])
        limits(0.7, 1.6 * values[-1])
    axes.minorticks_off()
    axes.legend(bbox_to_anchor=(1.02, 1), loc="upper left", frameon=False)
    return figure


def training(curves: dict[str, list[tuple[int, float]]]):
    """Mean reward of the episodes over the decisions trained for, one line a network; (decisions, reward) pairs."""
    figure, axes = plt.subplots()
    own = sns.color_palette("viridis", len(curves))
    for number, (name, curve) in enumerate(curves.items()):
        axes.plot(*zip(*curve), ("-", "--", "-.", ":")[number % 4], marker="osD^vPX"[number % 7], ms=4, color=own[number], label=name)
    axes.axhline(0, color="0.2", lw=1)
    axes.set(xlabel="decisions", ylabel="reward of an episode, batches' time saved")
    axes.set_yscale("symlog", linthresh=1)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure

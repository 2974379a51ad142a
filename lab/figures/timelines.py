"""Throughput over time, one panel a setting, and one step after the other."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from lab.figures.charts import in_order, looks, widths_of


def over_time(panels: Mapping[str, pd.DataFrame], x: str, xlabel: str, ylabel: str, stacked: bool = False, mark: float | None = None):
    """Medians over the seeds of the column "throughput" over ``x``, a line for each policy and a band for the range of the seeds; one panel for
    each table, named by its key, side by side or ``stacked``. ``mark``: where to draw a dashed line."""
    count = len(panels)
    shape, size = ((count, 1), (8.4, 3.2 * count)) if stacked else ((1, count), (4.6 * count + 2.4, 4.2))
    figure, places = plt.subplots(*shape, figsize=size, squeeze=False, sharey=not stacked, layout="constrained")
    names = in_order(pd.concat(panels.values())["policy"])
    told = places.flat[0 if stacked else -1]
    for axes, (panel, table) in zip(places.flat, panels.items()):
        sns.lineplot(table, x=x, y="throughput", hue="policy", style="policy", size="policy", size_order=names, sizes=widths_of(names), estimator="median",
                     errorbar=("pi", 100), markersize=7, markeredgewidth=0.4, markevery=max(1, table[x].nunique() // 15), legend=axes is told, ax=axes,
                     **looks(names))  # fmt: skip
        if mark is not None:
            axes.axvline(mark, color="0.4", ls="--", lw=1)
        axes.set(title=panel, xlabel=xlabel, ylabel=ylabel)
    highest = [table.groupby(["policy", x])["throughput"].max().max() for table in panels.values()]
    for axes, most in zip(places.flat, highest if stacked else [max(highest)] * count):
        axes.set_ylim(0, 1.06 * most)
        if mark is None:
            axes.set_xlim(left=0)
    sns.move_legend(told, "upper left", bbox_to_anchor=(1, 1), title=None, frameon=False)
    return figure


def steps(table: pd.DataFrame):
    """Throughput of the steps that only decode, a dot each, over seconds; shaded where a policy that stops drove (not ``fills``)."""
    figure, axes = plt.subplots(figsize=(9, 3.6))
    decode = table[table["prefill"] == 0]
    axes.plot(decode["t"], decode["throughput"], ".", markersize=3, color="0.2")
    for _, stretch in table.groupby((table["fills"] != table["fills"].shift()).cumsum()):
        if not stretch["fills"].iloc[0]:
            axes.axvspan(stretch["t"].iloc[0], stretch["t"].iloc[-1], color="0.8", zorder=0)
    axes.set(xlabel="seconds since the first step", ylabel="decode throughput, tok/s", xlim=(0, table["t"].iloc[-1]))
    axes.set_ylim(bottom=0)
    handles = [
        Line2D([], [], marker=".", ls="", color="0.2", label="a step without prefill"),
        Patch(color="0.8", label="the stopping policy drove"),
    ]
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure

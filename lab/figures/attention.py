"""Figures of the decode-attention study: time over who shares what, kernels side by side, and the fit."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.ticker import LogLocator, NullFormatter

from lab.figures.charts import of_metric, to_scale
from lab.model.bandwidth import Fit

ORDERS = ("grouped", "shuffled", "round-robin")
COLOURS = dict(zip(ORDERS, sns.color_palette("viridis", len(ORDERS))))  # not those of the policies


def _attention(table: pd.DataFrame, heads: str) -> pd.DataFrame:
    return of_metric(table, "attention time").query("heads == @heads")


def locality(table: pd.DataFrame, heads: str):
    """Paged attention's time over the number of groups and over the number of divergent rows, one line a row order, between two
    bounds by the copy bandwidth: every prefix from memory once, and every row's tokens from memory."""
    data = _attention(table, heads).query("policy == 'paged'")
    copy = of_metric(table, "copy bandwidth").query("heads == @heads")["value"].median()
    figure, places = plt.subplots(1, 2, figsize=(11.2, 4.2), sharey=True, layout="constrained")
    homogeneous = data.query("curve == 'groups' and groups == 1").assign(divergent=0)
    panels = {
        "groups": (data.query("curve == 'groups'"), "prefix groups, even", "prefix groups"),
        "divergent": (pd.concat([homogeneous, data.query("curve == 'divergent'")]), "two prefixes, uneven", "rows on the second prefix"),
    }
    for axes, (x, (rows, panel, xlabel)) in zip(places, panels.items()):
        rows = _in_every_order(rows, x).assign(**{x: lambda part: part[x].astype(float)})
        sns.lineplot(rows, x=x, y="value", hue="order", style="order", hue_order=ORDERS, style_order=ORDERS, palette=COLOURS,
                     markers=True, dashes=True, estimator="median", errorbar=("ci", 95), err_style="bars", ax=axes, legend=axes is places[-1])  # fmt: skip
        bounds = rows.groupby(x)[["asked bytes", "unique bytes"]].max() / copy / 1e6
        for column, style, text in (("asked bytes", "--", "bound: all rows from memory"), ("unique bytes", ":", "bound: each prefix once")):
            axes.plot(bounds.index, bounds[column], style, color="0.35", lw=1.2, label=text if axes is places[-1] else None)
        axes.set(title=panel, xlabel=xlabel, ylabel="attention, one layer, ms")
        axes.set_ylim(bottom=0)
        to_scale(axes, rows[x])
    places[-1].legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure


def _in_every_order(rows: pd.DataFrame, x: str) -> pd.DataFrame:
    """A point that was measured in one order because it has but one belongs to every line."""
    single = rows.groupby(x)["order"].transform("nunique") == 1
    shown = sorted(set(rows["order"]) & set(ORDERS))
    return pd.concat([rows[~single], *(rows[single].assign(order=order) for order in shown)], ignore_index=True)


def _panels(count: int, width: float):
    """A figure and its panels, two in a row."""
    across = min(2, count)
    down = -(-count // across)
    figure, places = plt.subplots(down, across, figsize=(width * across, 3.8 * down + 0.4), squeeze=False, layout="constrained")
    for axes in places.flat[count:]:
        axes.remove()
    return figure, list(places.flat[:count])


def _title(name: str) -> str:
    """Heads, and below them the device, without its memory and driver."""
    heads, *device = name.replace(", recorded", "\nrecorded", 1).split("\n", 1)
    return "\n".join([heads, *(text.split(",")[0] for text in device)])


def kernels(tables: dict[str, tuple[pd.DataFrame, int]]):
    """Speed by row order and kernel, relative to one group under the plain kernel; a panel for each (table, number of groups
    in a mixed batch), named by its key."""
    # No axis is shared: panels differ in the number of groups, and a GPU's gain from packing would flatten a CPU's bars.
    figure, panels = _panels(len(tables), 6.4)
    for axes, (name, (table, groups)) in zip(panels, tables.items()):
        data = of_metric(table, "attention time").query("curve == 'groups'")
        base = data.query("policy == 'paged' and groups == 1").set_index("repeat")["value"]
        bars = {"one group": data.query("policy == 'paged' and groups == 1"), "one group, cascade": data.query("policy == 'cascade'")}
        for order in ORDERS:
            bars[f"{groups} groups, {order}"] = data.query("policy == 'paged' and groups == @groups and order == @order")
        bars[f"{groups} groups, packed"] = data.query("policy == 'packed' and groups == @groups")
        speeds = {bar: base / rows.set_index("repeat")["value"] for bar, rows in bars.items()}
        relative = pd.concat([speed.rename("speed").to_frame().assign(bar=bar) for bar, speed in speeds.items()])
        sns.barplot(
            relative,
            y="bar",
            x="speed",
            estimator="median",
            errorbar=("ci", 95),
            color="0.6",
            capsize=0.2,
            err_kws={"lw": 1, "color": "0.1"},
            ax=axes,
        )
        for place, (_, speed) in enumerate(speeds.items()):
            axes.annotate(f"{speed.median():.2f}", (0, place), (4, 0), textcoords="offset points", va="center", fontsize=9)
        axes.axvline(1, color="0.2", lw=1)
        axes.set(title=_title(name), xlabel="speed, one group under paged attention = 1", ylabel=None)
    return figure


def roofline(table: pd.DataFrame, heads: str, rates: dict[str, float], groups: int):
    """Multiplications a second over multiplications a byte that the kernel asks for (Williams, Waterman and Patterson, "Roofline", CACM 2009),
    for one group and ``groups`` of them; ``rates`` in FLOP/s by type, as flat lines."""
    data = _attention(table, heads).query("curve == 'groups' and groups in (1, @groups) and order in ('grouped', 'any')")
    copy = of_metric(table, "copy bandwidth").query("heads == @heads")["value"].median() * 1e9
    data = data.assign(intensity=data["FLOP"] / data["asked bytes"], rate=data["FLOP"] / data["value"] / 1e6)
    points = data.groupby(["policy", "groups"], as_index=False)[["intensity", "rate"]].median()
    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    reach = np.geomspace(points["intensity"].min() / 2, points["intensity"].max() * 4)
    highest = max(rates.values())
    axes.plot(reach, np.minimum(reach * copy, highest) / 1e9, color="0.2", lw=1.5)
    for dtype, rate in rates.items():
        axes.axhline(rate / 1e9, color="0.2", lw=1, ls=":")
        axes.annotate(f"products in {dtype}", (reach[0], rate / 1e9), (2, 3), textcoords="offset points", fontsize=9)
    sns.scatterplot(points.assign(groups=points["groups"].map(lambda count: f"{count} group{'s' if count > 1 else ''}")), x="intensity", y="rate",
                    hue="policy", style="groups", palette="viridis", s=90, ax=axes)  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="FLOP for each byte that the kernel asks for", ylabel="GFLOP/s")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())
    axes.legend(title=None, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def fits(found: dict[str, Fit]):
    """Measured against fitted time of every condition, one panel a fit."""
    figure, panels = _panels(len(found), 5.2)
    for axes, (name, fit) in zip(panels, found.items()):
        points = fit.points
        ends = [points["measured"].min() * 0.7, points["measured"].max() * 1.4]
        axes.plot(ends, ends, color="0.4", lw=1)
        sns.scatterplot(points, x="measured", y="fitted", hue="order", style="order", hue_order=ORDERS, style_order=ORDERS, palette=COLOURS, ax=axes,
                        legend=axes is panels[0])  # fmt: skip
        axes.set(title=_title(name), xscale="log", yscale="log", xlabel="measured, ms", ylabel="fitted, ms")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter(NullFormatter())
    panels[0].legend(title=None, frameon=False, loc="upper left")
    return figure

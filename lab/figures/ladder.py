"""Throughput and tail of ways to serve, one bar each."""

import math
from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.ticker import NullLocator

from lab.figures.charts import of_metric

PANELS = {"throughput": "throughput, tok/s", "time to first token, p99": "p99 time to first token, s"}
_TICKS = (1, 0.5, 2, 0.2, 5, 0.1, 10, 0.7, 1.5, 0.3, 3)  # of an axis of ratios, the most telling first
_APART = 0.12  # of the axis: two closer together collide


def ladder(table: pd.DataFrame, rungs: Sequence[str]):
    """A panel for throughput and one for p99 time to first token; a bar for each value of the column "rung", in the order given, coloured by kernel,
    with the 95 % interval of the median."""
    figure, places = plt.subplots(1, len(PANELS), figsize=(11.2, 0.42 * len(rungs) + 1.4), sharey=True, layout="constrained")
    kernels = list(dict.fromkeys(table["kernel"]))
    for axes, (metric, label) in zip(places, PANELS.items()):
        data = of_metric(table, metric)
        sns.barplot(data, y="rung", x="value", hue="kernel", order=rungs, hue_order=kernels, palette=sns.color_palette("crest", len(kernels)),
                    estimator="median", errorbar=("ci", 95), dodge=False, capsize=0.2, err_kws={"lw": 1, "color": "0.1"}, ax=axes, legend=False)  # fmt: skip
        for place, rung in enumerate(rungs):
            value = data.loc[data["rung"] == rung, "value"].median()
            axes.annotate(
                f"{value:.0f}" if value >= 100 else f"{value:.3g}",
                (0, place),
                (4, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
                color="white",
            )
        axes.set(xlabel=label, ylabel=None)
    return figure


def effects(table: pd.DataFrame):
    """A panel for throughput and one for p99 time to first token: for each "factor" a point with its interval (columns "value", "low", "high") for each
    "kernel", on a logarithmic axis of ratios."""
    factors, kernels = list(dict.fromkeys(table["factor"])), list(dict.fromkeys(table["kernel"]))
    figure, places = plt.subplots(1, len(PANELS), figsize=(11.2, 0.6 * len(factors) + 1.4), sharey=True, layout="constrained")
    colours = dict(zip(kernels, sns.color_palette("crest", len(kernels))))
    for axes, metric in zip(places, PANELS):
        axes.axvline(1, color="0.6", lw=1)
        for place, factor in enumerate(factors):
            data = table[(table["metric"] == metric) & (table["factor"] == factor)]
            for number, row in enumerate(data.itertuples()):
                height = place + 0.16 * (number - (len(data) - 1) / 2)
                axes.plot([row.low, row.high], [height, height], color=colours[row.kernel], lw=2)
                label = row.kernel if row.kernel not in [text.get_label() for text in axes.lines] else None
                axes.plot(row.value, height, "o", color=colours[row.kernel], label=label)
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        ticks: list[float] = []
        for tick in _TICKS:
            if low <= tick <= high and all(abs(math.log(tick / other)) > _APART * math.log(high / low) for other in ticks):
                ticks.append(tick)
        axes.set_xticks(ticks or [1])
        axes.xaxis.set_major_formatter("{x:.3g}")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel(PANELS[metric].split(",")[0] + ", with over without")
    places[0].set_yticks(range(len(factors)), factors)
    places[0].invert_yaxis()
    figure.legend(*places[0].get_legend_handles_labels(), title="kernel", loc="outside right center")
    return figure

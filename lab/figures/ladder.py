"""Throughput and tail of ways to serve, one bar each."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns

from lab.figures.charts import of_metric

PANELS = {"throughput": "throughput, tok/s", "time to first token, p99": "p99 time to first token, s"}


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

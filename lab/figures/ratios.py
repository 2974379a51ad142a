"""Ratios of policies to a base, a bar each: the policy's name stands beside its bar, so that no legend is needed."""

import matplotlib.pyplot as plt
import pandas as pd

from lab.figures.charts import colours, in_order


def ratio_panels(ratios: pd.DataFrame, panel: str, xlabel: str):
    """Horizontal bars of ``median`` with ``low``–``high`` intervals from ``ratio_table`` and their numbers, policies in their usual order; a
    panel for each value of the column ``panel``, named by it; a line at 1."""
    places = list(ratios[panel].unique())
    names = in_order(ratios["policy"])
    figure, axes = plt.subplots(
        1,
        len(places),
        figsize=(2.2 + 3.4 * len(places), 0.7 + 0.45 * len(names)),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for one, place in zip(axes[0], places):
        data = ratios[ratios[panel] == place].set_index("policy").reindex(names)
        spread = [data["median"] - data["low"], data["high"] - data["median"]]
        one.barh(
            names, data["median"], 0.7, xerr=spread, color=[colours().get(name, "0.6") for name in names], error_kw={"lw": 1, "capsize": 2}
        )
        for row, (median, high) in enumerate(zip(data["median"], data["high"])):
            if pd.notna(median):
                one.text(max(high, 1), row, f"  {median:.2f}×", va="center", fontsize=9)
        one.axvline(1, color="0.2", lw=1)
        one.set(title=place, xlabel=xlabel, xlim=(0, 1.22 * max(1.0, ratios["high"].max())), ylim=(len(names) - 0.4, -0.6))
        one.grid(axis="y", visible=False)
    return figure

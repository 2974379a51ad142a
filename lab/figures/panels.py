"""Several metrics of the same runs side by side: throughput never stands alone, what requests wait for it stands beside it."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import pandas as pd

from lab.figures.charts import lines, median_table, policy_bars, ratio_bars, ratio_table

_WIDTH, _HEIGHT, _LEGEND = 5.0, 4.2, 2.6  # of a panel, and the place for the legend to their right, in inches
_WIDE = 20  # values that differ by more than this factor are drawn on a logarithmic axis


def lines_beside(table: pd.DataFrame, metrics: Mapping[str, str], x: str, hue: str | None, xlabel: str, scale: str | None = None):
    """``charts.lines`` of each metric in a panel of its own; logarithmic where its values differ by more than a factor of 20. ``metrics``:
    metric → label of its axis."""
    figure, places = _panels(len(metrics))
    for axes, (metric, ylabel) in zip(places, metrics.items()):
        lines(table, metric, x, hue, xlabel, ylabel, scale=scale, axes=axes)
        _logarithmic_if_wide(axes, table[table["metric"] == metric]["value"])
    _one_legend(places)
    return figure


def ratio_bars_beside(table: pd.DataFrame, metrics: Mapping[str, str], base: str, x: str, width: float = _WIDTH):
    """``charts.ratio_bars`` of each metric's ratio to the policy ``base`` in a panel of its own, ``width`` inches wide. ``metrics``: metric →
    label of its axis."""
    figure, places = _panels(len(metrics), width)
    for axes, (metric, ylabel) in zip(places, metrics.items()):
        ratio_bars(ratio_table(table, metric, base, x), x, ylabel, axes=axes)
    _one_legend(places)
    return figure


def bars_beside(table: pd.DataFrame, metrics: Mapping[str, str], x: str):
    """``charts.policy_bars`` of each metric's medians in a panel of its own. ``metrics``: metric → label of its axis."""
    figure, places = _panels(len(metrics))
    for axes, (metric, ylabel) in zip(places, metrics.items()):
        policy_bars(median_table(table, metric, x), x, ylabel, axes=axes)
    _one_legend(places)
    return figure


def lines_by_kernel(
    table: pd.DataFrame, metric: str, x: str, hue: str, xlabel: str, ylabel: str, order: Sequence | None = None, scale: str | None = None
):
    """``charts.lines`` in a panel for each attention kernel, in the order of the rows, all over the same values."""
    kernels = list(table["kernel"].unique())
    figure, places = _panels(len(kernels), _WIDTH if len(kernels) < 3 else 4.0)
    for axes, kernel in zip(places, kernels):
        lines(table[table["kernel"] == kernel], metric, x, hue, xlabel, ylabel, order, scale, axes=axes)
        axes.set_title(f"{kernel} kernel")
    for axes in places:
        axes.set_ylim(0, max(one.get_ylim()[1] for one in places))
    for axes in places[1:]:
        axes.set_ylabel("")
    _one_legend(places)
    return figure


def _panels(count: int, width: float = _WIDTH):
    whole = width * count + _LEGEND
    figure, places = plt.subplots(1, count, figsize=(whole, _HEIGHT), squeeze=False)
    figure.subplots_adjust(left=0.7 / whole, right=1 - _LEGEND / whole, top=0.96, wspace=0.24)
    return figure, places[0]


def _logarithmic_if_wide(axes, values: pd.Series) -> None:
    low, high = values.min(), values.max()
    if low > 0 and high > _WIDE * low:
        axes.set_yscale("log")
        axes.set_ylim(low / 1.3, high * 1.3)
        axes.yaxis.set_major_formatter("{x:g}")


def _one_legend(places) -> None:
    for axes in places[:-1]:
        if legend := axes.get_legend():
            legend.remove()

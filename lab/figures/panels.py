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
    table: pd.DataFrame, metric: str, x: str, hue: str, xlabel: str, ylabel: str, order: Sequence | None = None, scale: str | None = None,
    below: tuple[str, str] | None = None,
):  # fmt: skip
    """``charts.lines`` in a panel for each attention kernel, in the order of the rows, all over the same values. ``below``: another metric and the
    label of its axis, in a second row of panels."""
    kernels = list(table["kernel"].unique())
    rows = [(metric, ylabel), *([below] if below else [])]
    figure, places = _rows_of_panels(len(rows), len(kernels), _WIDTH if len(kernels) < 3 else 4.0)
    for row, (metric, ylabel) in zip(places, rows):
        for axes, kernel in zip(row, kernels):
            lines(table[table["kernel"] == kernel], metric, x, hue, xlabel, ylabel, order, scale, axes=axes)
        for axes in row:
            axes.set_ylim(0, max(one.get_ylim()[1] for one in row))
        for axes in row[1:]:
            axes.set_ylabel("")
        _one_legend(row)
    for axes, kernel in zip(places[0], kernels):
        axes.set_title(f"{kernel} kernel")
    for row in places[1:]:
        row[-1].get_legend().remove()
    return figure


def _panels(count: int, width: float = _WIDTH):
    figure, places = _rows_of_panels(1, count, width)
    return figure, places[0]


def _rows_of_panels(rows: int, count: int, width: float):
    whole = width * count + _LEGEND
    figure, places = plt.subplots(rows, count, figsize=(whole, _HEIGHT * rows), squeeze=False)
    figure.subplots_adjust(left=0.7 / whole, right=1 - _LEGEND / whole, top=0.96, wspace=0.24, hspace=0.28)
    return figure, places


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

"""Several metrics of the same runs side by side: throughput never stands alone, what requests wait for it stands beside it."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import pandas as pd

from lab.figures.charts import lines, ratio_bars, ratio_table

_WIDTH, _HEIGHT = 5.0, 4.2  # of a panel, in inches


def lines_beside(table: pd.DataFrame, metrics: Mapping[str, str], x: str, hue: str | None, xlabel: str, scale: str | None = None):
    """``charts.lines`` of each metric in a panel of its own. ``metrics``: metric → label of its axis."""
    figure, places = _panels(len(metrics))
    for axes, (metric, ylabel) in zip(places, metrics.items()):
        lines(table, metric, x, hue, xlabel, ylabel, scale=scale, axes=axes)
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


def _panels(count: int, width: float = _WIDTH):
    figure, places = plt.subplots(1, count, figsize=(width * count, _HEIGHT), squeeze=False)
    figure.subplots_adjust(left=0.07, right=0.98, top=0.96, wspace=0.24)
    return figure, places[0]


def _one_legend(places) -> None:
    for axes in places[:-1]:
        if legend := axes.get_legend():
            legend.remove()

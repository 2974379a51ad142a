"""What a figure draws of its table."""

import pandas as pd
import pytest

from lab import figures


@pytest.mark.parametrize("hue, order", [(None, None), ("policy", None), ("batches", None), ("batches", ["8 × 1", "16 × 4"])])
def test_a_figure_of_lines_draws_every_point(hue, order):
    shapes_of = ["8 × 1", "16 × 4"] if hue else ["8 × 1"]
    table = pd.DataFrame([
        {"metric": "t", "x": x, "repeat": repeat, "value": x + repeat, "policy": "FCFS" if batches == "8 × 1" else "Feather", "batches": batches}
        for x in (4, 16) for repeat in (0, 1, 2) for batches in shapes_of
    ])  # fmt: skip
    figure = figures.lines(table, "t", x="x", hue=hue, xlabel="", ylabel="", order=order)
    (axes,) = figure.axes
    medians = [list(line.get_ydata()) for line in axes.lines if line.get_marker() not in ("None", "") and len(line.get_xdata())]
    assert medians == [[5, 17]] * len(shapes_of) and [label.get_text() for label in axes.get_xticklabels()] == ["4", "16"]
    if order:
        assert [text.get_text() for text in axes.get_legend().get_texts()] == [f"batches: {value}" for value in order]

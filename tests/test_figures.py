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


def test_words_stand_clear_of_what_is_drawn_and_of_each_other():
    table = pd.DataFrame([{"metric": "t", "x": x, "repeat": 0, "value": x, "batches": f"a long name, {x % 3}"} for x in range(1, 40)])
    figure = figures.lines(table, "t", x="x", hue="batches", xlabel="x", ylabel="y")
    provenance = {"backend": "sim", "device": "RTX 6000 Ada", "engine": "vllm 0.31.0", "revision": "1234567"}
    figures.note(figure, "a note " * 30)
    figures.sign(figure, provenance)
    figures.headline(figure, "a finding " * 14, "a setting " * 30)
    figure.draw_without_rendering()
    texts = [text.get_window_extent() for text in figure.texts]
    (axes,) = (place.get_tightbbox() for place in figure.axes)
    note, sign, setting, finding = texts
    assert sign.y1 < note.y0 < note.y1 < axes.y0 and axes.y1 < setting.y0 < setting.y1 < finding.y0
    assert max(text.x1 for text in texts) < 1.03 * axes.x1
    labels = [label.get_window_extent() for label in figure.axes[0].get_xticklabels()]
    assert all(one.x1 < other.x0 for one, other in zip(labels, labels[1:]))

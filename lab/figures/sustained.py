"""Latency-throughput curves."""

import matplotlib.pyplot as plt
import pandas as pd

from lab.figures.charts import in_order, looks, median_table, widths_of


def latency_throughput(table: pd.DataFrame, load: str):
    """Left: median throughput against the column ``load``, left of the line that is the load itself. Right: median p99 time to first token against
    throughput, a point for each load, joined in their order; logarithmic."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12.0, 4.2), layout="constrained")
    rates, tails = (median_table(table, metric, load) for metric in ("throughput", "time to first token, p99"))
    names = in_order(table["policy"])
    shown = looks(names)
    for policy, width in widths_of(names).items():
        rate, tail = (one[one["policy"] == policy].set_index(load).sort_index()["median"] for one in (rates, tails))
        look = {"color": shown["palette"][policy], "marker": shown["markers"][policy], "lw": width, "ms": 4 + width}
        left.plot(rate.index, rate, **look, label=policy)
        right.plot(rate, tail, **look)
    left.set(xlabel="offered load, shares of FCFS's capacity", ylabel="throughput, tok/s", ylim=(0, None))
    right.set(xlabel="throughput, tok/s", ylabel="p99 time to first token, s", yscale="log")
    right.yaxis.set_major_formatter("{x:g}")
    figure.legend(loc="outside right center", frameon=False)
    return figure

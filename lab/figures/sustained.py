"""Latency-throughput curves."""

import matplotlib.pyplot as plt
import pandas as pd

from lab.figures.charts import in_order, looks, median_table


def latency_throughput(table: pd.DataFrame, load: str):
    """Left: median throughput against the column ``load``, left of the line that is the load itself. Right: median p99 time to first token against
    throughput, a point for each load, joined in their order; logarithmic."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12.0, 4.2), layout="constrained")
    rates, tails = (median_table(table, metric, load) for metric in ("throughput", "time to first token, p99"))
    colours = looks(table["policy"].unique())["palette"]
    for policy in in_order(table["policy"]):
        rate, tail = (one[one["policy"] == policy].set_index(load).sort_index()["median"] for one in (rates, tails))
        left.plot(rate.index, rate, "o-", color=colours[policy], label=policy)
        right.plot(rate, tail, "o-", color=colours[policy])
    left.set(xlabel="offered load, shares of FCFS's capacity", ylabel="throughput, tok/s", ylim=(0, None))
    right.set(xlabel="throughput, tok/s", ylabel="p99 time to first token, s", yscale="log")
    right.yaxis.set_major_formatter("{x:g}")
    figure.legend(loc="outside right center", frameon=False)
    return figure

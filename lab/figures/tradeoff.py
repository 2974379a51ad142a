"""Throughput against what it costs those who wait."""

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns

_LOADS = ("-", "--", ":", "-.")  # a dash for each load


def tradeoff(table: pd.DataFrame, default: str, points: str):
    """``table``: medians with columns law, load, line, way, throughput, p99, fairness. A column of panels for each law: throughput over FCFS's against
    p99 time to first token over FCFS's (logarithmic), and against Jain's index. The ways of a line are joined, and begin at ``default``; those of the
    line ``points`` are not. FCFS is at the crossing of the grey lines."""
    laws = list(table["law"].unique())
    figure, places = plt.subplots(2, len(laws), figsize=(0.8 + 3.1 * len(laws), 6.4), sharex=True, squeeze=False, layout="constrained")
    lines = [line for line in table["line"].unique() if line not in (default, points)]
    colours = dict(zip(lines, sns.color_palette("colorblind")))
    marks = dict(zip(lines, "ovs^"))
    for column, law in zip(places.T, laws):
        for load, dash in zip(table["load"].unique(), _LOADS):
            cell = table[(table["law"] == law) & (table["load"] == load)]
            first, fixed = cell[cell["line"] == default], cell[cell["line"] == points]
            for axes, y in zip(column, ("p99", "fairness")):
                axes.scatter(fixed["throughput"], fixed[y], marker="x", color="0.45", zorder=3, label=points)
                for line in lines:
                    joined = pd.concat([first, cell[cell["line"] == line]])
                    axes.plot(joined["throughput"], joined[y], marks[line] + dash, color=colours[line], ms=5, lw=1.2, label=line)
                axes.scatter(first["throughput"], first[y], marker="D", s=60, color="0.1", zorder=4, label=default)
        column[0].set(title=law, yscale="log")
        column[0].axhline(1, color="0.7", lw=1, zorder=0)
        column[0].yaxis.set_major_formatter("{x:g}")
        column[0].yaxis.set_minor_formatter("{x:g}")
        column[1].set(xlabel="throughput over FCFS's", ylim=(None, 1.02))
        for axes in column:
            axes.axvline(1, color="0.7", lw=1, zorder=0)
    places[0, 0].set_ylabel("p99 time to first token\nover FCFS's")
    places[1, 0].set_ylabel("Jain's index of the groups'\nmean times to first token")
    handles, names = places[0, 0].get_legend_handles_labels()
    once = dict(zip(names, handles))
    figure.legend(once.values(), once.keys(), loc="outside right center", frameon=False)
    return figure

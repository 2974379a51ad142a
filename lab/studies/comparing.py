"""Policies against FCFS, and attention kernels beside each other: ratios out of tidy rows."""

from collections.abc import Callable, Sequence

import pandas as pd

from lab import figures
from lab.figures.charts import in_order
from lab.stats import Ratio
from lab.studies import words
from lab.studies.study import Study, compare

P99 = "time to first token, p99"

BESIDE = {"throughput": "throughput, tok/s", P99: "p99 time to first token, s"}
"""what stands side by side in every figure that compares policies: metric → label of its axis"""

BESIDE_AS_RATIOS = {"throughput": "throughput, ratio to FCFS", P99: "p99 time to first token, ratio to FCFS"}

WAITS = ("time to first token, median", P99, "time between tokens, p99")
BATCHES = ("mean batch", "groups per batch", "like neighbours")


def over(table: pd.DataFrame, policy: str, base: str = "FCFS", metric: str = "throughput", **where) -> Ratio:
    """A metric under ``policy`` over the same under ``base``, in the rows where every column named in ``where`` has the value given."""
    return compare(table, metric, of={"policy": policy, **where}, to={"policy": base, **where})


def candidates(table: pd.DataFrame) -> list[str]:
    """The policies in the rows that one could deploy: neither FCFS, which they are held against, nor an oracle, which is told the groups."""
    return [policy for policy in in_order(table["policy"]) if policy != "FCFS" and not policy.startswith("oracle")]


def best(table: pd.DataFrame, by: str, among: Sequence[str] | None = None) -> tuple[str, object, Ratio]:
    """Of all ``candidates`` (or ``among`` them) and all values of the column ``by``, those with the highest throughput over FCFS, and that."""
    found = [(policy, value, over(table, policy, **{by: value})) for policy in among or candidates(table) for value in table[by].unique()]
    return max(found, key=lambda one: one[2].median)


def settings(table: pd.DataFrame, *columns: str) -> list:
    """What a column holds, for columns that hold one value in all rows. Raises ValueError for one that varies."""
    found = []
    for column in columns:
        values = {str(value): value for value in table[column]}
        if len(values) != 1:
            raise ValueError(f"{column} has {len(values)} values, not one: {', '.join(values)}")
        found += values.values()
    return found


def repeats(table: pd.DataFrame) -> int:
    return table["repeat"].nunique()


# -- attention kernels: rows come in the order in which the kernels were asked for, and claims are judged under the first ---------


def under(runs: pd.DataFrame, kernel: str) -> pd.DataFrame:
    """The rows under an attention kernel."""
    return runs[runs["kernel"] == kernel]


def judged(runs: pd.DataFrame) -> pd.DataFrame:
    """The rows under the kernel that claims are judged under."""
    return under(runs, runs["kernel"].iloc[0])


def by_kernel(runs: pd.DataFrame, ratio_of: Callable[[pd.DataFrame], Ratio]) -> dict[str, Ratio]:
    """Kernel → the ratio that its rows give."""
    return {kernel: ratio_of(under(runs, kernel)) for kernel in runs["kernel"].unique()}


def kernels(runs: pd.DataFrame, ratio_of: Callable[[pd.DataFrame], Ratio]) -> str:
    """What a reason says of the kernels: under which one its numbers are, and what the ratio comes to under the others."""
    (first, _), *others = by_kernel(runs, ratio_of).items()
    beside = [f"under the {kernel} kernel it is {words.times(ratio)}" for kernel, ratio in others]
    return f" This is under the {first} kernel" + "".join(f"; {one}" for one in beside) + "."


def where(runs: pd.DataFrame) -> str:
    """What a figure's finding ends with where it shows several kernels and tells of the first."""
    several = runs["kernel"].nunique() > 1
    return f" (under the {runs['kernel'].iloc[0]} kernel)" if several else ""


def found_by_kernel(runs: pd.DataFrame, at: str, **where) -> str:
    """A point for a list in Markdown: which policy gains most under each kernel, and what the kernels give FCFS; "" for one kernel. ``where``: column →
    value, of the rows that it is about; ``at`` says so."""
    for column, value in where.items():
        runs = runs[runs[column] == value]
    kernels = list(runs["kernel"].unique())
    if len(kernels) == 1:
        return ""
    gains = [best(under(runs, kernel), "kernel") for kernel in kernels]
    rates = runs[(runs["metric"] == "throughput") & (runs["policy"] == "FCFS")].groupby("kernel")["value"].median()
    least = rates.idxmin()
    return (
        f"**Kernels**, at {at}: the most over FCFS is {words.listed(f'{words.told(ratio)} under {kernel} ({policy})' for policy, kernel, ratio in gains)}. "
        f"FCFS itself, over FCFS under {least}: {words.listed(f'{rates[kernel] / rates[least]:.2f}× under {kernel}' for kernel in kernels if kernel != least)}."
    )


def draw_kernels(study: Study, runs: pd.DataFrame, policy: str, name: str, setting: str, caption: str) -> None:
    """Throughput and p99 time to first token of each policy under each kernel, in the same unit everywhere, so that what a kernel gives and what a
    policy gives can be compared. ``runs``: one setting; ``policy``: the one that the claim is about. Nothing where there is one kernel."""
    if runs["kernel"].nunique() == 1:
        return
    told = words.listed(
        f"{words.told(ratio)} under {kernel}" for kernel, ratio in by_kernel(runs, lambda table: over(table, policy)).items()
    )
    rates = runs[(runs["metric"] == "throughput") & runs["policy"].isin(["FCFS", *candidates(runs)])]
    kernel, fastest = rates.groupby(["kernel", "policy"])["value"].median().idxmax()
    study.figure(
        figures.bars_beside(runs, BESIDE, "kernel"),
        name,
        f"{policy} over FCFS: {told}; the most tokens a second: {fastest} under {kernel}",
        f"{setting}; {figures.spread(repeats(runs))}",
        caption,
        rows=runs,
    )

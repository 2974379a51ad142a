"""Policies against FCFS: ratios out of tidy rows."""

from collections.abc import Sequence

import pandas as pd

from lab.engines import Engine
from lab.figures.charts import in_order
from lab.stats import Ratio
from lab.studies.study import compare

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


def kernel(engine: Engine) -> str:
    """What a reason says of the attention kernel, where there is a choice."""
    return "" if engine.backend == "cpu" else f" Attention kernel: {engine.kernel}."

"""M1: does one stranger in the batch cost half its speed? One batch on two prefixes, of which the second takes ever more."""

from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd

from lab.engines import Engine
from lab.engines.arms import ARMS
from lab.stats import Ratio
from lab.studies import words
from lab.studies.study import Condition, Study, compare
from lab.workloads import grouped, make_prefixes

_FCFS = ARMS["FCFS"]


def divergence(engine: Engine, prefixes: list, batch: int, divergent: Sequence[int], decode_tokens: int) -> list[Condition]:
    """One batch of ``batch`` requests on two prefixes, ``divergent`` of them on the second; in shuffled rows, and
    with the rows of each prefix side by side."""

    def condition(second: int, rows: str) -> Condition:
        def run(seed: int):
            sizes = [batch - second, second]
            return engine.run(grouped(prefixes, sizes, seed, decode_tokens=decode_tokens, shuffled=rows == "shuffled"), _FCFS)

        parameters = {
            "divergent": second,
            "rows": rows,
            "requests": batch,
            "prefix tokens": len(prefixes[0]),
            "decode tokens": decode_tokens,
        }
        return Condition(_FCFS.name, parameters, run)

    mixed = [condition(second, rows) for second in divergent if second for rows in ("shuffled", "side by side")]
    return [condition(0, "shuffled"), *mixed]


def measure(
    study: Study, prefix_tokens: int, batch: int, divergent: Sequence[int], decode_tokens: int, cascade: Sequence[bool], repeats: int
) -> pd.DataFrame:
    """The rows of ``divergence`` with a warm prefix cache, under each choice of cascade attention.

    Raises ValueError unless ``divergent`` begins with 0 and 1, RuntimeError where a batch was composed otherwise than asked."""
    if list(divergent[:2]) != [0, 1] or max(divergent) > batch:
        raise ValueError(f"divergent={list(divergent)} must begin with 0 and 1, and be at most the batch of {batch}")
    prefixes = make_prefixes(2, prefix_tokens)
    study.engine.warm(prefixes)
    table = study.measure(divergence(study.engine, prefixes, batch, divergent, decode_tokens), repeats, cascade=cascade)
    for row in table[table["metric"] == "groups per batch"].itertuples():
        if (row.value > 1) is not (0 < row.divergent < batch):
            raise RuntimeError(f"{row.divergent} of {batch} requests on the second prefix ran as {row.value:g} groups a batch")
    return table


def curves(table: pd.DataFrame) -> pd.DataFrame:
    """The rows for a figure: a curve for each order of the rows, with and without cascade attention. A homogeneous batch is the first
    point of both orders."""
    pure = table[table["divergent"] == 0]
    told = pd.concat([table, pure.assign(rows="side by side")], ignore_index=True)
    if told["cascade"].nunique() == 1:
        return told
    return told.assign(rows=told["rows"] + told["cascade"].map({True: ", cascade kernel", False: ", paged kernel"}))


class Costs(NamedTuple):
    """Decode throughput of one batch over another, under one kernel."""

    one: Ratio
    """homogeneous over one stranger, in shuffled rows"""
    most: Ratio
    """homogeneous over the most strangers, in shuffled rows"""
    rows: Ratio
    """the most strangers: each prefix's rows side by side over shuffled"""
    strangers: int
    """at most"""
    batch: int


def costs(table: pd.DataFrame, cascade: bool) -> Costs:
    """What strangers cost, with cascade attention on or off."""
    table = table[table["cascade"] == cascade]
    most = int(table["divergent"].max())

    def ratio(of: tuple, to: tuple) -> Ratio:
        return compare(table, "decode throughput", *({"divergent": count, "rows": rows} for count, rows in (of, to)))

    return Costs(
        ratio((0, "shuffled"), (1, "shuffled")),
        ratio((0, "shuffled"), (most, "shuffled")),
        ratio((most, "side by side"), (most, "shuffled")),
        most,
        int(table["requests"].iloc[0]),
    )


def finding(table: pd.DataFrame, cascade: bool) -> str:
    """What the figure shows, in a sentence."""
    one, most, _, strangers, batch = costs(table, cascade)
    told = f"One stranger among {batch} costs {words.loss(one)}"
    if words.differs(one) and one.median > 1:
        told += ": a cliff" if one.median >= 1.6 else ": a step, but not one half"
    elif one.high < 1.6:
        told += ": no cliff"
    return f"{told}; {strangers} cost {words.loss(most)}"


def claim(study: Study, table: pd.DataFrame, cascade: Sequence[bool]) -> str:
    """M1: the first stranger, judged under the first choice of cascade attention."""
    one, most, rows, strangers, batch = costs(table, cascade[0])
    if study.engine.backend == "cpu":
        kernels = "Cascade attention, the kernel that runs only when all rows share a prefix, is not there: a CPU has none."
    else:
        kernels = f"Cascade attention runs only when all rows share a prefix; {_by_kernel(table, cascade)}."
    return study.claim(
        "M1",
        one,
        f"One stranger among {batch} costs {words.loss(one)}, {strangers} of them {words.loss(most)} in shuffled rows; "
        f"side by side those {strangers} run {rows.median:.2f}× as fast as shuffled. {kernels} "
        "The claim's other half, more DRAM bandwidth when homogeneous, needs a GPU's counters: python -m benchmarks.decode_attention --counters.",
    )


def _by_kernel(table: pd.DataFrame, cascade: Sequence[bool]) -> str:
    pure = table[(table["metric"] == "cascade steps") & (table["divergent"] == 0)].groupby("cascade")["value"].median()
    return "; ".join(
        f"with cascade attention {'on' if on else 'off'}: {costs(table, on).one}, its kernel in {100 * pure[on]:.0f} % of the homogeneous batch's steps"
        for on in cascade
    )


def found(table: pd.DataFrame, cascade: Sequence[bool]) -> str:
    """What was found, as Markdown."""
    one, most, rows, strangers, batch = costs(table, cascade[0])
    points = [
        f"**The first stranger** among {batch} costs {words.loss(one)} of decode throughput (homogeneous over one stranger: {one})."
        + (" Two equal runs may differ by as much." if abs(one.median - 1) <= words.NOISE else ""),
        f"**{strangers} strangers** cost {words.loss(most)}, in shuffled rows ({most}).",
        f"**Where the rows sit**: with each prefix's rows side by side the same {strangers} strangers run {words.speed(rows)} as shuffled"
        + (", so part of the cost is who sits beside whom." if words.differs(rows) and rows.median > 1 else "."),
    ]
    points += [
        f"**With cascade attention {'on' if on else 'off'}** the first stranger costs {words.loss(costs(table, on).one)}."
        for on in cascade[1:]
    ]
    return words.bullets(points)

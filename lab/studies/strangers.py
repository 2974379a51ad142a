"""M1: does one stranger in the batch cost half its speed? One batch on two prefixes, of which the second takes ever more."""

from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd

from lab import figures
from lab.engines import Engine
from lab.engines.arms import ARMS
from lab.stats import Ratio
from lab.studies import comparing, words
from lab.studies.study import Condition, Study, compare
from lab.workloads import grouped, make_prefixes

_FCFS = ARMS["FCFS"]


def divergence(engine: Engine, prefixes: list, batch: int, divergent: Sequence[int], decode_tokens: int) -> list[Condition]:
    """One batch of ``batch`` requests on two prefixes, ``divergent`` of them on the second; in shuffled rows, and
    with the rows of each prefix side by side."""

    def condition(second: int, arranged: str) -> Condition:
        def run(seed: int):
            sizes = [batch - second, second]
            return engine.run(grouped(prefixes, sizes, seed, decode_tokens=decode_tokens, shuffled=arranged == "shuffled"), _FCFS)

        parameters = {
            "divergent": second,
            "arranged": arranged,
            "requests": batch,
            "prefix tokens": len(prefixes[0]),
            "decode tokens": decode_tokens,
        }
        return Condition(_FCFS.name, parameters, run)

    mixed = [condition(second, arranged) for second in divergent if second for arranged in ("shuffled", "side by side")]
    return [condition(0, "shuffled"), *mixed]


def measure(
    study: Study, prefix_tokens: int, batch: int, divergent: Sequence[int], decode_tokens: int, kernels: Sequence[str], repeats: int
) -> pd.DataFrame:
    """The rows of ``divergence`` with a warm prefix cache, under each attention kernel.

    Raises ValueError unless ``divergent`` begins with 0 and 1, RuntimeError where a batch was composed otherwise than asked."""
    if list(divergent[:2]) != [0, 1] or max(divergent) > batch:
        raise ValueError(f"divergent={list(divergent)} must begin with 0 and 1, and be at most the batch of {batch}")
    prefixes = make_prefixes(2, prefix_tokens)
    study.engine.warm(prefixes)
    table = study.measure(divergence(study.engine, prefixes, batch, divergent, decode_tokens), repeats, kernels=kernels)
    for row in table[table["metric"] == "groups per batch"].itertuples():
        if (row.value > 1) is not (0 < row.divergent < batch):
            raise RuntimeError(f"{row.divergent} of {batch} requests on the second prefix ran as {row.value:g} groups a batch")
    return table


def draw(study: Study, runs: pd.DataFrame) -> None:
    """Decode throughput against the strangers, a panel a kernel, a curve for each order of the rows. A homogeneous batch is the first point of
    both orders."""
    batch, tokens = comparing.settings(runs, "requests", "prefix tokens")
    pure = runs[runs["divergent"] == 0]
    told = pd.concat([runs, pure.assign(arranged="side by side")], ignore_index=True).rename(columns={"arranged": "requests of a prefix"})
    study.figure(
        figures.lines_by_kernel(
            told, "decode throughput", "divergent", "requests of a prefix", "requests on the second prefix", "decode throughput, tok/s"
        ),
        "m1_prefix_homogeneity",
        finding(runs) + comparing.where(runs),
        f"One batch of {batch} on two prefixes of {tokens} tokens, run to its end · {figures.spread(comparing.repeats(runs))}",
        "Decode throughput of one batch as more of it moves to a second prefix, its requests shuffled or each prefix's side by side (M1).",
        rows=runs,
    )


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


def costs(table: pd.DataFrame) -> Costs:
    """What strangers cost under one kernel."""
    most = int(table["divergent"].max())

    def ratio(of: tuple, to: tuple) -> Ratio:
        return compare(table, "decode throughput", *({"divergent": count, "arranged": arranged} for count, arranged in (of, to)))

    return Costs(
        ratio((0, "shuffled"), (1, "shuffled")),
        ratio((0, "shuffled"), (most, "shuffled")),
        ratio((most, "side by side"), (most, "shuffled")),
        most,
        int(table["requests"].iloc[0]),
    )


def finding(runs: pd.DataFrame) -> str:
    """What the figure shows of the first kernel, in a sentence."""
    one, most, _, strangers, batch = costs(comparing.judged(runs))
    told = f"One stranger among {batch} costs {words.loss(one)}"
    if words.differs(one) and one.median > 1:
        told += ": a cliff" if one.median >= 1.6 else ": a step, but not one half"
    elif one.high < 1.6:
        told += ": no cliff"
    return f"{told}; {strangers} cost {words.loss(most)}"


def claim(study: Study, runs: pd.DataFrame) -> str:
    """M1: the first stranger, judged under the first kernel."""
    one, most, rows, strangers, batch = costs(comparing.judged(runs))
    return study.claim(
        "M1",
        one,
        f"One stranger among {batch} costs {words.loss(one)}, {strangers} of them {words.loss(most)} in shuffled rows; "
        f"side by side those {strangers} run {rows.median:.2f}× as fast as shuffled."
        + comparing.kernels(runs, lambda table: costs(table).one)
        + _shared_once(runs)
        + " The claim's other half, more DRAM bandwidth when homogeneous, needs a GPU's counters: python -m benchmarks.decode_attention --counters.",
    )


def _shared_once(runs: pd.DataFrame) -> str:
    """In how many steps the kernels that can computed a shared prefix once."""
    steps = runs[(runs["metric"] == "cascade steps") & runs["divergent"].isin((0, 1))].groupby(["kernel", "divergent"])["value"].median()
    return "".join(
        f" The {kernel} kernel computed a shared prefix once in {100 * steps[kernel, 0]:.0f} % of the homogeneous batch's steps, and in "
        f"{100 * steps[kernel, 1]:.0f} % with one stranger."
        for kernel in runs["kernel"].unique() if kernel != "paged"
    )  # fmt: skip


def found(runs: pd.DataFrame) -> str:
    """What was found, as Markdown."""
    points = []
    for kernel in runs["kernel"].unique():
        one, most, rows, strangers, batch = costs(comparing.under(runs, kernel))
        points.append(
            f"**Under the {kernel} kernel** the first stranger among {batch} costs {words.loss(one)} (decode throughput, homogeneous over one stranger: "
            f"{one}{'; two equal runs may differ by as much' if abs(one.median - 1) <= words.NOISE else ''}), {strangers} strangers {words.loss(most)}. With "
            f"each prefix's rows side by side these {strangers} run {words.speed(rows)} as shuffled"
            + (", so part of the cost is who sits beside whom." if words.differs(rows) and rows.median > 1 else ".")
        )
    return words.bullets([*points, _shared_once(runs).strip()])

"""Sweeps in steady state: what an axis of a study does to throughput, and beside it to the tail of the time to first token."""

from collections.abc import Mapping, Sequence

import pandas as pd

from lab import figures
from lab.figures import sustained as drawn
from lab.instrument import Cell, Effort
from lab.stats import Ratio
from lab.studies import comparing, loops, words
from lab.studies.study import Study
from lab.workloads import Loop

LOAD = "load"


def sweep(
    study: Study,
    points: Mapping[object, Loop],
    vary: str,
    arms: Sequence[str],
    kernels: Sequence[str],
    effort: Effort,
    batches: bool = False,
    everywhere: bool = False,
    seed: int = 1,
) -> pd.DataFrame:
    """Rows of each arm at each point of an axis, named in the column ``vary``, under the first kernel; of the last point, or ``everywhere``, under the
    others, too. ``batches``: the points are numbers of rows. Raises ValueError for no point."""
    if not points:
        raise ValueError(f"there is no {vary} to measure: a list of values is empty")
    last = list(points)[-1]
    found = []
    for place, (value, loop) in enumerate(points.items()):
        under = kernels if everywhere or value == last else kernels[:1]
        cells = [
            Cell(arm, kernel, study.engine.sorted_rows, loop, value if batches else None, label=str(value))
            for kernel in under
            for arm in arms
        ]
        found.append(loops.take(study, cells, effort, seed=seed + place).assign(**{vary: value}))
    study.engine.use_kernel(kernels[0], study.engine.sorted_rows)
    rows = pd.concat(found, ignore_index=True)
    return rows.sort_values("kernel", key=lambda names: names.map(list(kernels).index), kind="stable", ignore_index=True)


def draw(study: Study, table: pd.DataFrame, vary: str, label: str, name: str, caption: str) -> None:
    """Throughput, and beside it p99 time to first token, against the axis under the first kernel; as ratios to FCFS, where its points are no numbers."""
    rows = comparing.judged(table)
    numbers = pd.api.types.is_numeric_dtype(rows[vary])
    study.figure(
        figures.lines_beside(rows, comparing.BESIDE, vary, "policy", label) if numbers
        else figures.ratio_bars_beside(rows, comparing.BESIDE_AS_RATIOS, "FCFS", vary, 6.5),
        name,
        finding(rows, vary, label),
        f"Steady state, {_same(rows, vary)}, batch {study.engine.max_batch}; {figures.spread(comparing.repeats(rows))}",
        caption,
        rows=rows,
    )  # fmt: skip


def draw_kernels(
    study: Study, table: pd.DataFrame, vary: str, label: str, policy: str, name: str, caption: str, setting: str = "Steady state"
) -> None:
    """The last point of the axis under each kernel; ``policy``: the one that the claim is about. Nothing where there is one kernel."""
    last = _ends(table, vary)[-1]
    rows = table[table[vary] == last]
    told = f"{setting}, {_at(last, label)}, {_same(rows, vary)}, batch {study.engine.max_batch}"
    comparing.draw_kernels(study, rows, policy, name, told, caption)


def finding(table: pd.DataFrame, vary: str, label: str) -> str:
    """Which policy gains most over FCFS, where, and what it costs in waiting."""
    policy, value, ratio = comparing.best(table, vary)
    if not words.gains(ratio):
        return f"No policy gains over FCFS: at most {words.times(ratio)}, {policy} at {_at(value, label)}"
    return f"{policy} gives {words.times(ratio)} FCFS's throughput at {_at(value, label)}; p99 time to first token is {words.times(_tail(table, policy, vary, value))}"


def found(table: pd.DataFrame, vary: str, label: str, setting: str = "In steady state") -> str:
    """Points for a list in Markdown: what each policy gains at each end of the axis under the first kernel, and which gains most under each kernel."""
    rows = comparing.judged(table)
    ends = _ends(rows, vary)
    told = [
        f"{policy} "
        + words.listed(
            f"{words.told(comparing.over(rows, policy, **{vary: end}))} (p99 {words.times(_tail(rows, policy, vary, end))}) at {end}"
            for end in ends
        )
        for policy in comparing.candidates(rows)
    ]
    last = ends[-1]
    kernels = comparing.found_by_kernel(table, _at(last, label), **{vary: last})
    return words.bullets([f"**{setting}**, over FCFS, {label}: {'; '.join(told)}.", kernels])


def drained(steady: Ratio, drained: Ratio, policy: str, at: str) -> str:
    """A point for a list in Markdown: what the same comparison comes to in a full queue that drains."""
    apart = "a different ratio" if abs(drained.median / steady.median - 1) > words.NOISE else "the same within noise"
    return (
        f"**A full queue that drains**: there {policy} over FCFS is {words.told(drained)} at {at}, {apart}: in steady state it is {words.told(steady)}. "
        "The drained queue is a transient, and its ratios do not carry over to a server."
    )


def _at(value: object, label: str) -> str:
    return f"{value} {label}"


def _ends(table: pd.DataFrame, vary: str) -> list:
    """The first and the last point of the axis, in the order in which they were asked for; one, where they are the same."""
    points = list(comparing.judged(table)[vary].unique())
    return list(dict.fromkeys([points[0], points[-1]]))


def _tail(table: pd.DataFrame, policy: str, vary: str, value: object) -> Ratio:
    return comparing.over(table, policy, metric=comparing.P99, **{vary: value})


def _same(table: pd.DataFrame, vary: str) -> str:
    """What all points of the axis have in common."""
    told = []
    for column, text in (("groups", "{} prefix groups"), ("prefix tokens", "prefixes of {} tokens"), ("clients", "{} clients"), ("decode tokens", "decode {} tokens")):  # fmt: skip
        if column in table and column != vary and table[column].nunique() == 1:
            value = table[column].iloc[0]
            told.append(text.format(int(value) if isinstance(value, float) else value))
    return ", ".join(told)


# -- load -------------------------------------------------------------------------------------------------------------------


def under_load(
    study: Study, loop: Loop, loads: Sequence[float], arms: Sequence[str], kernels: Sequence[str], effort: Effort
) -> tuple[float, pd.DataFrame]:
    """FCFS's capacity in requests a second, from a closed loop under the first kernel, and rows of Poisson arrivals at shares of it (the column "load")."""
    closed = loops.take(study, [Cell("FCFS", kernels[0], study.engine.sorted_rows, loop, label="capacity")], effort, seed=9)
    rate = closed[closed["metric"] == "throughput"]["value"].median() / loop.mean_decode
    return float(rate), sweep(study, {load: loop.at(round(load * rate, 3)) for load in loads}, LOAD, arms, kernels, effort, seed=10)


def draw_load(study: Study, table: pd.DataFrame, capacity: float) -> None:
    """Throughput against the offered load, and p99 time to first token against throughput, under the first kernel."""
    rows = comparing.judged(table)
    above = [load for load in rows[LOAD].unique() if load > 1]
    study.figure(
        drawn.latency_throughput(rows, LOAD),
        "e1_load",
        finding(rows, LOAD, "times FCFS's capacity"),
        f"Poisson arrivals, {_same(rows, LOAD)}, batch {study.engine.max_batch}; FCFS serves {capacity:.3g} requests a second; "
        + figures.spread(comparing.repeats(rows)),
        "Throughput against offered load, and p99 time to first token against throughput (E1)."
        + (" Above an arm's own capacity its queue grows for as long as the run lasts, and so does its tail." if above else ""),
        rows=rows,
    )

"""What each lever is worth in steady state: order of rows, kernel, order of admission, stopping, one after the other."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from lab import figures
from lab.engines import Engine
from lab.figures import ladder as drawn
from lab.instrument import Cell, Effort, Rung
from lab.stats import Ratio, median_of, widened
from lab.studies import loops, words
from lab.studies.study import Study, between_runs, compare
from lab.workloads import Loop

STOCK = "FCFS"
THROUGHPUT, TAIL = "throughput", "time to first token, p99"


ARRIVAL_STRICT, ORDER, STRICT = "arrival order, strict stop", "Feather (never stop)", "Feather (strict stop)"
_SWITCHED = {
    "row order": [(Rung(STOCK, sorted_rows=True), Rung(STOCK)), (Rung(ORDER, sorted_rows=True), Rung(ORDER))],
    "admission by prefix": [(Rung(ORDER), Rung(STOCK)), (Rung(ORDER, sorted_rows=True), Rung(STOCK, sorted_rows=True))],
    "admission by prefix, if batches stop": [(Rung(STRICT), Rung(ARRIVAL_STRICT))],
    "stopping": [(Rung(ARRIVAL_STRICT), Rung(STOCK))],
    "stopping, if admission is by prefix": [(Rung(STRICT), Rung(ORDER))],
}  # fmt: skip
"""factor → pairs of rungs that differ in nothing else; a batch of one group has its rows sorted. Order and stopping need each other, so each is told with the other off and on"""


def rungs(loop: Loop, kernels: Sequence[str], more: Sequence[str], sorts: bool) -> list[Cell]:
    """Under each kernel order of admission, order of rows (where it ``sorts``, and the kernel does not do it by itself) and stopping, each off and on; and
    ``more`` arms."""
    found = []
    for kernel in kernels:
        for arm in (STOCK, ORDER):
            found += [Cell(arm, kernel, rows, loop) for rows in ((False, True) if sorts and kernel != "packed" else (False,))]
        found += [Cell(arm, kernel, loop=loop) for arm in (ARRIVAL_STRICT, STRICT, *more)]
    return found


def effects(table: pd.DataFrame, steps: Sequence[Cell], metric: str = THROUGHPUT) -> dict[tuple[str, str], Ratio]:
    """(kernel, factor) → what switching it on does to a metric, all else equal: the mean of the logarithms of its pairs' ratios in each repeat. And
    ("all", "kernel X") what kernel X does compared with the first, over all arms."""
    there = {step.rung for step in steps}
    kernels = list(dict.fromkeys(step.kernel for step in steps))
    found = {}

    def both(pairs: list[tuple[Rung, Rung]]) -> Ratio | None:
        pairs = [pair for pair in pairs if {rung.rung for rung in pair} <= there]
        if not pairs:
            return None
        logs = [np.log(_values(table, metric, one) / _values(table, metric, other)) for one, other in pairs]
        effect, spread = median_of(np.exp(np.mean(logs, axis=0))), f"{metric}, half width"
        if not (table["metric"] == spread).any():
            return effect
        halves = np.array(
            [
                np.maximum(_values(table, spread, rung) / _values(table, metric, rung), between_runs(table))
                for pair in pairs
                for rung in pair
            ]
        )
        return widened(effect, np.sqrt(np.square(halves).sum(0)) / len(pairs), 0.0)

    for kernel in kernels:
        for factor, pairs in _SWITCHED.items():
            if effect := both([(replace(one, kernel=kernel), replace(other, kernel=kernel)) for one, other in pairs]):
                found[kernel, factor] = effect
    first, *others = kernels
    for kernel in others:
        same = [
            (Rung(step.arm, kernel, step.sorted_rows), Rung(step.arm, first, step.sorted_rows)) for step in steps if step.kernel == first
        ]
        if effect := both(same):
            found["all", f"{kernel} kernel"] = effect
    return found


def _values(table: pd.DataFrame, metric: str, rung: Rung) -> np.ndarray:
    chosen = table[(table["metric"] == metric) & (table["rung"] == rung.rung)]
    return chosen.sort_values("repeat")["value"].to_numpy()


def effects_figure(study: Study, table: pd.DataFrame, steps: Sequence[Cell]) -> None:
    rates, tails = effects(table, steps), effects(table, steps, TAIL)
    alone = {key: ratio for key, ratio in rates.items() if ", if " not in key[1]}
    (kernel, factor), most = max(alone.items(), key=lambda one: one[1].median)
    where = f"{factor} ({kernel} kernel)," if kernel != "all" else f"the {factor}"
    rows = pd.DataFrame(
        [
            {"kernel": kernel, "factor": factor, "metric": metric, "value": ratio.median, "low": ratio.low, "high": ratio.high}
            for metric, ratios in ((THROUGHPUT, rates), (TAIL, tails))
            for (kernel, factor), ratio in ratios.items()
        ]
    )
    study.figure(
        drawn.effects(rows),
        "effects",
        f"Switched by itself, {where} does most for throughput: {most.median:.2f}×; p99 time to first token becomes {tails[kernel, factor].median:.2f}×",
        f"Steady state, {steps[0].loop.name} on {study.engine.max_batch} rows · {figures.spread(table['repeat'].nunique())}",
        "What row order, admission order, stopping and the kernel are worth, each switched with all else equal, in throughput and in p99 time to first token.",
        kernel=False,
    )


def evictions(study: Study, loop: Loop, kernel: str, effort: Effort) -> pd.DataFrame:
    """The same arms where the KV cache does not hold all prefixes: what an order saves there is prefill."""
    return loops.take(study, [Cell(arm, kernel, loop=loop) for arm in (STOCK, ORDER, STRICT)], effort, seed=2)


def evicted(table: pd.DataFrame) -> str:
    """What order and stopping are worth where prefixes are evicted, in Markdown."""
    lines = []
    for arm in (ORDER, STRICT):
        ratio, tail = (compare(table, metric, of={"policy": arm}, to={"policy": STOCK}) for metric in (THROUGHPUT, TAIL))
        hits = {name: table[(table["metric"] == "prefix hits") & (table["policy"] == name)]["value"].median() for name in (STOCK, arm)}
        lines.append(
            f"{arm} over {STOCK}: {ratio}; p99 time to first token {tail}. Prompt tokens found in the prefix cache: {100 * hits[arm]:.0f} % instead of "
            f"{100 * hits[STOCK]:.0f} %."
        )
    return words.bullets(lines)


def measure(study: Study, steps: Sequence[Cell], effort: Effort) -> pd.DataFrame:
    """Each rung in steady state."""
    table = loops.take(study, steps, effort)
    study.engine.use_kernel("paged")
    return table


def over_stock(table: pd.DataFrame, rung: Rung, metric: str = THROUGHPUT) -> Ratio:
    return compare(table, metric, of={"rung": rung.rung}, to={"rung": Cell(STOCK, "paged").rung})


def figure(study: Study, table: pd.DataFrame, steps: Sequence[Cell]) -> None:
    best = max(steps, key=lambda rung: over_stock(table, rung).median)
    free = [rung for rung in steps if rung.arm == STOCK]
    gain = max(over_stock(table, rung).median for rung in free)
    engine: Engine = study.engine
    sample = table.iloc[0]
    study.figure(
        drawn.ladder(table, [rung.rung for rung in steps]),
        "ladder",
        f"Kernel and row order alone give up to {gain:.2f}× stock FCFS; the most is {over_stock(table, best).median:.2f}×, by {best.rung}",
        f"Steady state, {sample['groups']} groups of {sample['prefix tokens']} tokens, {sample['clients']} clients on {engine.max_batch} rows, decode "
        f"{sample['decode tokens']} tokens · {figures.spread(table['repeat'].nunique())}",
        "Throughput, and beside it the 99th percentile of the time to first token, under each kernel, order of rows and policy.",
        kernel=False,
    )


def found(table: pd.DataFrame, steps: Sequence[Cell]) -> str:
    """Each rung against stock FCFS, throughput and tail, in Markdown."""
    lines = ["| arm | kernel | rows | throughput | p99 time to first token |", "|---|---|---|---|---|"]
    for rung in steps:
        rows = "by prefix" if rung.sorted_rows else "the engine's"
        lines.append(f"| {rung.arm} | {rung.kernel} | {rows} | {over_stock(table, rung)} | {over_stock(table, rung, TAIL)} |")
    return "\n".join([*lines, "", "Ratios to FCFS with vLLM's own kernel and order of rows; medians over repeats with 95 % intervals."])


def causes(table: pd.DataFrame, steps: Sequence[Cell]) -> str:
    """What each factor is worth by itself, in Markdown."""
    rates, tails = effects(table, steps), effects(table, steps, TAIL)
    lines = ["| kernel | what is switched on | throughput | p99 time to first token |", "|---|---|---|---|"]
    lines += [f"| {kernel} | {factor} | {ratio} | {tails[kernel, factor]} |" for (kernel, factor), ratio in rates.items()]
    return "\n".join([*lines, "", "All else equal; medians over repeats with 95 % intervals."])

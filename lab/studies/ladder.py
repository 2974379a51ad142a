"""What each lever is worth in steady state: order of rows, kernel, order of admission, stopping, one after the other."""

from collections.abc import Sequence

import pandas as pd

from lab import figures
from lab.engines import Engine
from lab.figures import ladder as drawn
from lab.instrument import Cell, Effort
from lab.stats import Ratio
from lab.studies import loops
from lab.studies.study import Study, compare
from lab.workloads import Loop

STOCK = "FCFS"
THROUGHPUT, TAIL = "throughput", "time to first token, p99"


def rungs(loop: Loop, kernels: Sequence[str], stopping: Sequence[str], sorts: bool) -> list[Cell]:
    """Under each kernel: FCFS, admission by prefix, and the arms that stop. Under the paged one FCFS with sorted rows as well, where ``sorts``."""
    found = []
    for kernel in kernels:
        found.append(Cell(STOCK, kernel, loop=loop))
        if kernel == "paged" and sorts:
            found += [Cell(STOCK, kernel, True, loop), Cell("Feather (never stop)", kernel, True, loop)]
        found += [Cell(arm, kernel, loop=loop) for arm in ("Feather (never stop)", *stopping)]
    return found


def measure(study: Study, steps: Sequence[Cell], effort: Effort) -> pd.DataFrame:
    """Each rung in steady state."""
    table = loops.take(study, steps, effort)
    study.engine.use_kernel("paged")
    return table


def over_stock(table: pd.DataFrame, rung: Cell, metric: str = THROUGHPUT) -> Ratio:
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

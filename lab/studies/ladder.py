"""What each lever is worth in steady state: order of rows, kernel, order of admission, stopping, one after the other."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd

from lab import figures
from lab.engines import Engine
from lab.engines.arms import ARMS
from lab.figures import ladder as drawn
from lab.stats import Ratio
from lab.steady import steady
from lab.studies.study import Condition, Study, compare
from lab.workloads import even_sizes, grouped, make_prefixes

STOCK = "FCFS"
THROUGHPUT, TAIL = "throughput", "time to first token, p99"


@dataclass(frozen=True)
class Rung:
    """An arm under a kernel and an order of rows."""

    arm: str
    kernel: str
    sorted_rows: bool = False

    @property
    def name(self) -> str:
        return f"{self.arm}, {self.kernel}" + (", rows sorted" if self.sorted_rows else "")


def rungs(kernels: Sequence[str], stopping: Sequence[str], sorts: bool) -> list[Rung]:
    """Under each kernel: FCFS, admission by prefix, and the arms that stop. Under the paged one FCFS with sorted rows as well, where ``sorts``."""
    found = []
    for kernel in kernels:
        found.append(Rung(STOCK, kernel))
        if kernel == "paged" and sorts:
            found += [Rung(STOCK, kernel, True), Rung("Feather (never stop)", kernel, True)]
        found += [Rung(arm, kernel) for arm in ("Feather (never stop)", *stopping)]
    return found


def measure(study: Study, steps: Sequence[Rung], prefix_groups: int, prefix_tokens: int, clients: int, requests: int,
            decode_tokens: tuple[int, int], repeats: int) -> pd.DataFrame:  # fmt: skip
    """A closed loop for each rung; the transient and the draining end are cut (``lab.steady``)."""
    engine = study.engine
    prefixes = make_prefixes(prefix_groups, prefix_tokens)
    engine.warm(prefixes)
    told = {
        "groups": prefix_groups,
        "prefix tokens": prefix_tokens,
        "clients": clients,
        "requests": requests,
        "decode tokens": str(decode_tokens),
    }

    def condition(rung: Rung) -> Condition:
        def run(seed: int):
            engine.use_kernel(rung.kernel, rung.sorted_rows)
            made = grouped(prefixes, even_sizes(requests, prefix_groups), seed, decode_tokens=decode_tokens)
            return steady(engine.run(replace(made, clients=clients), ARMS[rung.arm]))

        return Condition(rung.arm, {"rung": rung.name, **told}, run)

    table = study.measure([condition(rung) for rung in steps], repeats)
    engine.use_kernel("paged")
    return table


def over_stock(table: pd.DataFrame, rung: Rung, metric: str = THROUGHPUT) -> Ratio:
    return compare(table, metric, of={"rung": rung.name}, to={"rung": Rung(STOCK, "paged").name})


def figure(study: Study, table: pd.DataFrame, steps: Sequence[Rung]) -> None:
    best = max(steps, key=lambda rung: over_stock(table, rung).median)
    free = [rung for rung in steps if rung.arm == STOCK]
    gain = max(over_stock(table, rung).median for rung in free)
    engine: Engine = study.engine
    sample = table.iloc[0]
    study.figure(
        drawn.ladder(table, [rung.name for rung in steps]),
        "ladder",
        f"Kernel and row order alone give up to {gain:.2f}× stock FCFS; the most is {over_stock(table, best).median:.2f}×, by {best.name}",
        f"Steady state, {sample['groups']} groups of {sample['prefix tokens']} tokens, {sample['clients']} clients on {engine.max_batch} rows, decode "
        f"{sample['decode tokens']} tokens · {figures.spread(table['repeat'].nunique())}",
        "Throughput, and beside it the 99th percentile of the time to first token, under each kernel, order of rows and policy.",
        kernel=False,
    )


def found(table: pd.DataFrame, steps: Sequence[Rung]) -> str:
    """Each rung against stock FCFS, throughput and tail, in Markdown."""
    lines = ["| arm | kernel | rows | throughput | p99 time to first token |", "|---|---|---|---|---|"]
    for rung in steps:
        rows = "by prefix" if rung.sorted_rows else "the engine's"
        lines.append(f"| {rung.arm} | {rung.kernel} | {rows} | {over_stock(table, rung)} | {over_stock(table, rung, TAIL)} |")
    return "\n".join([*lines, "", "Ratios to FCFS with vLLM's own kernel and order of rows; medians over repeats with 95 % intervals."])

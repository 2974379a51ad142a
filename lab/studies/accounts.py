"""Whether the account of why an arm wins holds: a law fitted to some cells has to say, before they are run, which arm is better in others."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from lab import figures
from lab.account import FEATURES, FittedEngine, Law, Pair, best_discipline, fit, pairs, predict, steps_of
from lab.engines import Engine
from lab.instrument import Cell, Effort, Taken
from lab.stats import median_of
from lab.steady import Steady, pooled
from lab.studies import loops, words
from lab.studies.study import Study
from lab.workloads import Loop

LEAST = 0.05
"""arms that differ by less are not asked about"""
FITTED_ON = ("FCFS", "oracle (stop)")
"""the arms whose steps the law is fitted to: all mixed, all alike"""


@dataclass
class Account:
    """The law, what it said, and what came."""

    law: Law
    predicted: dict[Cell, Steady]
    measured: dict[Cell, list[Steady]]
    best: dict[tuple[Loop, str], str]
    """the discipline with known groups that is best in simulation"""

    @property
    def asked(self) -> list[Pair]:
        """Pairs of arms that differ by more than ``LEAST``, beyond their intervals."""
        return [pair for pair in pairs(self.measured, self.predicted, LEAST) if pair.apart]

    @property
    def right(self) -> float:
        """Of those, the share in which the better arm was foretold; nan for none."""
        asked = self.asked
        return float(np.mean([pair.right for pair in asked])) if asked else float("nan")


def fitted_engine(engine: Engine, law: Law, kernel: str) -> FittedEngine:
    """A modelled engine of the sizes of the measured one."""
    bytes_per_token = FittedEngine(law=law, kernel=kernel)._shape.kv_bytes_per_token
    return FittedEngine(
        law=law, kernel=kernel, max_batch=engine.max_batch, block_size=engine.block_size, max_batched_tokens=engine.max_batched_tokens,
        kv_gib=engine.kv_tokens * bytes_per_token / 2**30,
    )  # fmt: skip


def check(
    study: Study, known: Sequence[Loop], held_out: Sequence[Loop], arms: Sequence[str], kernels: Sequence[str], effort: Effort
) -> Account:
    """Fit the law to the workloads ``known`` under ``FITTED_ON``, say what the arms will do on those held out, and run them; to the first of these comes
    the discipline that is best there in simulation."""
    taken: list[Taken] = []
    loops.take(study, [Cell(arm, kernel, loop=loop) for loop in known for kernel in kernels for arm in FITTED_ON], effort, kept=taken)
    law = fit(steps_of(one.found.whole, one.cell) for one in taken)
    predicted: dict[Cell, Steady] = {}
    best: dict[tuple[Loop, str], str] = {}
    for kernel in kernels:
        engine = fitted_engine(study.engine, law, kernel)
        virtual = replace(effort, limit=1e6, repeats=1, more_repeats=0, turnovers=max(8.0, effort.turnovers))
        cells = [Cell(arm, kernel, loop=loop) for loop in held_out for arm in arms]
        best[held_out[0], kernel], _ = best_discipline(engine, Cell(arms[0], kernel, loop=held_out[0]), replace(virtual, target=0.1))
        if best[held_out[0], kernel] not in arms:
            cells.append(Cell(best[held_out[0], kernel], kernel, loop=held_out[0]))
        predicted |= predict(engine, cells, virtual)
    for cell, found in predicted.items():
        for metric, (value, unit) in found.run.metrics().items():
            if metric in ("throughput", "time to first token, p99"):
                study.row(cell.arm, loops.parameters(cell) | {"of": "the law"}, f"predicted: {metric}", value, unit, 0)
    came: list[Taken] = []
    loops.take(study, list(predicted), effort, seed=2, kept=came)
    measured = defaultdict(list)
    for one in came:
        measured[one.cell].append(one.found)
    return Account(law, predicted, dict(measured), best)


def law_table(law: Law) -> pd.DataFrame:
    """What a step's time is made of, in ms, under each kernel; keys and prefixes per thousand tokens."""
    columns = {f"{kernel}, all rows alike" if shared else kernel: known for (kernel, shared), known in law.milliseconds.items()}
    return pd.DataFrame(columns, index=pd.Index(FEATURES, name="ms for"))


def table(account: Account) -> pd.DataFrame:
    """Each held-out cell: what was foretold, and what came."""
    rows = []
    for cell, runs in account.measured.items():
        mean, half = pooled(runs)
        said = account.predicted[cell]
        tail = float(np.median([np.percentile(run.run.first_token, 99) for run in runs]))
        rows.append(
            {"workload": cell.loop.name, "kernel": cell.kernel, "arm": cell.arm, "tok/s": mean, "±": half, "foretold": said.throughput,
             "over measured": said.throughput / mean, "p99 time to first token, s": tail,
             "foretold, s": float(np.percentile(said.run.first_token, 99))}
        )  # fmt: skip
    return pd.DataFrame(rows).sort_values(["workload", "kernel"], kind="stable").set_index(["workload", "kernel", "arm"])


def figure(study: Study, account: Account) -> None:
    rows = table(account).reset_index()
    asked = account.asked
    study.figure(
        figures.agreement(rows, "foretold", "tok/s", "kernel", "foretold, tok/s", "measured, tok/s"),
        "account",
        f"The better of two arms is foretold in {sum(pair.right for pair in asked)} of {len(asked)} pairs that differ by more than {100 * LEAST:.0f} %",
        f"Steady state, workloads that the law has not seen, {study.engine.max_batch} rows",
        "Throughput of arms on held-out workloads: by the law of step times under the real scheduler, and measured.",
        kernel=False,
    )


def found(account: Account) -> str:
    """What was found, in Markdown."""
    errors = median_of([abs(account.predicted[cell].throughput / pooled(runs)[0] - 1) for cell, runs in account.measured.items()])
    asked = account.asked
    wrong = [f"{pair.one.rung} against {pair.other.rung} on {pair.one.loop.name}" for pair in asked if not pair.right]
    best = []
    for (loop, kernel), name in account.best.items():
        over = {cell.arm: pooled(runs)[0] for cell, runs in account.measured.items() if (cell.loop, cell.kernel) == (loop, kernel)}
        first = max(over, key=lambda arm: over[arm])
        best.append(
            f"under {kernel} {name}, measured {over[name] / over['FCFS']:.2f}× FCFS (the best measured: {first}, {over[first] / over['FCFS']:.2f}×)"
        )
    return words.bullets([
        f"**The better arm** was foretold in {sum(pair.right for pair in asked)} of {len(asked)} pairs that differ by more than {100 * LEAST:.0f} %, "
        f"beyond their intervals." + (f" Not: {'; '.join(wrong)}." if wrong else ""),
        f"**Throughput** is off by {100 * errors.median:.0f} % in the median of {len(account.measured)} cells. The law knows each step's time to "
        + words.listed(f"{100 * value:.0f} % ({kernel})" for kernel, value in account.law.noise.items()) + ".",
        f"**The best simple discipline with known groups**, by simulation, on {next(iter(account.best))[0].name}: {'; '.join(best)}." if best else "",
    ])  # fmt: skip

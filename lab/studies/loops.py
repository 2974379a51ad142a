"""Studies in steady state: cells of ``lab.instrument`` as rows of a study."""

from collections.abc import Sequence
from dataclasses import asdict

import pandas as pd

from lab.instrument import Cell, Effort, Taken, measure
from lab.studies.study import Study

THROWN_AWAY = "runs thrown away"
"""metric of a run beside which there were some with wider intervals (``lab.instrument``); other runs lack it"""

CONTROL = "control"
"""in the name of the metric of a recurring control's run, so that it is not taken for one of its repeats"""


def parameters(cell: Cell) -> dict:
    """What tells a cell from others in the rows, its arm and its kernel aside."""
    loop = asdict(cell.loop)
    sent = {"clients": cell.loop.clients} if cell.loop.clients else {"requests_per_s": cell.loop.requests_per_s}
    return {
        **{name.replace("_", " "): loop[name] for name in ("groups", "prefix_tokens", "zipf")},
        **sent,
        "decode tokens": cell.loop.lengths,
        "rung": cell.rung,
        "workload": cell.loop.name,
    }


def take(study: Study, cells: Sequence[Cell], effort: Effort, seed: int = 1, kept: list[Taken] | None = None) -> pd.DataFrame:
    """Measure the cells; returns their rows, and puts the runs into ``kept``. Metrics are those of the steady part; those of the transient stand beside them, with "transient: " before
    their names, and the throughput of a recurring control as "control: throughput"."""
    first = study.kept
    for one in measure(study.engine, cells, effort, seed=seed, desc=study.name):
        if kept is not None:
            kept.append(one)
        told = parameters(one.cell)
        metrics = one.found.metrics() | one.found.transient_metrics()
        if one.again:
            metrics[THROWN_AWAY] = (one.again, "runs")
        if one.control:
            metrics = {f"{CONTROL}: throughput": metrics["throughput"]}
        for metric, (value, unit) in metrics.items():
            study.row(one.cell.arm, told, metric, value, unit, one.repeat, one.seed)
    return study.rows(first)

"""Measures what a step of scheduling costs on this machine's CPU under every kind of queue, for the modelled device.

``python -m benchmarks.scheduling_costs [--json] [--write]``: vLLM's real scheduler on a virtual clock, queues and batches of
several sizes; with ``--write`` the rows become ``data/calibration/scheduling_costs.csv``.
"""

import numpy as np
import pandas as pd

from benchmarks import timing
from feather.sim.costs import COLUMNS, TABLE, SchedulingCosts, fitted, kind_of
from feather.studies import machine

ARMS = ("FCFS", "Feather (never stop)", "Feather (threshold)", "oracle (order)", "LPM", "DFS-weight", "block table")
# (requests, batch, prefix tokens): queues from empty to long, batches from small to the paper's. The queues that order all
# that waits anew each step are measured on fewer steps: they take up to half a second each.
SIZES = ((64, 32, 2000), (400, 100, 5000), (800, 500, 5000), (600, 200, 10_000))


def run(write: bool) -> dict:
    from feather.sim.engine import SimEngine
    from feather.studies.scheduler import ARMS as ALL
    from feather.workloads import even_sizes, grouped, make_prefixes

    measured = []
    for requests, batch, tokens in SIZES:
        engine = SimEngine(max_batch=batch, device="h200", scheduling="measured")
        prefixes = make_prefixes(5, tokens)
        engine.warm(prefixes)
        for name in ARMS:
            slow = ALL[name].kind in ("radix", "block table")
            engine.measured.clear()
            decode = (1, 3) if slow else (4, 40)
            engine.run(grouped(prefixes, even_sizes(requests, 5), seed=1, decode_tokens=decode), ALL[name])
            measured += engine.measured[:: 1 if slow else 4]
    table = pd.DataFrame(measured, columns=COLUMNS).assign(device=machine.device("cpu"), engine=machine.engine_version(), revision=machine.revision())
    if write:
        TABLE.parent.mkdir(parents=True, exist_ok=True)
        table.round({"queue_ms": 4, "engine_ms": 4}).to_csv(TABLE, index=False)
        fitted.cache_clear()
    costs, arms = SchedulingCosts(), {kind_of(arm): arm for arm in ALL.values()}
    told = np.array([sum(costs.seconds(arms[row.queue], *row[2:7])) for row in table.itertuples()]) * 1e3
    taken = (table["queue_ms"] + table["engine_ms"]).to_numpy()
    error = np.abs(told - taken) / taken
    by_kind = {kind: timing.spread((100 * error[table["queue"] == kind]).tolist(), 1) for kind in sorted(table["queue"].unique())}
    steady = table[(table["running"] == 500) & (table["queue"] == "fcfs")]
    return {"rows": len(table), "fit error, %": by_kind, "step at 500 running, FCFS, ms": timing.spread((steady["queue_ms"] + steady["engine_ms"]).tolist())}


def show(found: dict) -> None:
    print(f"{found['rows']} steps measured; error of the fitted costs, %:")
    print(pd.DataFrame(found["fit error, %"]).T.to_string())
    print(f"a step at 500 running, FCFS: {found['step at 500 running, FCFS, ms']['median']} ms")


if __name__ == "__main__":
    timing.main("benchmarks.scheduling_costs", __doc__.splitlines()[0], run, show, write={"action": "store_true", "help": "keep the rows as the table that the modelled device charges by"})

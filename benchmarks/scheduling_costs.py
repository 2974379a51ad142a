"""Measures what a step of scheduling costs on this machine's CPU under every kind of queue, for the modelled device.

``python -m benchmarks.scheduling_costs [--engine sglang] [--json] [--write]``: vLLM's, or SGLang's, real scheduler on a virtual
clock, queues and batches of several sizes; with ``--write`` the rows take the place of that engine's in
``data/calibration/scheduling_costs.csv``.
"""

import numpy as np
import pandas as pd

from benchmarks import timing
from lab import machine
from lab.model.costs import COLUMNS, TABLE, SchedulingCosts, fitted

FEATHER = ("Feather (never stop)", "Feather (threshold)")
# engine → (arms, those of them that order all that waits anew whenever they are asked)
ARMS = {
    "vllm": (("FCFS", *FEATHER, "oracle (order)", "LPM", "DFS-weight", "block table"), ("LPM", "DFS-weight", "block table")),
    "sglang": (("FCFS", *FEATHER, "LPM, no cut-off", "DFS-weight"), ("LPM, no cut-off", "DFS-weight")),
}
# (requests, batch, prefix tokens): queues from empty to long, batches from small to the paper's. The queues that order all
# that waits anew each step are measured on fewer steps: they take up to half a second each.
SIZES = ((64, 32, 2000), (400, 100, 5000), (800, 500, 5000), (600, 200, 10_000))


def run(engine: str, write: bool) -> dict:
    from lab.engines.modelled import ModelledEngine
    from lab.workloads import even_sizes, grouped, make_prefixes

    names, slow = ARMS[engine]
    measured = []
    for requests, batch, tokens in SIZES:
        sim = ModelledEngine(max_batch=batch, device="h200", scheduling="measured", engine=engine)
        prefixes = make_prefixes(5, tokens)
        sim.warm(prefixes)
        for name in names:
            sim.measured.clear()
            decode = (1, 3) if name in slow else (4, 40)
            sim.run(grouped(prefixes, even_sizes(requests, 5), seed=1, decode_tokens=decode), _arms(engine)[name])
            measured += sim.measured[:: 1 if name in slow else 4]
    table = pd.DataFrame(measured, columns=COLUMNS).assign(
        device=machine.device("cpu"), engine=sim.engine_version, revision=machine.revision()
    )
    table = table.round({"queue_ms": 4, "engine_ms": 4})
    if write:
        others = pd.read_csv(TABLE) if TABLE.exists() else table[:0]
        others = others[~others["engine"].str.startswith(engine)]
        TABLE.parent.mkdir(parents=True, exist_ok=True)
        pd.concat([others.reindex(columns=table.columns), table]).astype({"finished": "Int64"}).to_csv(TABLE, index=False)
        fitted.cache_clear()
    costs = SchedulingCosts(engine)
    told = np.array([sum(costs.seconds(*row[1:8])) for row in table.itertuples()]) * 1e3
    taken = (table["queue_ms"] + table["engine_ms"]).to_numpy()
    error = np.abs(told - taken) / taken
    by_kind = {kind: timing.spread((100 * error[table["queue"] == kind]).tolist(), 1) for kind in sorted(table["queue"].unique())}
    steady = table[(table["running"] == 500) & (table["admitted"] == 0) & table["queue"].isin(["fcfs", "not asked"])]
    return {
        "engine": sim.engine_version, "rows": len(table), "fit error, %": by_kind,
        "step at 500 running, FCFS, ms": timing.spread((steady["queue_ms"] + steady["engine_ms"]).tolist()),
    }  # fmt: skip


def _arms(engine: str) -> dict:
    if engine == "sglang":
        from lab.engines.arms import SGLANG_ARMS as found
    else:
        from lab.engines.arms import ARMS as found
    return found


def show(found: dict) -> None:
    print(f"{found['engine']}: {found['rows']} steps measured; error of the fitted costs, %:")
    print(pd.DataFrame(found["fit error, %"]).T.to_string())
    print(f"a step at 500 running, FCFS: {found['step at 500 running, FCFS, ms']['median']} ms")


if __name__ == "__main__":
    timing.main("benchmarks.scheduling_costs", __doc__.splitlines()[0], run, show,
                engine={"choices": list(ARMS), "default": "vllm", "help": "whose scheduler"},
                write={"action": "store_true", "help": "keep the rows in the table that the modelled device charges by"})  # fmt: skip

"""Times engine steps on this machine's CPU, to fit the modelled CPU to some and try it on others.

``python -m benchmarks.cpu_steps [--json] [--write]``: batches of the plan in ``feather.sim.calibration`` on vLLM's real CPU
engine, interleaved, about five minutes; with ``--write`` the rows become ``data/calibration/cpu_steps.csv``.
"""

import time

import numpy as np
import pandas as pd
from tqdm import tqdm

from benchmarks.timing import main
from feather.sim import calibration
from feather.studies import machine
from feather.studies.engine import Engine
from feather.studies.scheduler import ARMS
from feather.workloads import make_prefixes, unshared

REPEATS = 3


def run(write: bool) -> dict:
    engine = Engine("cpu", max_batch=48, max_batched_tokens=16_384)
    lengths = {point.prefix_tokens for point in calibration.plan() if point.groups}
    engine.warm([prefix for length in sorted(lengths) for prefix in make_prefixes(8, length)])
    order, rows = np.random.default_rng(0), []
    points = calibration.plan()
    for repeat in tqdm(range(-1, REPEATS), desc="cpu steps", unit="repeat"):
        for index in order.permutation(len(points)) if repeat >= 0 else range(0, len(points), 8):  # the first is thrown away
            point, seed = points[index], repeat + 1
            if point.groups:
                workload = calibration.workload_of(point, seed)
            else:  # prompts that no earlier run has left in the cache
                workload = unshared(1, point.prefix_tokens, seed=1000 + 100 * repeat + index, decode_tokens=1)
                workload = type(workload)(workload.prompts, warm=True)
            run = engine.run(workload, ARMS["FCFS"])
            steps = run.step_seconds[(run.decode_rows == point.batch) & (run.prefill_tokens == 0)] if point.groups else run.step_seconds[:1]
            if repeat >= 0:
                rows.append({**point._asdict(), "repeat": repeat, "seed": seed, "step_ms": round(float(np.median(steps)) * 1e3, 4)})
    l3 = int(machine.cache_sizes()["L3"].rstrip("K")) * 1024
    table = pd.DataFrame(rows).assign(l3_bytes=l3, model="tiny-llama", device=machine.device("cpu"), engine=machine.engine_version(),
                                      revision=machine.revision(), time=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))  # fmt: skip
    if write:
        calibration.STEPS.parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(calibration.STEPS, index=False)
    spread = table.groupby(["batch", "groups", "prefix_tokens", "rows"])["step_ms"].agg(lambda ms: (ms.max() - ms.min()) / ms.median())
    return {"rows": len(table), "points": len(points), "median range over the repeats, %": round(100 * float(spread.median()), 1)}


def show(found: dict) -> None:
    print(", ".join(f"{name} {value}" for name, value in found.items()))


if __name__ == "__main__":
    main("benchmarks.cpu_steps", __doc__.splitlines()[0], run, show, write={"action": "store_true", "help": "keep the rows as the table that the modelled CPU is fitted to"})

"""Times engine steps on this machine's CPU, to fit the modelled CPU to some and try it on others.

``python -m benchmarks.cpu_steps [--json] [--write]``: batches of the plan in ``lab.model.calibration`` on vLLM's real CPU
engine, interleaved, about ten minutes. A run during which other programs took more than 3 % of the cores is made again; with ``--write`` the rows become ``data/calibration/cpu_steps.csv``.
"""

import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from benchmarks.timing import main
from lab import machine
from lab.engines import Engine, make_engine
from lab.engines.arms import ARMS
from lab.model import calibration
from lab.workloads import make_prefixes, unshared

REPEATS = 3  # undisturbed runs of every point
FOREIGN = 0.03  # share of the cores that other programs may take while a point runs; else it is run again later
LIMIT = 720  # seconds for all of it


def run(write: bool) -> dict:
    engine = make_engine("cpu", max_batch=48, max_batched_tokens=16_384)
    lengths = {point.prefix_tokens for point in calibration.plan() if point.groups}
    engine.warm([prefix for length in sorted(lengths) for prefix in make_prefixes(8, length)])
    order, rows, points = np.random.default_rng(0), [], calibration.plan()
    for index in range(0, len(points), 8):  # thrown away
        step_ms(engine, points[index], 0, 0)
    clean, began, tries = np.zeros(len(points), int), time.monotonic(), 0
    with tqdm(total=REPEATS * len(points), desc="cpu steps", unit="run") as bar:
        while clean.min() < REPEATS and time.monotonic() - began < LIMIT:
            for index in order.permutation(np.flatnonzero(clean == clean.min())):
                tries += 1
                busy, own, start = *cpu_seconds(), time.monotonic()
                taken = step_ms(engine, points[index], int(clean[index]) + 1, tries)
                after, own_after = cpu_seconds()
                foreign = (after - busy - (own_after - own)) / (time.monotonic() - start) / os.cpu_count()
                if foreign < FOREIGN:
                    rows.append({**points[index]._asdict(), "repeat": clean[index], "seed": clean[index] + 1, "step_ms": taken,
                                 "foreign": round(foreign, 4)})  # fmt: skip
                    clean[index] += 1
                    bar.update()
                if time.monotonic() - began > LIMIT:
                    break
    l3 = int(machine.cache_sizes()["L3"].rstrip("K")) * 1024
    table = pd.DataFrame(rows).assign(l3_bytes=l3, model="tiny-llama", device=machine.device("cpu"), engine=machine.engine_version(machine.cpu_dtype()),
                                      revision=machine.revision(), time=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))  # fmt: skip
    if write:
        calibration.STEPS.parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(calibration.STEPS, index=False)
    spread = table.groupby(["batch", "groups", "prefix_tokens", "rows"])["step_ms"].agg(lambda ms: (ms.max() - ms.min()) / ms.median())
    return {
        "runs": tries,
        "undisturbed": len(table),
        "points": table.groupby(["batch", "groups", "prefix_tokens", "rows"]).ngroups,
        "median range over the repeats, %": round(100 * float(spread.median()), 1),
    }


def step_ms(engine: Engine, point: calibration.Point, seed: int, run_number: int) -> float:
    """Median time of the point's steps in one run."""
    if point.groups:
        workload = calibration.workload_of(point, seed)
    else:  # a prompt that no earlier run has left in the cache
        workload = replace(unshared(1, point.prefix_tokens, seed=1000 + run_number, decode_tokens=1), warm=True)
    run = engine.run(workload, ARMS["FCFS"])
    steps = run.step_seconds[(run.decode_rows == point.batch) & (run.prefill_tokens == 0)] if point.groups else run.step_seconds[:1]
    return round(float(np.median(steps)) * 1e3, 4)


def cpu_seconds() -> tuple[float, float]:
    """CPU time spent so far by the whole machine (stolen time included) and by this process."""
    fields = [int(field) for field in Path("/proc/stat").read_text(encoding="utf-8").split("\n", 1)[0].split()[1:9]]
    user, nice, system, idle, iowait, irq, softirq, steal = fields
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK"), time.process_time()


def show(found: dict) -> None:
    print(", ".join(f"{name} {value}" for name, value in found.items()))


if __name__ == "__main__":
    main(
        "benchmarks.cpu_steps",
        __doc__.splitlines()[0],
        run,
        show,
        write={"action": "store_true", "help": "keep the rows as the table that the modelled CPU is fitted to"},
    )

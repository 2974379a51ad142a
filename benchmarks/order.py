"""Which relative of the batch should come first: ``python -m benchmarks.order [--json]``.

Least cost (the paper's), or least loss of shared prefix. They differ where a prompt is short: requests that hold only the
system prompt cost nothing, since all their chunks are in the working set, yet each takes the batch's shared prefix up to
that system prompt. So: one system prompt, four documents behind it with 24 requests each, and 32 requests on the system prompt
alone, shuffled, all there at the start, on the real CPU engine, under both policies; ratios to FCFS.
"""

import numpy as np
from tqdm import tqdm

from benchmarks.timing import main
from lab.engines import make_engine
from lab.engines.arms import ARMS, Arm
from lab.policies import Threshold, dotted
from lab.stats import ratio
from lab.workloads import Prompt, Workload, make_prefixes

SYSTEM, DOCUMENT, DOCUMENTS, EACH, SHORT, DECODE, REPEATS = 1024, 6976, 4, 24, 32, 32, 5


def arms() -> list[Arm]:
    feather = [
        Arm(f"{name}, {order}", "feather", {"policy": policy, "order": order, "chunk_size": 64})
        for name, policy in (("never_stop", "never_stop"), ("threshold", dotted(Threshold)))
        for order in ("cost", "tip")
    ]
    return [ARMS["FCFS"], *feather]


def workload(prefixes: list[list[int]], seed: int, salt: int) -> Workload:
    """Structure and order by ``seed``; the suffixes by ``salt`` as well, since an arm must not find those of another in
    the prefix cache."""
    structure = np.random.default_rng(seed)
    suffixes = np.random.default_rng([seed, salt])
    prompts = [
        Prompt(tokens + suffixes.integers(10, 32_000, 80 if group < DOCUMENTS else 20).tolist(), group, DECODE)
        for group, tokens in enumerate(prefixes)
        for _ in range(EACH if group < DOCUMENTS else SHORT)
    ]
    return Workload([prompts[place] for place in structure.permutation(len(prompts))])


def run() -> dict:
    engine = make_engine("cpu", max_batch=32)
    (system,) = make_prefixes(1, SYSTEM, seed=1)
    prefixes = [system + document for document in make_prefixes(DOCUMENTS, DOCUMENT, seed=2)] + [system]
    engine.warm(prefixes)
    found = {arm.name: [] for arm in arms()}
    order = np.random.default_rng(0)
    for repeat in tqdm(range(-1, REPEATS), desc="order", unit="repeat"):  # the first is thrown away
        for index in order.permutation(len(arms())):
            arm = arms()[index]
            metrics = engine.run(workload(prefixes, repeat + 1, index), arm).metrics()
            if repeat >= 0:
                found[arm.name].append({name: value for name, (value, _) in metrics.items()})
    table = {}
    for name, runs in found.items():
        over = ratio([run["throughput"] for run in runs], [run["throughput"] for run in found["FCFS"]])
        table[name] = {
            "over_fcfs": over._asdict(),
            **{metric: round(float(np.median([run[metric] for run in runs])), 3)
               for metric in ("throughput", "groups per batch", "mean batch", "like neighbours")},
        }  # fmt: skip
    return table


def show(found: dict) -> None:
    for name, row in found.items():
        over = row["over_fcfs"]
        print(f"{name:<20}{over['median']:.2f} × FCFS [{over['low']:.2f}, {over['high']:.2f}], "
              f"{row['groups per batch']:.2f} prefixes and {row['mean batch']:.1f} requests a batch")  # fmt: skip


if __name__ == "__main__":
    main("benchmarks.order", __doc__.splitlines()[0], run, show)

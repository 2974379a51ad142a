"""Arms and kernels in steady state: ``python -m benchmarks.steady [--json] [--backend cpu|gpu|sim] [--profile smoke|default|gpu]``.

A closed loop on vLLM's real engine on this CPU (8 groups of 8 000 tokens, 64 clients, batch 32, decode 16 to 48 tokens), and one on modelled GPUs
(a virtual clock); with ``--profile gpu`` one on vLLM's real engine on a GPU, cascade attention off and on. Cells are interleaved on one engine, each run
until the 95 % interval of its throughput is within ± 4 % or its time is up; see ``lab/instrument.py``. ``--cells``, ``--kernel`` and ``--arms`` choose
parts, and ``--seconds`` ends it in time where a machine is lent for minutes.
"""

import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.timing import main
from feather.policies.planner import Planner
from lab.engines import make_engine
from lab.engines.arms import ARMS, DISCIPLINES, arm_of
from lab.engines.engine import Engine
from lab.engines.run import Run
from lab.instrument import Cell, Effort, Taken, drift, measure, ranked_alike
from lab.steady import pooled
from lab.workloads import Loop

MAIN = ("FCFS", "Feather", "Feather (never stop)", "Feather (strict stop)", "Feather (bandit alone)")
MORE = (*MAIN, "oracle (order)", "oracle (stop)", "oracle (stop, largest)", "oracle (stop, gated)", "oracle (stop, gated, largest)")
SORTED = ", rows sorted"


@dataclass(frozen=True)
class Part:
    """Cells that share an engine."""

    backend: str
    engine: dict
    loops: tuple[Loop, ...]
    kernels: tuple[str, ...]
    arms: tuple[str, ...]
    """under every kernel; with ``SORTED`` behind it, one whose rows are sorted"""
    effort: Effort
    paged: tuple[str, ...] = ()
    """under the paged kernel besides"""

    def cells(self) -> list[Cell]:
        return [
            Cell(arm.removesuffix(SORTED), kernel, arm.endswith(SORTED), loop)
            for loop in self.loops
            for kernel in self.kernels
            for arm in (*self.arms, *(self.paged if kernel == "paged" else ()))
        ]


USUAL = Loop()
KERNELS = ("paged", "cascade", "packed")
GPU = {"model": "llama-3-8b", "max_batch": 500}
GPU_LOOP = Loop(8, 10_000, 1000, mean_decode=100)
REAL_GPU = {"model": "llama-3-8b", "max_batch": 256, "max_batched_tokens": 16_384}
REAL_GPU_LOOP = Loop(4, 8000, 512, mean_decode=128)

PROFILES = {
    "smoke": {
        "cpu": Part("cpu", {"max_batch": 32}, (USUAL,), KERNELS, MAIN, Effort(limit=60, turnovers=5), ("FCFS" + SORTED,)),
        "rtx-6000-ada": Part("sim", {"model": "llama-3-8b", "device": "rtx-6000-ada", "max_batch": 64}, (replace(GPU_LOOP, clients=128),),
                             ("paged", "cascade"), ("FCFS", "Feather (never stop)", "Feather (strict stop)"), Effort(limit=1e6, turnovers=3)),
    },
    "default": {
        "cpu": Part("cpu", {"max_batch": 32}, (USUAL,), KERNELS, MORE, Effort(repeats=2, limit=40, turnovers=5, more_repeats=2),
                    ("FCFS" + SORTED, "Feather (never stop)" + SORTED, "Feather (bandit alone)" + SORTED)),
        "cpu, other workloads": Part("cpu", {"max_batch": 32}, (
            replace(USUAL, decode="equal"), replace(USUAL, decode="heavy"), replace(USUAL, zipf=1.0), replace(USUAL, clients=32),
            replace(USUAL, clients=256)), ("paged", "cascade"), MAIN, Effort(limit=30, turnovers=5)),
        "rtx-6000-ada": Part("sim", GPU | {"device": "rtx-6000-ada"}, (GPU_LOOP,), ("paged", "cascade"), MAIN, Effort(limit=1e6, turnovers=5)),
        "h100": Part("sim", GPU | {"device": "h100"}, (GPU_LOOP,), ("paged", "cascade"), MAIN, Effort(limit=1e6, turnovers=5)),
    },
    # vLLM has cascade attention under one model runner, and follows an order of rows under the other.
    "gpu": {
        "stopping": Part("gpu", REAL_GPU, (REAL_GPU_LOOP, replace(REAL_GPU_LOOP, groups=16)), ("cascade", "paged"),
                         ("FCFS", "Feather", "Feather (strict stop)"), Effort(repeats=2, turnovers=2, control_every=12)),
        "order of rows": Part("gpu", REAL_GPU | {"runner": "V2"}, (replace(REAL_GPU_LOOP, groups=16),), ("paged",),
                              ("FCFS", "FCFS" + SORTED, "Feather" + SORTED), Effort(repeats=3, turnovers=2, control_every=12)),
    },
}  # fmt: skip

TOLD = {"decode_tok_s": "decode throughput", "mean_batch": "mean batch", "groups_per_batch": "groups per batch", "like_neighbours": "like neighbours",
        "stopped_share": "stopped", "ttft_median_s": "time to first token, median", "ttft_p99_s": "time to first token, p99",
        "decode_step_ms": "decode step", "cascade_share": "cascade steps", "queue_share": "queue share",
        "between_tokens_median_ms": "time between tokens, median", "between_tokens_p99_ms": "time between tokens, p99", "max_wait_s": "longest wait",
        "settle_s": "settled after", "begin_s": "begin", "transient_tok_s": "throughput, transient", "prefix_hits": "prefix hits",
        "evictions": "evictions"}  # fmt: skip
"""key of a cell → metric of a run; the median over the runs"""


def told(part: Part, device: str, cell: Cell, runs: Sequence[Taken]) -> dict:
    """A cell of the result. ``ci``: the 95 % interval of ``tok_s``; ``ci_share``: half of it over ``tok_s``; ``each``: both of each run; ``thrown_away``: runs
    (``lab.instrument``)."""
    found = [one.found for one in runs]
    mean, half = pooled(found)
    metrics = [run.metrics() for run in found]
    return {
        "backend": part.backend, "device": device, "workload": cell.loop.name, "kernel": cell.kernel, "arm": cell.arm + SORTED * cell.sorted_rows,
        "tok_s": mean, "ci": [mean - half, mean + half], "ci_share": half / mean, "runs": len(runs), "thrown_away": sum(one.again for one in runs),
        "each": [[run.throughput, run.half_width] for run in found], "steady_s": sum(run.run.seconds for run in found),
        **{key: float(np.median([one[metric][0] for one in metrics if metric in one] or [np.nan])) for key, metric in TOLD.items()},
        **({"by_second": [by_second(run.whole) for run in found], "learned": [one.looked for one in runs]} if arm_of(cell.arm).learns else {}),
    }  # fmt: skip


def by_second(run: Run) -> list[int]:
    """Tokens that came in each whole second: where an arm that learns found its way."""
    seconds = max(1, int(run.seconds))
    counts, _ = np.histogram(run.token_times, bins=seconds, range=(0, seconds))
    return counts.tolist()


def learned(engine: Engine) -> dict[str, float]:
    """What the planner of the run just made says of itself; nothing of another policy."""
    scheduler = getattr(engine, "scheduler", None)
    queue = getattr(getattr(scheduler, "real", scheduler), "waiting", None)  # a modelled engine's stands behind another
    policy = getattr(getattr(queue, "former", None), "policy", None)
    if not isinstance(policy, Planner):
        return {}
    return {"plan": policy.plan.name, "experiments": policy.experiments, "changes_of_prices": policy.cost.changes} | policy.told()


def against_fcfs(cells: list[dict]) -> list[dict]:
    """The same cells, each with its throughput and p99 time to first token over those of FCFS, rows in the engine's order, where that was measured."""
    plain = {(cell["workload"], cell["kernel"]): cell for cell in cells if cell["arm"] == "FCFS"}
    found = []
    for cell in cells:
        fcfs = plain.get((cell["workload"], cell["kernel"]))
        ratios = (
            {"throughput_ratio": cell["tok_s"] / fcfs["tok_s"], "p99_ttft_ratio": cell["ttft_p99_s"] / fcfs["ttft_p99_s"]} if fcfs else {}
        )
        found.append(cell | ratios)
    return found


def run_part(part: Part, wanted: Callable[[Cell], bool], until: float) -> dict:
    """``until``: on the clock of ``time.monotonic``, after which no further cell is run."""
    cells = [cell for cell in part.cells() if wanted(cell)]
    if not cells or time.monotonic() > until:
        return {"cells": [], "drift": {}, "repeats": {}}
    engine = make_engine(part.backend, **part.engine)
    taken: dict[Cell, list[Taken]] = defaultdict(list)
    for one in measure(engine, cells, part.effort, look=learned):
        taken[one.cell].append(one)
        if time.monotonic() > until:
            print(f"time is up: {sum(map(len, taken.values()))} runs, {len(taken)} of {len(cells)} cells", file=sys.stderr)
            break
    device = engine.device_name.split(",")[0]
    everything = [one for runs in taken.values() for one in runs]
    return {
        "cells": against_fcfs([told(part, device, cell, runs) for cell, runs in taken.items()]),
        "drift": {cell.name: drift(everything, cell) for cell in taken if any(one.control for one in taken[cell])},
        "repeats": {device: ranked_alike(everything)._asdict()},
    }


def run(backend: str, profile: str, cells: str, kernel: str, arms: str, repeats: int | None, limit: float | None, seconds: float) -> dict:
    until = time.monotonic() + seconds
    names = [name for name in arms.split(";") if name]
    for name in names:
        if name.removesuffix(SORTED) not in (ARMS | DISCIPLINES):
            raise SystemExit(f"--arms {name}: not one of {', '.join(ARMS | DISCIPLINES)}, each perhaps with '{SORTED}' behind it")
    parts = {
        name: part
        for name, part in PROFILES[profile].items()
        if backend in ("all", part.backend) and (not cells or name in cells.split(";"))
    }
    if not parts:
        raise SystemExit(f"--cells {cells}: of {profile} and backend {backend} there are {'; '.join(PROFILES[profile])}")

    def wanted(cell: Cell) -> bool:
        return not kernel or cell.kernel in kernel.split(",")

    found: dict = {"profile": profile, "cells": [], "drift": {}, "repeats": {}}
    for name, part in parts.items():
        part = replace(part, arms=tuple(names), paged=()) if names else part
        effort = part.effort if repeats is None else replace(part.effort, repeats=repeats)
        effort = effort if limit is None else replace(effort, limit=limit)
        told_of = run_part(replace(part, effort=effort), wanted, until)
        found["cells"] += told_of["cells"]
        found["drift"] |= told_of["drift"]
        found["repeats"] |= {f"{name}, {device}": told for device, told in told_of["repeats"].items()}
    return found


def show(found: dict) -> None:
    workload = None
    for cell in sorted(found["cells"], key=lambda cell: (cell["device"], cell["workload"], cell["kernel"])):
        if (cell["device"], cell["workload"], cell["kernel"]) != workload:
            workload = cell["device"], cell["workload"], cell["kernel"]
            print(
                f"\n{cell['device']} · {cell['workload']} · {cell['kernel']}\n{'':38}   tok/s        ttft p99  settled  batch groups  like stopped"
            )
        print(
            f"{cell['arm']:38}{cell['tok_s']:8.0f} ± {100 * cell['ci_share']:3.1f} % {cell['ttft_p99_s']:8.2f} s {cell['settle_s']:7.1f} s "
            f"{cell['mean_batch']:6.1f} {cell['groups_per_batch']:6.2f} {cell['like_neighbours']:5.2f} {cell['stopped_share']:7.2f}"
        )
    for name, share in found["drift"].items():
        print(f"drift of the control over the run: {100 * share:.1f} % ({name})")
    for name, told in found["repeats"].items():
        if told["apart"]:
            print(f"two repeats agree which arm is faster in {told['alike']} of {told['apart']} pairs whose intervals are apart ({name})")


if __name__ == "__main__":
    main(
        "benchmarks.steady",
        __doc__.splitlines()[0],
        run,
        show,
        backend={"default": "all", "choices": ["all", "cpu", "gpu", "sim"]},
        profile={"default": "default", "choices": list(PROFILES)},
        cells={
            "default": "",
            "help": "parts of the profile, with ; between them: "
            + "; ".join(dict.fromkeys(name for of in PROFILES.values() for name in of)),
        },
        kernel={"default": "", "help": "attention kernels, with , between them"},
        arms={"default": "", "help": "arms instead of the profile's, with ; between them"},
        repeats={"type": int, "default": None, "help": "runs of each cell"},
        limit={"type": float, "default": None, "help": "seconds of a run, at most"},
        seconds={
            "type": float,
            "default": float("inf"),
            "help": "after which no further cell is run; one that says too little is run up to three times",
        },
    )

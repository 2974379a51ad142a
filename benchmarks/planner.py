"""The planner against fixed disciplines, simulated: ``python -m benchmarks.planner [--json] [--parts cells,open,change,tails,users]``.

``lab/model/disciplines.py`` plays the real tree and former on a virtual clock, under laws of step time some of which are drawn at random. Disciplines
know no limit on waiting; the planner has the default one. Everything is modelled, steady state, from a cold start, 30 s left out.
Cells leave out at least two turns of FCFS's batch and measure at least six: with 512 rows a turn may take two minutes.

* cells: every law × load; throughput over the best discipline's and over FCFS's.
* open: requests at shares of FCFS's capacity; throughput and p99 time to first token over FCFS's.
* change: groups, lengths or the law change in mid-run; seconds until it is back within 5 % of the best discipline, by all that follows and by the next 10 s.
* tails: targets and weights; what they cost and hold.
* users: what knowing each prefix's share and output lengths is worth.
"""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import numpy as np
from tqdm import tqdm

from benchmarks.timing import main
from feather.plans import ARRIVAL
from feather.policies import Planner, Policy
from feather.rehearsal import Rehearsal
from lab.model.disciplines import DISCIPLINES, LAWS, LOADS, Fixed, Law, Load, Play, drawn_laws, run, with_rate
from lab.studies.frontier import medians, trade, ways

SECONDS, SETTLE, WINDOW = 90.0, 30.0, 5.0
SETTLE_TURNS, TURNS = 2, 6
GOOD = 0.95  # of the best discipline
SEEDS = range(1, 11)
OPEN = ("8 groups", "skewed", "nothing shared", "one group", "batch of 128")
SHARES = (0.5, 0.8, 0.9, 1.05, 1.3)
GPU = ("GPU, paged", "GPU, cascade", "GPU, packed")
DEVICES = (*GPU, "H100, paged", "H100, cascade")
CHANGES: dict[str, tuple[tuple[str, str], tuple[Load, Load]]] = {
    "groups, 8 to 2": (("cascade", "cascade"), (Load(), Load(groups=2, first_group=100))),
    "groups, 64 to 2": (("cascade", "cascade"), (LOADS["64 groups"], Load(groups=2, clients=96, first_group=100))),
    "groups, 2 to 8": (("cascade", "cascade"), (Load(groups=2), Load(first_group=100))),
    "kernel, paged to cascade": (("paged", "cascade"), (Load(), Load())),
    "GPU, paged to cascade": (("GPU, paged", "GPU, cascade"), (Load(), Load())),
    "kernel, cascade to rows alone": (("cascade", "rows alone"), (Load(), Load())),
    "lengths, 16-48 to 64-192": (("cascade", "cascade"), (Load(), Load(decode=(64, 192)))),
    "shared to nothing shared": (("cascade", "cascade"), (Load(), Load(groups=0))),
    "GPU, groups 8 to 64": (("GPU, cascade", "GPU, cascade"), (Load(), Load(groups=64, first_group=100))),
    "GPU, groups 64 to 2": (("GPU, cascade", "GPU, cascade"), (LOADS["64 groups"], Load(groups=2, clients=96, first_group=100))),
}


def fcfs() -> Policy:
    return Fixed(False)


def together(one: Callable, asked: list[tuple], what: str) -> list:
    """``one`` of each, in their order, on all cores: what is played on a virtual clock is not disturbed."""
    with ProcessPoolExecutor() as pool:
        return list(tqdm(pool.map(one, *zip(*asked)), total=len(asked), desc=what))


def lasting(law: Law, load: Load) -> tuple[float, float]:
    """Seconds of a run, and of its beginning that is left out."""
    first = run(law, load, fcfs, SECONDS / 2, SETTLE / 2, order="arrival", saturated_after=0.0)
    turn = load.batch * sum(load.decode) / 2 / first.throughput
    settle = max(SETTLE, SETTLE_TURNS * turn)
    return settle + max(SECONDS - SETTLE, TURNS * turn), settle


def cell(name: str, what: str, seed: int) -> dict:
    """One law, load and seed. ``over_best_unlimited``: with no limit on waiting, as the disciplines have none, where the default one may be the cause."""
    law, load = (LAWS | drawn_laws())[name], LOADS[what]
    seconds, settle = lasting(law, load)
    found = {name: run(law, load, make, seconds, settle, seed=seed) for name, make in DISCIPLINES.items()}
    first = found["FCFS"] = run(law, load, fcfs, seconds, settle, seed=seed, order="arrival", saturated_after=0.0)
    planner = run(law, load, Planner, seconds, settle, seed=seed)
    best = max(found, key=lambda name: found[name].throughput)
    over = planner.throughput / found[best].throughput
    free = run(law, load, Planner, seconds, settle, seed=seed, max_wait=float("inf")).throughput if over < GOOD else planner.throughput
    return {"law": name, "load": what, "seed": seed, "seconds": seconds, "best": best, "plan": planner.agent.plan.name, "rows": planner.rows, "over_best": over,
            "over_best_unlimited": free / found[best].throughput, "over_fcfs": planner.throughput / first.throughput,
            "p99_over_fcfs": planner.p99 / first.p99}  # fmt: skip


def cells(seeds: int) -> dict:
    asked = [(name, what, seed) for name in LAWS | drawn_laws() for what in LOADS for seed in range(1, seeds + 1)]
    return summary(together(cell, asked, "cells"))


def summary(rows: list[dict]) -> dict:
    """What the cells say together; ``rows``: of ``cell``."""
    over, fair = (np.array([row[key] for row in rows]) for key in ("over_best", "over_fcfs"))
    drawn = np.array([row["over_best"] for row in rows if row["law"].startswith("drawn")])
    gpu = np.array([row["over_best"] for row in rows if row["law"] in DEVICES or not row["load"].startswith("batch of")])
    return {"mean": over.mean(), "worst": over.min(), "below_0.95": int((over < GOOD).sum()), "count": len(rows), "worst_over_fcfs": fair.min(),
            "unlimited_below_0.95": int(sum(row["over_best_unlimited"] < GOOD for row in rows)), "drawn_mean": drawn.mean(), "drawn_worst": drawn.min(), "batches_that_the_device_has": {"mean": gpu.mean(), "worst": gpu.min()},
            "cells": rows}  # fmt: skip


def open_loop(name: str, what: str, seeds: int) -> list[dict]:
    law, load, rows = LAWS[name], LOADS[what], []
    capacity = run(law, load, fcfs, 60.0, order="arrival", saturated_after=0.0).throughput / (sum(load.decode) / 2)
    for share in SHARES:
        some = with_rate(load, share * capacity)
        pairs = [(run(law, some, Planner, 120.0, seed=seed), run(law, some, fcfs, 120.0, seed=seed, order="arrival", saturated_after=0.0))
                 for seed in range(1, seeds + 1)]  # fmt: skip
        rows.append({"law": name, "load": what, "share": share,
                     "throughput_ratio": float(np.median([one.throughput / other.throughput for one, other in pairs])),
                     "p99_ratio": float(np.median([one.p99 / other.p99 for one, other in pairs]))})  # fmt: skip
    return rows


def open_loops(seeds: int) -> dict:
    asked = [(name, what, seeds) for name in ("paged", "cascade", "packed", *GPU) for what in OPEN]
    rows = [row for part in together(open_loop, asked, "open loops") for row in part]
    below = [row for row in rows if row["share"] < 1]
    return {"least_throughput_below_capacity": min(row["throughput_ratio"] for row in below), "worst_p99_below_capacity": max(row["p99_ratio"] for row in below),
            "cells": rows}  # fmt: skip


def recovery(laws: tuple[str, str], loads: tuple[Load, Load], seed: int, shift: float = 60.0, end: float = 150.0) -> tuple[float, float]:
    """Seconds after the change until the rest of the run is within 5 % of the best discipline, and until the next 10 s are; all there are if that never is.

    The second is the stricter one for a short drop, which the mean of a long rest hides; the first for a lasting one."""
    law, after = LAWS[laws[1]], loads[1]
    best = max(run(law, after, make, SECONDS, SETTLE, seed=seed).throughput for make in (*DISCIPLINES.values(), fcfs))
    play = Play([(0.0, LAWS[laws[0]]), (shift, law)], [(0.0, loads[0]), (shift, after)], Planner, seed).run(end)
    starts = np.arange(0.0, end - shift - 2 * WINDOW, WINDOW)

    def first(until: Callable[[float], float]) -> float:
        return next((float(start) for start in starts if play.throughput(shift + start, until(shift + start)) >= GOOD * best), end - shift)

    return first(lambda start: end), first(lambda start: start + 2 * WINDOW)


def recovery_of(name: str, seed: int) -> tuple[float, float]:
    return recovery(*CHANGES[name], seed)


def changes(seeds: int) -> dict:
    asked = [(name, seed) for name in CHANGES for seed in list(SEEDS)[:seeds]]
    taken = together(recovery_of, asked, "changes")
    found = {}
    for name in CHANGES:
        rest, soon = zip(*[seconds for (one, _), seconds in zip(asked, taken) if one == name])
        found[name] = {"median_s": float(np.median(rest)), "worst_s": max(rest), "next_10_s_good_median_s": float(np.median(soon)),
                       "next_10_s_good_worst_s": max(soon), "seeds": len(rest)}  # fmt: skip
    return found


def tails(seeds: int) -> dict:
    """Throughput and p99 over FCFS's by target and weight, and Jain's index (notebook 42 draws more of them)."""
    options = {"ttft_slo_over_fcfs": (1.25, 1.5, 2.0), "latency_weight": (0.05, 0.2, 1.0), "fairness_weight": (0.5, 2.0)}
    table = trade(("paged", "cascade", "packed", "GPU, cascade"), ("8 groups", "skewed"), ways(options, fixed=False), seeds, SECONDS)
    rows = medians(table)
    rows = rows.drop(columns="line").rename(columns={"throughput": "throughput_ratio", "p99": "p99_ratio"})
    return {"cells": rows.to_dict("records"), "worst_p99_at_twice": rows[rows["way"] == "ttft_slo_over_fcfs=2"]["p99_ratio"].max()}


class Uninformed(Planner):
    """Takes every prefix to be as frequent, and every output as long, as any."""

    def _begin_round(self, *given, **named) -> None:
        super()._begin_round(*given, **named)
        scene = self._rehearsal.scene
        shares = scene.shares and (sum(scene.shares) / len(scene.shares),) * len(scene.shares)
        mean = (round(float(np.mean(scene.others))),)
        self._rehearsal = Rehearsal(ARRIVAL, scene._replace(shares=shares, lifetimes=(mean,) * len(shares), others=mean), self.cost)


def users(seeds: int) -> dict:
    loads = {"skewed": LOADS["skewed"], "even": LOADS["8 groups"], "two groups decode longer": replace(Load(), longer=(0, 1), long_decode=(96, 288)),
             "skewed, the rare decode longer": replace(Load(skew=1.2), longer=(4, 5, 6, 7), long_decode=(96, 288))}  # fmt: skip
    rows = []
    for law in tqdm(("paged", "cascade", "packed", *GPU), desc="users"):
        for name, load in loads.items():
            with_, without = ([run(LAWS[law], load, make, SECONDS, seed=seed).throughput for seed in range(1, seeds + 1)]
                              for make in (Planner, Uninformed))  # fmt: skip
            rows.append({"law": law, "load": name, "informed_over_uninformed": float(np.median(np.divide(with_, without)))})
    return {"cells": rows, "mean": float(np.mean([row["informed_over_uninformed"] for row in rows]))}


PARTS: dict[str, Callable[[int], dict]] = {"cells": cells, "open": open_loops, "change": changes, "tails": tails, "users": users}


def everything(parts: str, seeds: int) -> dict:
    wanted = parts.split(",") if parts else list(PARTS)
    if unknown := [name for name in wanted if name not in PARTS]:
        raise SystemExit(f"--parts {','.join(unknown)}: choose from {', '.join(PARTS)}")
    return {name: PARTS[name](seeds) for name in wanted}


def show(found: dict) -> None:
    for part, numbers in found.items():
        if not isinstance(numbers, dict):
            continue
        print(f"{part}: " + ", ".join(f"{key} {value:.3g}" for key, value in numbers.items() if isinstance(value, int | float)))
        for row in sorted(numbers.get("cells", ()), key=lambda row: row.get("over_best", 0))[:40]:
            print("   " + "  ".join(f"{key} {value:.2f}" if isinstance(value, float) else f"{value}" for key, value in row.items()))
        for key, value in numbers.items():
            if isinstance(value, dict):
                print(f"   {key}: {value}")


if __name__ == "__main__":
    main(
        "benchmarks.planner", __doc__.splitlines()[0], everything, show,
        parts={"default": "", "help": f"of {','.join(PARTS)}; all by default"},
        seeds={"type": int, "default": 3, "help": "seeds of each cell"},
    )  # fmt: skip

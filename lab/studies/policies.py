"""Stopping policies over a grid of workloads, interleaved, against order of arrival and against an oracle."""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import product

import numpy as np
from tqdm import tqdm

from lab.engines.arms import ARMS, Arm
from lab.stats import Ratio, ratio
from lab.studies.stopping import CLIENTS
from lab.workloads import Workload, even_sizes, grouped, make_prefixes, unshared
from lab.workloads.arrivals import arrivals

DEFAULT, FCFS, NEVER = "Feather", "FCFS", "Feather (never stop)"
CONTROL = "FCFS, again"
ORACLES = ("oracle (stop)", "oracle (order)")
ON_ENGINE = (FCFS, CONTROL, DEFAULT, NEVER, "Feather (threshold)", *ORACLES)
ON_MODEL = (DEFAULT, NEVER, "Feather (bandit alone)", *ORACLES)

GROUPS = (1, 2, 4, 8, 16, 0)  # 0: nothing shared
PREFIXES = (1000, 4000, 8000)
DECODE = (8, 32, 128, (8, 128))
LOADS = (None, 0.7, 1.3)  # closed loop, or so many times what FCFS serves in it


@dataclass(frozen=True)
class Cell:
    """One workload of the grid."""

    groups: int
    """prefix groups; 0: nothing is shared"""
    prefix_tokens: int
    decode_tokens: int | tuple[int, int]
    load: float | None
    """arrivals as a Poisson process at so many times the requests a second that FCFS serves in closed loop; None: closed
    loop, with clients that each send their next request once their last is answered"""

    @property
    def mean_decode(self) -> float:
        return float(np.mean(self.decode_tokens))

    def workload(self, prefixes: list, requests: int, seed: int, requests_per_s: float | None, clients: int) -> Workload:
        if self.groups:
            sizes = even_sizes(requests, self.groups)
            found = grouped(prefixes, sizes, seed, decode_tokens=self.decode_tokens, requests_per_s=requests_per_s)
        else:
            found = unshared(requests, self.prefix_tokens, seed, int(self.mean_decode))
            times = arrivals(np.random.default_rng(seed), requests, requests_per_s)
            found = replace(found, prompts=[replace(prompt, arrival=float(time)) for prompt, time in zip(found.prompts, times)])
        return found if requests_per_s else replace(found, clients=clients)


def sample(count: int, seed: int = 0) -> list[Cell]:
    """``count`` cells of the grid, every number of groups and every load as often as any other, and as far apart otherwise as
    a draw makes them. Without sharing, prompts are of the shortest length: on a cold cache they are all prefill."""
    rng = np.random.default_rng(seed)
    rest = [Cell(0, prefix, decode, None) for prefix, decode in product(PREFIXES, DECODE)]
    cells: list[Cell] = []
    while len(cells) < count:
        at = len(cells)
        chosen = rest[rng.integers(len(rest))]
        groups = GROUPS[at % len(GROUPS)]
        load = LOADS[(2 * at + at // len(GROUPS)) % len(LOADS)]
        cell = replace(chosen, groups=groups, load=load, prefix_tokens=chosen.prefix_tokens if groups else min(PREFIXES))
        if cell not in cells:
            cells.append(cell)
    return cells


class Runner:
    """Runs cells on one engine, real or modelled. ``tokens``: about so many are decoded in each run."""

    def __init__(self, engine, tokens: int, requests: tuple[int, int]):
        self.engine = engine
        self.tokens = tokens
        self.fewest, self.most = requests
        self._prefixes: list = []

    def requests(self, cell: Cell) -> int:
        wanted = round(self.tokens / cell.mean_decode)
        return int(np.clip(wanted, self.fewest, self.most)) if cell.groups else self.fewest

    def measure(self, cell: Cell, names: tuple[str, ...], repeats: int, tell: Callable[[], object]) -> dict[str, list[dict]]:
        """Policy → metrics of each repeat; policies in an order drawn anew for each repeat. ``tell`` is called after each
        run."""
        if cell.groups:
            self._prefixes = make_prefixes(cell.groups, cell.prefix_tokens)
            self.engine.warm(self._prefixes)
        requests = self.requests(cell)
        closed = self._run(cell, requests, ARMS[FCFS], 0, None)  # thrown away, but for FCFS's capacity
        per_s = cell.load and cell.load * requests / closed["wall time"]
        order = np.random.default_rng(len(names))
        names = tuple(name for name in names if cell.groups or name not in ORACLES)
        found: dict[str, list[dict]] = {name: [] for name in names}
        for repeat in range(repeats):
            for index in order.permutation(len(names)):
                arm = ARMS[FCFS if names[index] == CONTROL else names[index]]
                found[names[index]].append(self._run(cell, requests, arm, repeat + 1, per_s))
                tell()
        return found

    def _run(self, cell: Cell, requests: int, arm: Arm, seed: int, requests_per_s: float | None) -> dict:
        workload = cell.workload(self._prefixes, requests, seed, requests_per_s, CLIENTS * self.engine.max_batch)
        return {name: value for name, (value, _) in self.engine.run(workload, arm).metrics().items()}


def over(found: dict[str, list[dict]], policy: str, base: str) -> Ratio:
    return ratio(*([run["throughput"] for run in found[name]] for name in (policy, base)))


def better_oracle(found: dict[str, list[dict]]) -> str:
    return max(ORACLES, key=lambda name: np.median([run["throughput"] for run in found[name]]))


def mean_of(found: dict[str, list[dict]], policy: str, metric: str) -> float:
    return float(np.mean([run[metric] for run in found[policy]]))


def run_cells(runner: Runner, cells: list[Cell], names: tuple[str, ...], repeats: int, title: str) -> Iterator[dict]:
    """One row per cell: what it was, and for each policy its throughput (tok/s) and what part of the steps it held back. Each
    is also written to stderr as soon as it is there, so that a run that is interrupted has not been for nothing."""
    runs = sum(repeats * len([name for name in names if cell.groups or name not in ORACLES]) for cell in cells)
    with tqdm(total=runs, desc=title, unit="run", mininterval=1) as bar:
        for cell in cells:
            found = runner.measure(cell, names, repeats, bar.update)
            row = {**asdict(cell), "requests": runner.requests(cell)}
            for name in found:
                row[name] = {
                    "throughput": [round(run["throughput"], 1) for run in found[name]],
                    "stopped": round(mean_of(found, name, "stopped"), 4),
                    "p99_ttft": round(mean_of(found, name, "time to first token, p99"), 4),
                }
                if FCFS in found and name != FCFS:
                    row[name]["over_fcfs"] = _rounded(over(found, name, FCFS))
            if cell.groups:
                row["better_oracle"] = oracle = better_oracle(found)
                row["over_oracle"] = _rounded(over(found, DEFAULT, oracle))
            row["over_never_stop"] = _rounded(over(found, DEFAULT, NEVER))
            bar.write(json.dumps(row), file=sys.stderr)
            yield row


def _rounded(found: Ratio) -> dict:
    return {name: round(value, 4) for name, value in found._asdict().items()}


def geomean(values) -> float:
    return round(float(np.exp(np.mean(np.log(list(values))))), 4)


def summary(rows: list[dict]) -> dict:
    """The figures by which the default policy is chosen, from the rows of the real engine."""
    shared = [row for row in rows if row["groups"] > 1]
    policies = [name for name in rows[0] if isinstance(rows[0][name], dict) and "over_fcfs" in rows[0][name]]
    return {
        "noise_floor": min(row[CONTROL]["over_fcfs"]["median"] for row in rows),
        "min_ratio_fcfs": min(row[DEFAULT]["over_fcfs"]["high"] for row in rows),
        "geomean_ratio_fcfs": geomean(row[DEFAULT]["over_fcfs"]["median"] for row in rows),
        "geomean_ratio_oracle": geomean(row["over_oracle"]["median"] for row in shared),
        "per_policy": {
            name: {
                "geomean_ratio_fcfs": geomean(row[name]["over_fcfs"]["median"] for row in rows if name in row),
                "min_ratio_fcfs": min(row[name]["over_fcfs"]["high"] for row in rows if name in row),
            }
            for name in policies
        },
        "stop_rate_cpu": round(float(np.mean([row[DEFAULT]["stopped"] for row in shared])), 4),
    }


def modelled_summary(rows: list[dict]) -> dict:
    """The same of the modelled device's rows."""
    shared = [row for row in rows if row["groups"] > 1]
    return {
        "stop_rate": round(float(np.mean([row[DEFAULT]["stopped"] for row in shared])), 4),
        "ratio_never_stop": geomean(row["over_never_stop"]["median"] for row in shared),
        "best_ratio_never_stop": max(row["over_never_stop"]["median"] for row in shared),
        "min_ratio_never_stop": min(row["over_never_stop"]["median"] for row in shared),
        "ratio_oracle": geomean(row["over_oracle"]["median"] for row in shared),
    }


def label(cell: dict) -> str:
    """A cell in a few words."""
    decode = cell["decode_tokens"]
    decode = f"{decode[0]}-{decode[1]}" if isinstance(decode, (tuple, list)) else decode
    load = "closed loop" if cell["load"] is None else f"load {cell['load']:g}"
    sharing = f"{cell['groups']} × {cell['prefix_tokens']}" if cell["groups"] else f"unshared {cell['prefix_tokens']}"
    return f"{sharing}, decode {decode}, {load}"

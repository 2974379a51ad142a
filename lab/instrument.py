"""Steady state, measured: arms and kernels interleaved on one engine, one set of prefixes after the other, each run until its throughput is known well enough.

What makes runs comparable: all find the same prefixes in the prefix cache and nothing of each other, those of one workload and repeat have the same requests but for
suffixes of their own, an adaptive policy starts each run knowing nothing (an arm that is to begin warm says so by its options), and a control recurs, by which a drift of the machine shows. A run
whose interval is too wide to say anything, as where the machine stood still in it, is run again.
"""

import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations, permutations
from math import ceil
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from lab.engines.arms import arm_of
from lab.engines.engine import Engine
from lab.steady import LEAST_TOKENS, Estimate, Steady, Watch, pooled, steady
from lab.workloads import Loop, Workload

_WARM_UP = 3.0  # seconds, at most
_WIDE = 0.25  # half the width of a run's interval, as a share of its throughput, beyond which it says too little: as where the machine stood still
_AGAIN = 2  # times that such a run is repeated
SHORT = 3.0  # seconds, at most, of runs as in smoke: a wide one is not repeated, and an arm that learns has no longer
_FASTEST = 4000.0  # tokens a second, for which requests suffice while an arm learns


@dataclass(frozen=True)
class Rung:
    """An arm under a kernel and an order of rows."""

    arm: str
    kernel: str = "paged"
    sorted_rows: bool = False

    @property
    def rung(self) -> str:
        return f"{self.arm}, {self.kernel}" + (", rows sorted" if self.sorted_rows else "")


@dataclass(frozen=True)
class Cell(Rung):
    """One thing to measure: a workload under an arm, a kernel and an order of rows."""

    loop: Loop = field(default_factory=Loop)
    batch: int | None = None
    """rows, at most; None: as the engine is"""
    label: str = ""
    """what tells it from a cell that is otherwise the same"""

    @property
    def name(self) -> str:
        return f"{self.loop.name}; {self.rung}" + (f", batch {self.batch}" if self.batch else "")


@dataclass(frozen=True)
class Effort:
    """How long a cell is measured."""

    repeats: int = 1
    """runs of each cell, at least"""
    target: float = 0.04
    """half the width of the 95 % interval of the throughput, as a share of it: a run ends there"""
    limit: float = 40.0
    """seconds of a run on the engine's clock, at most"""
    learning: float = 12.0
    """seconds that an arm that learns is given on a real engine before its steady part may begin, beyond ``limit``: the planner settles within 3 to 13
    (``benchmarks.steady``), and a rule that looks for the end of a transient misses one that is as long as the run. Not where runs are short. In an
    open loop all arms are given them where one learns, and none ends before ``limit``: in overload waits grow with time, so that only runs of one
    length can be compared"""
    turnovers: float = 5.0
    """of the whole batch that a run's steady part has at least; a run has at most six times as many"""
    more_repeats: int = 0
    """further runs of the cells whose pooled interval is not within ``target``"""
    control_every: int = 6
    """runs, after which the control recurs"""


class Taken(NamedTuple):
    """One run of a cell."""

    cell: Cell
    repeat: int
    seed: int
    """of the requests; suffixes have another"""
    found: Steady
    control: bool
    """a recurrence of the control, beyond its own repeats"""
    again: int = 0
    """runs of which it is the one with the narrowest interval, less itself"""
    looked: Any = None
    """at the engine, right after that run"""


def measure(engine: Engine, cells: Sequence[Cell], effort: Effort = Effort(), control: Cell | None = None, seed: int = 1,
            desc: str = "steady", look: Callable[[Engine], Any] = lambda engine: None) -> Iterator[Taken]:  # fmt: skip
    """Runs of the cells, one after the other: in each repeat each cell once, in an order drawn anew. While a run is handed out the engine is
    still set as it was for it. ``control``: the first cell by default. ``look``: called after every run. A first run of each kernel is thrown away where the engine warms up.

    Raises ValueError for no cell, or one twice."""
    if not cells or len(set(cells)) < len(cells):
        raise ValueError(f"{len(cells)} cells, {len(set(cells))} different ones: there must be at least one, and each once")
    by_prefixes: dict[tuple, list[Cell]] = defaultdict(list)
    for cell in cells:
        by_prefixes[cell.loop.groups, cell.loop.prefix_tokens].append(cell)
    learns = any(arm_of(cell.arm).learns for cell in cells)
    bench = _Bench(engine, effort, seed, learns, tqdm(total=effort.repeats * len(cells), desc=desc, unit="run", mininterval=1), look)
    with bench.bar:
        for together in by_prefixes.values():
            yield from _interleaved(bench, together, control if control in together else together[0])
    bench.use(cells[0])


def _interleaved(bench: "_Bench", cells: list[Cell], control: Cell) -> Iterator[Taken]:
    effort, order, first = bench.effort, np.random.default_rng(bench.seed), bench.runs
    bench.engine.warm(cells[0].loop.prefixes(), anew=True)
    if bench.engine.warms_up:
        for cell in {cell.kernel: cell for cell in cells}.values():
            bench.warm_up(cell)
    found: dict[Cell, list[Steady]] = defaultdict(list)
    for repeat in range(effort.repeats + effort.more_repeats):
        left = [cell for cell in cells if repeat < effort.repeats or not _known(found[cell], effort.target)]
        if repeat >= effort.repeats:
            bench.bar.total += len(left)
        for number, index in enumerate(order.permutation(len(left))):
            if number and number % effort.control_every == 0 and left[index] != control:
                bench.bar.total += 1
                yield bench.take(control, repeat, True)
            yield (taken := bench.take(left[index], repeat))
            found[left[index]].append(taken.found)
    if bench.runs - first > effort.control_every // 2 and bench.engine.backend != "sim":
        bench.bar.total += 1
        yield bench.take(control, repeat, True)


def _wide(found: Steady) -> bool:
    return found.half_width > _WIDE * found.throughput


def _known(runs: Sequence[Steady], target: float) -> bool:
    mean, half = pooled(runs)
    return half <= target * mean


@dataclass
class _Bench:
    """The engine, and what has been run on it."""

    engine: Engine
    effort: Effort
    seed: int
    learns: bool
    """whether any of the arms does"""
    bar: tqdm
    look: Callable[[Engine], Any] = lambda engine: None
    runs: int = 0

    def seed_of(self, repeat: int) -> int:
        return 1000 * self.seed + repeat

    def workload(self, loop: Loop, requests: int, repeat: int) -> Workload:
        self.runs += 1
        return loop.workload(requests, self.seed_of(repeat), suffixes=1_000_000 * (self.seed + 1) + self.runs)

    def use(self, cell: Cell) -> None:
        if cell.batch and cell.batch != self.engine.max_batch:
            self.engine.use_batch(cell.batch)
        self.engine.use_kernel(cell.kernel, cell.sorted_rows)

    def warm_up(self, cell: Cell) -> None:
        """A run that is thrown away: the first under a kernel also compiles it."""
        self.use(cell)
        workload = self.workload(cell.loop, 2 * self.engine.max_batch, -1)
        self.engine.run(workload, arm_of(cell.arm), lambda token_times: bool(token_times) and token_times[-1] > _WARM_UP)

    @property
    def _lasts(self) -> bool:
        """Whether runs are on a real engine, and long enough for their intervals to say something."""
        return self.effort.limit > SHORT and self.engine.backend != "sim"

    def take(self, cell: Cell, repeat: int, control: bool = False) -> Taken:
        """A run; of one whose interval is too wide, the narrowest of up to three. Its interval decides, not its result."""
        (found, looked), again = self.run(cell, repeat), 0
        while _wide(found) and again < _AGAIN and self._lasts:
            self.bar.write(
                f"{cell.name}: {found.throughput:.0f} tok/s ± {found.half_width:.0f} says too little, run again", file=sys.stderr
            )
            self.bar.total += 1
            both = (found, looked), self.run(cell, repeat)
            (found, looked), again = min(both, key=lambda one: one[0].half_width / one[0].throughput), again + 1
        return Taken(cell, repeat, self.seed_of(repeat), found, control, again, looked)

    def run(self, cell: Cell, repeat: int) -> tuple[Steady, Any]:
        """The run, and what was seen of the engine after it."""
        self.use(cell)
        self.engine.forget()
        loop, effort, rows = cell.loop, self.effort, self.engine.max_batch
        # An estimate goes by the tokens that came until the last request was sent. These suffice up to four times what the engine can serve.
        least = ceil(4 * LEAST_TOKENS / loop.mean_decode)
        longest = effort.learning if self._lasts and self.learns else 0.0
        learned = longest if loop.clients is None or arm_of(cell.arm).learns else 0.0
        requests = (loop.clients or rows) + max(least, int(6 * effort.turnovers * rows)) + ceil(longest * _FASTEST / loop.mean_decode)
        workload = self.workload(loop, requests, repeat)

        def tell(now: float, estimate: Estimate) -> None:
            spread = 100 * estimate.half_width / estimate.mean
            self.bar.set_postfix_str(f"{cell.name}: {estimate.mean:.0f} tok/s ± {spread:.1f} % after {now:.3g} s", refresh=False)

        # Of less than a whole batch's answers the steady part may hold nobody's first token.
        target = effort.target if loop.clients else 0.0
        watch = Watch(int(effort.turnovers * rows * loop.mean_decode), target, effort.limit, tell, rows * loop.mean_decode, learned)
        run = self.engine.run(workload, arm_of(cell.arm), watch)
        found = steady(run, min(learned, (run.closed_until or run.seconds) / 2))  # where the requests did not last, half of it
        self.bar.update()
        return found, self.look(self.engine)


def drift(taken: Sequence[Taken], control: Cell) -> float:
    """By how much the control's throughput varied over its runs: the largest over the smallest, less 1; nan where it ran once."""
    rates = [one.found.throughput for one in taken if one.cell == control]
    return max(rates) / min(rates) - 1 if len(rates) > 1 else float("nan")


class Ranking(NamedTuple):
    """How far two repeats agree about which cell of a workload and kernel is faster."""

    apart: int
    """pairs of cells whose intervals are apart in one repeat, looked at in another"""
    alike: int
    """of those, how many stand in the same order there"""


def ranked_alike(taken: Sequence[Taken]) -> Ranking:
    """Of every two repeats of runs, recurrences of the control left out."""
    found: dict[tuple, dict[Cell, dict[int, Steady]]] = defaultdict(lambda: defaultdict(dict))
    for one in taken:
        if not one.control:
            found[one.cell.loop, one.cell.kernel, one.cell.batch][one.cell][one.repeat] = one.found
    apart = alike = 0
    for cells in found.values():
        for one, other in combinations(cells.values(), 2):
            for here, there in permutations(one.keys() & other.keys(), 2):
                if abs(one[here].throughput - other[here].throughput) > one[here].half_width + other[here].half_width:
                    apart += 1
                    alike += (one[here].throughput > other[here].throughput) == (one[there].throughput > other[there].throughput)
    return Ranking(apart, alike)

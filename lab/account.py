"""The account of why an arm wins: the time of a step as a law of what the step reads, and what follows from it.

The law is fitted to measured steps. Put in place of the engine's kernels under the real scheduler (``FittedEngine``, a virtual clock), it says of any workload
and arm, before it is run, what the throughput will be; and of the simple disciplines with known groups which is best there.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.optimize import nnls

from lab.engines.arms import DISCIPLINES
from lab.engines.modelled import ModelledEngine
from lab.engines.run import Run
from lab.instrument import Cell, Effort, measure
from lab.model.steptime import Batch, StepTime
from lab.steady import Steady, pooled

FEATURES = (
    "a step",
    "a row",
    "keys of a row",
    "distinct prefixes",
    "prefixes read anew",
    "prefill in the step",
    "a prefilled token",
    "its keys",
)
"""What the time of a step is made of; keys and prefixes in thousands of tokens. A prefix is read anew where a row does not share it with the row before."""
_THOUSAND = 1000.0


@dataclass(frozen=True)
class Steps:
    """Steps of one run."""

    kernel: str
    seconds: np.ndarray
    features: np.ndarray
    """a row for each step, a column for each of ``FEATURES``"""
    shared: np.ndarray
    """whether all rows shared their prefix and the kernel computed it once"""


def steps_of(run: Run, cell: Cell) -> Steps:
    """What the steps of a run tell. A step's time is that from the end of the one before, so that what the engine does between two is in it."""
    loop = cell.loop
    prefix, own = loop.prefix_tokens / _THOUSAND, (loop.suffix_tokens + loop.mean_decode / 2) / _THOUSAND
    joined = np.round(run.prefill_tokens / _new_tokens(run))
    rows = run.decode_rows + joined
    neighbours = np.nan_to_num(run.neighbours)
    stretches = np.maximum(run.groups, 1 + (1 - neighbours) * (rows - 1))
    new = run.prefill_tokens
    features = np.column_stack(
        [
            np.ones(len(rows)),
            rows,
            rows * (prefix + own),
            run.groups * prefix + rows * own,
            stretches * prefix + rows * own,
            new > 0,
            new,
            new * prefix,
        ]
    ).astype(float)
    seconds = np.diff(run.step_times)
    shared = run.cascade.astype(bool) if cell.kernel == "cascade" else np.zeros(len(rows), bool)
    return Steps(cell.kernel, seconds, features[1:], shared[1:])


def _new_tokens(run: Run) -> float:
    """Tokens that one request had to prefill: the fewest of any step that prefilled some. What does not fill a block of the cache is prefilled, too."""
    some = run.prefill_tokens[run.prefill_tokens > 0]
    return float(some.min()) if len(some) else 1.0


@dataclass(frozen=True)
class Law:
    """Milliseconds of a step under each kernel: for each (kernel, whether all rows share) a coefficient of each of ``FEATURES``, none negative."""

    milliseconds: dict[tuple[str, bool], np.ndarray]
    noise: dict[str, float]
    """kernel → standard deviation of the logarithm of a step's time around the law"""

    def seconds(self, kernel: str, features: np.ndarray, shared: bool) -> float:
        known = self.milliseconds.get((kernel, shared))
        if known is None:
            known = self.milliseconds[kernel, not shared]
        return float(features @ known) / 1e3


def fit(steps: Iterable[Steps]) -> Law:
    """Non-negative least squares of relative errors; steps further off than three times the median error are left out in a second pass (an interrupt
    of the machine tells nothing of the kernel). Raises ValueError without steps."""
    found: dict[tuple[str, bool], list[tuple[np.ndarray, np.ndarray]]] = {}
    for one in steps:
        for shared in (False, True):
            chosen = one.shared == shared
            if chosen.sum() > len(FEATURES):
                found.setdefault((one.kernel, shared), []).append((one.features[chosen], one.seconds[chosen] * 1e3))
    if not found:
        raise ValueError("a law needs measured steps, and there are none")
    law, noise = {}, {}
    for key, parts in found.items():
        features, times = np.concatenate([one for one, _ in parts]), np.concatenate([one for _, one in parts])
        kept = np.ones(len(times), bool)
        for _ in range(2):
            known, _ = nnls(features[kept] / times[kept, None], np.ones(kept.sum()))
            off = np.abs(np.log(np.maximum(features @ known, 1e-6) / times))
            kept = off <= 3 * max(np.median(off), 0.01)
        law[key] = known
        noise[key[0]] = max(noise.get(key[0], 0.0), float(off[kept].std()))
    return Law(law, noise)


@dataclass
class FittedSteps:
    """Stands where a step model does (``lab.model.steptime.StepModel``)."""

    law: Law
    kernel: str
    rng: np.random.Generator

    def time(self, batch: Batch, host_seconds: float = 0.0) -> StepTime:
        members, on, stretches = batch.members, batch.on_path, batch.stretches / _THOUSAND
        keys = float(batch.contexts.sum()) / _THOUSAND
        alone = float(keys - batch.path_tokens[members].sum() / _THOUSAND)  # what no other row has: own tokens, and prefixes of one row
        anew = alone
        if len(stretches):
            anew += float(stretches @ (on[members[0]] + (on[members[1:]] & ~on[members[:-1]]).sum(0)))
        new = 0 if batch.new is None else int(batch.new[batch.new > 1].sum())
        mean = keys / batch.rows
        features = np.array([1.0, batch.rows, keys, stretches.sum() + alone, anew, float(new > 0), new, new * mean])
        shared = self.kernel == "cascade" and batch.rows > 1 and batch.common_tokens > 0
        seconds = self.law.seconds(self.kernel, features, shared) * np.exp(
            self.law.noise.get(self.kernel, 0.0) * self.rng.standard_normal()
        )
        return StepTime(float(seconds) + host_seconds, 0, float(seconds), host_seconds, 0, 0, 0, 0, 0, shared)


@dataclass
class FittedEngine(ModelledEngine):
    """vLLM's real scheduler on a virtual clock that a fitted law advances; sizes as those of the engine that was measured."""

    law: Law | None = None
    model: str = "tiny-llama"
    max_batch: int = 32
    max_batched_tokens: int = 8192
    block_size: int = 32
    kv_gib: float | None = 4
    scheduling: str = "free"
    _rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0), init=False, repr=False)

    def use_kernel(self, kernel: str, sorted_rows: bool = False) -> None:
        super().use_kernel(kernel, sorted_rows)
        self.steps = FittedSteps(self.law, kernel, self._rng)

    @property
    def device_name(self) -> str:
        return "fitted law of step times"


PREDICTION = Effort(limit=1e6, turnovers=15)


def predict(engine: FittedEngine, cells: Sequence[Cell], effort: Effort = PREDICTION) -> dict[Cell, Steady]:
    """What the law says of the cells."""
    return {one.cell: one.found for one in measure(engine, cells, effort, desc="predicted") if not one.control}


def best_discipline(engine: FittedEngine, cell: Cell, effort: Effort = PREDICTION) -> tuple[str, dict[str, float]]:
    """The arm with known groups (``arms.DISCIPLINES``) that has the highest throughput in simulation, under the workload and kernel of ``cell``, and that of
    each."""
    found = predict(engine, [replace(cell, arm=name) for name in DISCIPLINES], effort)
    rates = {one.arm: steady.throughput for one, steady in found.items()}
    return max(rates, key=lambda name: rates[name]), rates


@dataclass(frozen=True)
class Pair:
    """Two arms in one cell, by what was measured and what was predicted."""

    one: Cell
    other: Cell
    measured: float
    """ratio of throughputs"""
    predicted: float
    apart: bool
    """they differ by more than was asked for, and their intervals do not overlap"""

    @property
    def right(self) -> bool:
        return (self.measured > 1) == (self.predicted > 1)


def pairs(measured: dict[Cell, Sequence[Steady]], predicted: dict[Cell, Steady], least: float = 0.05) -> list[Pair]:
    """All pairs of arms of one workload and kernel; ``apart`` are those that differ by more than ``least``."""
    found = []
    cells = [cell for cell in measured if cell in predicted]
    for place, one in enumerate(cells):
        for other in cells[place + 1 :]:
            if (one.loop, one.kernel, one.batch) != (other.loop, other.kernel, other.batch):
                continue
            (a, half_a), (b, half_b) = pooled(measured[one]), pooled(measured[other])
            apart = max(a, b) / min(a, b) - 1 > least and abs(a - b) > half_a + half_b
            found.append(Pair(one, other, a / b, predicted[one].throughput / predicted[other].throughput, apart))
    return found

"""Ways to form batches, compared over step-time laws on a virtual clock: the real tree and former, and nothing of an engine.

A law is the time of a step as a sum over what the batch holds, in milliseconds. Those named after kernels are near what this project has measured
(the law of a decode step on a CPU; one group against a mixed batch under the cascade kernel; an H100 with 4 groups) or what the modelled GPUs give; the
drawn ones are anybody's guess, and no rule was tuned on them.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from math import inf
from typing import Any

import numpy as np

from feather.cht import ChunkedHashTree
from feather.former import make_former
from feather.options import Options
from feather.policies import Policy
from feather.request import Request

DEPTH = 16  # chunks of a group's prefix
CHUNK = Options.chunk_size  # tokens


@dataclass(frozen=True)
class Law:
    """Milliseconds: per step, per row; per prefix of ``DEPTH`` chunks: read by every row, read once for all, loaded again (rows in their places),
    and what all rows together save where they share it, per row but the first. ``new``: per request admitted; ``prefill``: per step with one;
    ``mixed``: share by which reading keys and values takes longer in such a step; ``again``: per chunk of a prefix that is computed again."""

    step: float
    row: float
    chunk: float = 0.0
    distinct: float = 0.0
    reload: float = 0.0
    tip: float = 0.0
    new: float = 2.0
    prefill: float = 0.0
    mixed: float = 0.0
    again: float = 25.0

    def seconds(self, rows: float, chunks: float, distinct: float, loads: float, tip: float, new: int = 0, again: int = 0) -> float:
        kv = self.chunk * chunks + self.distinct * distinct + self.reload * (loads - distinct) - self.tip * max(0, rows - 1) * tip
        kv *= 1 + self.mixed * (new > 0)
        return 1e-3 * (self.step + self.row * rows + kv / DEPTH + self.new * new + self.prefill * (new > 0) + self.again * again)


LAWS = {
    "paged": Law(3.0, 1.9, distinct=4.1, reload=0.42, new=8, prefill=5),
    "cascade": Law(3.0, 1.1, chunk=0.8, tip=0.75, new=8, prefill=5),
    "packed": Law(1.0, 1.3, distinct=5.5, new=8, prefill=5),
    "GPU, paged": Law(20.0, 0.02, chunk=0.01, distinct=0.05),
    "GPU, cascade": Law(8.0, 0.05, chunk=0.75, tip=0.7),
    "GPU, packed": Law(12.0, 0.05, distinct=0.8),
    "H100, paged": Law(8.0, 0.045, chunk=0.14, reload=0.05, new=3.0, mixed=0.7),
    "H100, cascade": Law(8.0, 0.045, chunk=0.14, reload=0.05, tip=0.136, new=3.0, mixed=0.7),
    "rows alone": Law(4.0, 2.0),
    "many bytes": Law(5.0, 0.2, distinct=6.0),
}


def drawn_laws(count: int = 6, seed: int = 20) -> dict[str, Law]:
    """Laws drawn at random."""
    rng = np.random.default_rng(seed)
    laws = {}
    for index in range(count):
        step, row, chunk, distinct, reload = (
            rng.exponential((8.0, 0.5, 0.4, 3.0, 0.3)) * (rng.random(5) < (1, 0.9, 0.6, 0.6, 0.4))
        ).tolist()
        laws[f"drawn {index}"] = Law(
            0.5 + step, row, chunk, distinct, reload, tip=chunk * float(rng.choice((0.0, 0.5, 0.95))), new=rng.exponential(3.0)
        )
    return laws


@dataclass(frozen=True)
class Load:
    """What comes. ``clients``: of a closed loop; ``rate``: requests a second of an open one."""

    groups: int = 8
    batch: int = 32
    clients: int = 64
    skew: float = 0.0
    nested: int = 0
    """chunks at the top of the prefixes that all groups have in common"""
    decode: tuple[int, int] = (16, 48)
    rate: float = 0.0
    room: float = inf
    """prefixes that the KV cache holds; the least recently used goes first"""
    first_group: int = 0
    """number of the first: other numbers, other prefixes"""
    longer: tuple[int, ...] = ()
    """groups whose requests decode ``long_decode`` tokens"""
    long_decode: tuple[int, int] = (0, 0)


LOADS = {
    "8 groups": Load(),
    "2 groups": Load(groups=2),
    "4 groups": Load(groups=4),
    "64 groups": Load(groups=64, clients=96),
    "skewed": Load(skew=1.2),
    "nested": Load(nested=8),
    "nothing shared": Load(groups=0),
    "one group": Load(groups=1),
    "batch of 128": Load(batch=128, clients=256),
    "batch of 256": Load(groups=16, batch=256, clients=512),
    "batch of 512": Load(groups=16, batch=512, clients=1024, decode=(64, 192)),
    "many clients": Load(clients=256),
    "equal answers": Load(groups=2, batch=256, clients=512, decode=(128, 128)),
    "more than fit": Load(groups=24, batch=64, clients=192, room=16),
}


@dataclass
class Result:
    throughput: float
    """tok/s after ``settle``"""
    early: float
    """tok/s before"""
    p99: float
    """of the time to first token, seconds, of requests that came after ``settle``"""
    fairness: float
    """Jain's index of the groups' mean times to first token"""
    rows: float
    """mean"""
    groups: float
    """mean number in a batch"""
    agent: Policy


def _at(changing, now: float):
    """What holds now of a value, or of several, each with the second from which it holds."""
    return [each for begin, each in changing if begin <= now][-1] if isinstance(changing, list) else changing


class Play:
    """One discipline under one law on a virtual clock.

    Args:
        law: what a step takes; or several, each with the second from which it holds.
        load: what comes; or several in the same way, of the same batch.
        make: the policy.
        order: of the tree.
        noise: standard deviation of the logarithm of a step's time.
        sorted_rows: rows of a group side by side; otherwise they stay where the engine puts them.
    """

    def __init__(self, law: Law | list[tuple[float, Law]], load: Load | list[tuple[float, Load]], make: Callable[[], Policy], seed: int = 1,
                 order: str = "cost", noise: float = 0.03, max_wait: float = -1.0, saturated_after: float = 8.0, sorted_rows: bool = False):  # fmt: skip
        self.now, self.law, self.load, self.noise, self.sorted_rows = 0.0, law, load, noise, sorted_rows
        self.batch = _at(load, 0.0).batch
        self.former = make_former(make(), order, max_wait, saturated_after, self.batch, clock=lambda: self.now, kv_use=self._kv_use)
        self.log: list[tuple[float, float, int, int]] = []
        """of each step: its end, its seconds, rows, groups"""
        self.came: dict[int, float] = {}
        self.first: dict[int, float] = {}
        """when a request got its first token"""
        self.group_of: dict[int, int] = {}
        self._left: dict[int, int] = {}
        self._slots: list[int | None] = [None] * self.batch
        self._cached: dict[int, None] = {}
        """groups whose prefixes the cache holds, the least recently used first"""
        self._rng = np.random.default_rng(seed)
        self._next = 0.0

    def run(self, seconds: float) -> "Play":
        """Until so many virtual seconds have passed."""
        while self.now < seconds:
            self._arrive()
            if self.former.running or self.former.waiting:
                self._step()
            else:
                self.now = self._next
        return self

    def _arrive(self) -> None:
        load = _at(self.load, self.now)
        if not load.rate:
            for _ in range(load.clients - len(self.former.running) - self.former.waiting):
                self._insert(load, self.now)
            return
        while (self._next or self._wait(load)) <= self.now:
            self._insert(load, self._next)
            self._wait(load)

    def _wait(self, load: Load) -> float:
        self._next += self._rng.exponential(1 / load.rate)
        return self._next

    def _insert(self, load: Load, came: float) -> None:
        id_ = len(self.came)
        weights = np.arange(1, max(1, load.groups) + 1.0) ** -load.skew
        group = load.first_group + int(self._rng.choice(len(weights), p=weights / weights.sum())) if load.groups else -1 - id_
        low, high = load.decode if group not in load.longer else load.long_decode
        self.came[id_], self.group_of[id_], self._left[id_] = came, group, int(self._rng.integers(low, high + 1))
        path = [("all", depth) for depth in range(load.nested)] + [(group, depth) for depth in range(load.nested, DEPTH)]
        self.former.insert(Request(id_, path))

    def _step(self) -> None:
        self.former.new_step()
        admitted = again = 0
        while len(self.former.running) < self.batch:
            chosen = self.former.next()
            if chosen is None and not self.former.running:
                chosen = self.former.oldest()
            if chosen is None or not self._fits(self.group_of[chosen]):
                break
            again += self._use(self.group_of[chosen])
            self.former.add_to_batch(chosen)
            self._slots[self._slots.index(None)] = chosen
            admitted += 1
        rows = self._rows()
        elapsed = _at(self.law, self.now).seconds(*self._held(rows), admitted, again) * float(np.exp(self.noise * self._rng.normal()))
        formed = self.former.formed()
        self.now += elapsed
        self.former.ran(formed, len(rows), elapsed, 20 * admitted + CHUNK * again)
        self.log.append((self.now, elapsed, len(rows), len({self.group_of[row] for row in rows})))
        for row in rows:
            self.first.setdefault(row, self.now)
            self._left[row] -= 1
            if not self._left[row]:
                self.former.finish(row)
                self._slots[self._slots.index(row)] = None

    def _running(self) -> set[int]:
        """Groups of the batch."""
        return {self.group_of[row] for row in self.former.running}

    def _kv_use(self) -> float:
        return len(self._running()) / _at(self.load, self.now).room

    def _fits(self, group: int) -> bool:
        running = self._running()
        return group in running or len(running) < _at(self.load, self.now).room

    def _use(self, group: int) -> int:
        """Somebody of this group is admitted. Returns how many chunks of its prefix have to be computed again."""
        load = _at(self.load, self.now)
        if load.room == inf:
            return 0
        found = group in self._cached
        self._cached.pop(group, None)
        self._cached[group] = None
        running = self._running()
        while len(self._cached) > load.room:
            del self._cached[next(each for each in self._cached if each not in running and each != group)]
        return 0 if found else DEPTH - load.nested

    def _rows(self) -> list[int]:
        """The engine moves its last row into a hole."""
        slots = self._slots
        for hole in range(len(self.former.running)):
            if slots[hole] is None:
                last = max(index for index in range(self.batch) if slots[index] is not None)
                slots[hole], slots[last] = slots[last], None
        rows = [row for row in slots if row is not None]
        return sorted(rows, key=self.group_of.__getitem__) if self.sorted_rows else rows

    def _held(self, rows: list[int]) -> tuple[float, float, float, float, float]:
        """Rows, chunks, distinct chunks, loads in the order of the rows, shared tip; requests' own chunks left out."""
        nested = _at(self.load, self.now).nested
        own, groups = DEPTH - nested, [self.group_of[row] for row in rows]
        runs = 1 + sum(before != after for before, after in zip(groups, groups[1:]))
        distinct = len(set(groups))
        return len(rows), len(rows) * DEPTH, nested + own * distinct, nested + own * runs, DEPTH if distinct == 1 else nested

    def throughput(self, begin: float, end: float) -> float:
        """tok/s of the steps that ended between these seconds."""
        part = [(elapsed, rows) for then, elapsed, rows, _ in self.log if begin < then <= end]
        return sum(rows for _, rows in part) / sum(elapsed for elapsed, _ in part) if part else 0.0

    def result(self, settle: float) -> Result:
        """Of what came after ``settle`` seconds."""
        end = self.log[-1][0]
        waits = {
            row: self.first.get(row, end) - came
            for row, came in self.came.items()
            if came > settle and (row in self.first or end - came > 5)
        }
        of_group = [
            np.mean([wait for row, wait in waits.items() if self.group_of[row] == group]) for group in {self.group_of[row] for row in waits}
        ]
        late = np.array([(rows, groups) for then, _, rows, groups in self.log if then > settle])
        return Result(
            self.throughput(settle, end), self.throughput(0.0, settle), float(np.percentile(list(waits.values()) or [0], 99)),
            float(np.sum(of_group) ** 2 / (len(of_group) * np.sum(np.square(of_group)))) if of_group else 1.0,
            float(late[:, 0].mean()), float(late[:, 1].mean()), self.former.policy,
        )  # fmt: skip


def run(law: Law, load: Load, make: Callable[[], Policy], seconds: float = 90.0, settle: float = 30.0, **play: Any) -> Result:
    """One discipline under one law, what came in the first ``settle`` seconds left out. ``play``: further arguments of ``Play``."""
    return Play(law, load, make, **play).run(seconds).result(settle)


class Fixed(Policy):
    """A discipline that knows no law: relatives of what runs go first. ``gated``: a batch takes only the group that it began with; ``refill``: that
    group may join for as long as it comes, otherwise only within the batch's first step. An empty batch begins with the largest group, or the
    oldest request. Nobody is too long passed over."""

    def __init__(self, gated: bool, refill: bool = False, largest: bool = True):
        self.gated, self.refill, self.largest = gated, refill, largest
        self._step, self._began = 0, -1

    def begin_step(self, tree: ChunkedHashTree, max_batch: float, max_wait: float, contended: bool) -> None:
        self._step += 1

    def choose(self, tree: ChunkedHashTree, room: float, waited: float, late: bool) -> Hashable | None:
        best = tree.find_best()
        assert best is not None
        if not tree.active:
            self._began = self._step
            largest = tree.largest_branch()
            return largest.request_id if self.largest and largest else tree.oldest()
        related = tree.related(best)
        if not self.gated:
            return best.request_id
        if related and (self.refill or self._began == self._step):
            return best.request_id
        return None


DISCIPLINES = {
    "never stop": lambda: Fixed(False),
    "strict, exhaustive": lambda: Fixed(True, True),
    "strict, gated": lambda: Fixed(True, False),
}


def with_rate(load: Load, rate: float) -> Load:
    """The same in an open loop."""
    return replace(load, rate=rate, clients=0)

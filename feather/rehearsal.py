"""What a way to form batches would give, found by playing it through on a virtual clock.

The play has as many requests in the system as there are now, prefixes as they have come of late, output lengths as they have been of late, and steps
that cost what has been learned. It starts with a batch whose requests have run for some time: all begun at once, equally long ones would end at once, and
the batch stay of one prefix under plans that in earnest mix it. Whoever finishes is followed by somebody new.
"""

from collections import deque
from heapq import heappop, heappush
from math import inf
from random import Random
from typing import NamedTuple

from feather.cost import Load, StepCost
from feather.plans import ARRIVAL, Plan, may_join, next_of, patience
from feather.prefix_cache import PrefixCache

_LEAST = 600  # requests that are measured, or as many as are in the system
_ALONE = -1  # prefix of a request that shares none


class Scene(NamedTuple):
    """What a play begins with. Chunks are those of the tree."""

    batch: int
    """rows at most"""
    requests: int
    """in the system, running and waiting"""
    shares: tuple[float, ...]
    """of each prefix among the arrivals; what is left of 1 are requests that share with nobody"""
    lifetimes: tuple[tuple[int, ...], ...]
    """of each prefix: steps that its requests have run for"""
    others: tuple[int, ...]
    """steps that any have run for"""
    common: float
    """chunks that all prefixes have in common"""
    depth: float
    """chunks of a prefix, ``common`` included"""
    length: float
    """chunks of a request"""
    prompt_tokens: float
    """computed for a new request whose prefix is in the prefix cache"""
    fair_wait: float
    """seconds that requests wait in order of arrival"""
    max_wait: float
    """seconds (negative: nobody has said) beyond ``fair_wait``, after which a request goes next; at half of them the batch takes nobody else, and it is first in the next"""
    capacity: float = inf
    """chunks that the KV cache holds"""
    chunk_size: int = 1
    """tokens"""


class Rehearsal:
    """One plan played through. ``advance`` until it says that it is done, then read ``throughput``. What is played costs time of the server's: it is counted
    as ``work``, one for each step, for each request that is admitted and for three that wait at the beginning; one takes about 10 µs."""

    def __init__(self, plan: Plan, scene: Scene, cost: StepCost, seed: int = 1):
        self.plan, self.scene, self._cost = plan, scene, cost
        self._random = Random(seed)
        self._ends = [sum(scene.shares[: index + 1]) for index in range(len(scene.shares))]
        self._queues: list[deque[int]] = [deque() for _ in scene.shares]  # arrival numbers
        self._alone: deque[int] = deque()
        self._active = [0] * len(scene.shares)
        self._rows: list[tuple[int, int, int]] = []  # (step of its end, prefix, step of its beginning)
        self._decoded = 0  # tokens, by the rows together
        self._distinct = self._squares = self._singles = 0  # of the batch: prefixes that several may share, sum of their rows², rows alone
        self._cache = PrefixCache(scene.capacity)
        self._branch, self._own = scene.depth - scene.common, scene.length - scene.depth  # chunks: of a prefix, of a request
        # A request's own with the part of a chunk that the tree leaves out.
        self._kept = max(self._own, min(self._own + 1, scene.prompt_tokens / scene.chunk_size))
        # At first the cache holds what is left if one prefix after the other has been served, the largest first: then twice as many wait as do on average.
        for prefix in reversed(range(len(scene.shares))):
            decoded = sum(scene.lifetimes[prefix]) / len(scene.lifetimes[prefix]) / scene.chunk_size
            self._cache.begin(prefix, self._branch)
            self._cache.leave(prefix, self._branch)
            left = 2 * scene.requests * scene.shares[prefix] * (self._kept + decoded)
            self._cache.take(left)
            self._cache.drop(left)
        evicts = self._cache.evicts
        self._again = 0.0  # chunks computed once more in this step
        self._came = 0
        self._now = 0.0
        self._step = 0
        self._finished = 0
        self.began_empty = True
        self._entering = _ALONE  # prefix that was let in last in this step
        self._tokens = 0.0
        self._measured_from = (0.0, 0.0)  # tokens and seconds
        # What is evicted depends on who was served before, and that on who has waited for too long: it takes longer to settle.
        self._settled = max(scene.requests, _LEAST // 2) * (2 if evicts else 1)
        self._end = self._settled + max(scene.requests, _LEAST)
        self._waits: list[tuple[int, float]] = []  # (prefix, seconds)
        self._times: dict[int, float] = {}
        for _ in range(scene.requests):
            self._arrive()
        self.work = scene.requests / 3

    @property
    def throughput(self) -> float:
        """Rows times steps a second, after it has settled."""
        tokens, seconds = self._tokens - self._measured_from[0], self._now - self._measured_from[1]
        return tokens / seconds if seconds > 0 else 0.0

    @property
    def turn(self) -> float:
        """Seconds in which as many requests end as a full batch holds."""
        steps = sum(self.scene.others) / len(self.scene.others)
        return self.scene.batch * steps / self.throughput if self.throughput else 0.0

    @property
    def longest_wait(self) -> float:
        """Seconds in the queue, the 99th percentile of the requests admitted after it has settled."""
        waits = sorted(wait for _, wait in self._waits)
        return waits[int(0.99 * len(waits))] if waits else 0.0

    @property
    def fairness(self) -> float:
        """Jain's index of the prefixes' mean waits (Jain, Chiu and Hawe 1984): 1 where all wait alike, 1 ÷ prefixes where one waits alone."""
        sums: dict[int, tuple[float, int]] = {}
        for prefix, wait in self._waits:
            total, count = sums.get(prefix, (0.0, 0))
            sums[prefix] = total + wait, count + 1
        means = [total / count for total, count in sums.values()]
        squares = sum(mean * mean for mean in means)
        return sum(means) ** 2 / (len(means) * squares) if squares else 1.0

    def advance(self, work: float) -> bool:
        """Play on for so much work; the last step of it may take more. Returns whether the play has ended."""
        enough = self.work + work
        while self._finished < self._end and self.work < enough:
            self.work += 1 + self._play()
        return self._finished >= self._end

    # -- one step ------------------------------------------------------------------------------------------------------

    def _play(self) -> int:
        """Returns how many were admitted."""
        admitted = self._form()
        rows = len(self._rows)
        # Nothing changes but what the rows have decoded until the next row ends, unless more may be admitted.
        steps = max(1, self._rows[0][0] - self._step)
        load = self._load(rows)._replace(decoded=self._decoded + rows * (steps - 1) / 2)
        seconds = self._cost.seconds(load)
        prompt_tokens = admitted * self.scene.prompt_tokens + self._again * self.scene.chunk_size
        first = self._cost.seconds(load, prompt_tokens) if admitted else seconds
        self._again = 0.0
        self._now += first + (steps - 1) * seconds
        self._tokens += steps * rows
        self._cache.take(steps * rows / self.scene.chunk_size)
        self._decoded += steps * rows
        self._step += steps
        while self._rows and self._rows[0][0] <= self._step:
            _, prefix, began = heappop(self._rows)
            self._decoded -= self._step - began
            self._leave(prefix, self._step - began)
            self._arrive()
        return admitted

    def _form(self) -> int:
        before, room = len(self._rows), self.scene.batch
        self._entering, self.began_empty = _ALONE, not before
        gone = self._patience() if self.plan != ARRIVAL else 0.0
        while len(self._rows) < room and (self._alone or any(self._queues)):
            prefix = next_of(self.plan, self, gone)
            if prefix is None or not self._fits(prefix):
                break
            self._entering = prefix
            self._admit(prefix)
            if gone > 0.5:
                gone = self._patience()
        return len(self._rows) - before

    def _fits(self, prefix: int) -> bool:
        begins = prefix == _ALONE or not self._active[prefix]
        return not self._rows or self._kept + self._branch * begins <= self._cache.free

    def _patience(self) -> float:
        if not (self._alone or any(self._queues)):
            return 0.0
        return patience(self._now - self._times[self._first()[0]], self.scene.fair_wait, self.scene.max_wait)

    # -- as a plan looks at it: who waits is told by prefix ------------------------------------------------------------

    @property
    def empty(self) -> bool:
        return not self._rows

    @property
    def prefixes(self) -> int:
        return self._distinct + self._singles

    @property
    def strangers(self) -> bool:
        return self._squares == self._distinct

    def oldest(self) -> int:
        return self._first()[1]

    def nearest(self) -> int:
        relative = self.relative()
        return self.oldest() if relative is None else relative

    def follower(self) -> int | None:
        return self._entering if self._entering != _ALONE and self._queues[self._entering] else None

    def relative(self) -> int | None:
        heads = [(queue[0], index) for index, queue in enumerate(self._queues) if queue and self._active[index]]
        return min(heads)[1] if heads else None

    def largest(self) -> int | None:
        sizes = [(len(queue), -index) for index, queue in enumerate(self._queues) if len(queue) > 1]
        return -max(sizes)[1] if sizes else None

    def joins(self, prefix: int) -> bool:
        rows = len(self._rows)
        count = min(len(self._queues[prefix]) if prefix != _ALONE else 1, self.scene.batch - rows)
        apart = self._cost.seconds(self._load(rows)) + self._cost.seconds(self._pure(count))
        return may_join(rows, count, self._cost.seconds(self._with(prefix, count)), apart)

    def _first(self) -> tuple[int, int]:
        """Arrival number and prefix of the oldest."""
        heads = [(queue[0], index) for index, queue in enumerate(self._queues) if queue]
        if self._alone:
            heads.append((self._alone[0], _ALONE))
        return min(heads)

    # -- who comes and goes --------------------------------------------------------------------------------------------

    def _arrive(self) -> None:
        draw = self._random.random()
        prefix = next((index for index, end in enumerate(self._ends) if draw < end), _ALONE)
        (self._alone if prefix == _ALONE else self._queues[prefix]).append(self._came)
        self._times[self._came] = self._now
        self._came += 1

    def _admit(self, prefix: int) -> None:
        number = (self._alone if prefix == _ALONE else self._queues[prefix]).popleft()
        waited = self._now - self._times.pop(number)
        if self._finished > self._settled:
            self._waits.append((prefix, waited))
        lifetimes = self.scene.others if prefix == _ALONE else self.scene.lifetimes[prefix]
        steps = lifetimes[int(self._random.random() * len(lifetimes))]
        if not self._step:  # it has run for some time
            steps = 1 + int(self._random.random() * steps)
        heappush(self._rows, (self._step + steps, prefix, self._step))
        self._cache.take(self._kept)
        if prefix == _ALONE:
            self._singles += 1
            self._cache.take(self._branch)
        else:
            if not self._active[prefix]:
                self._again += self._cache.begin(prefix, self._branch)
            self._squares += 2 * self._active[prefix] + 1
            self._distinct += not self._active[prefix]
            self._active[prefix] += 1

    def _leave(self, prefix: int, decoded: int) -> None:
        self._finished += 1
        self._cache.drop(self._kept + decoded / self.scene.chunk_size)
        if self._finished == self._settled:
            self._measured_from = (self._tokens, self._now)
        if prefix == _ALONE:
            self._singles -= 1
            self._cache.drop(self._branch)
        else:
            self._active[prefix] -= 1
            if not self._active[prefix]:
                self._cache.leave(prefix, self._branch)
            self._squares -= 2 * self._active[prefix] + 1
            self._distinct -= not self._active[prefix]

    # -- what batches hold ---------------------------------------------------------------------------------------------

    def _load(self, rows: int) -> Load:
        return self._make(rows, self._distinct + self._singles, self._squares + self._singles)

    def _with(self, prefix: int, count: int) -> Load:
        active = self._active[prefix] if prefix != _ALONE else 0
        prefixes = self._distinct + self._singles + (not active)
        return self._make(len(self._rows) + count, prefixes, self._squares + self._singles + 2 * active * count + count * count)

    def _pure(self, count: int) -> Load:
        return self._make(count, 1, count * count)

    def _make(self, rows: int, prefixes: int, squares: int) -> Load:
        common, depth, length = self.scene[5:8]
        own, branch = self._own, self._branch
        tip = length if rows == 1 else depth if prefixes == 1 else common
        return Load(rows, rows * length, common + branch * prefixes + own * rows, common * rows * rows + branch * squares + own * rows, tip)

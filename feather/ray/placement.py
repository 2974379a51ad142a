"""Which replica takes a request: one that holds its prefix and serves its relatives, as long as none gets more than its share.

1. **Bounded load** (arXiv 1608.01350). A replica with (1 + epsilon) × the mean of outstanding requests takes no more: a hot prefix spreads.
2. **Prefix.** Of the others, those that hold the longest part of the request's prefix, as far as their caches are known (mirrored by a bounded
   set of chunk hashes, least recently used first). The more of a replica's load this prefix is, the lower its bound for it, down to
   1 + epsilon ÷ 4: many requests soon pay for a copy elsewhere, a few do not.
3. **Homogeneity.** Of these, the one where most relatives (requests that share that part) run or wait. Where several hold it, and so moving is
   free, only up to a tenth of the bound's slack; beyond that the least loaded.
4. **Load.** Where nobody holds anything, and among equals, the least loaded; then the one that holds least.
"""

import random
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from math import ceil
from typing import Any

_HOT = 0.75  # how much of epsilon a prefix loses that is all of a replica's load
_COPIED = 0.1  # how much of it is left where several hold the prefix


class _Replica:
    def __init__(self, id_: Hashable, capacity: int):
        self.id = id_
        self.capacity = capacity  # chunks
        self.own = self.others = self.load = 0  # outstanding: placed from here, by other routers, and both
        self.told: Any = None  # its last report
        self.seen = float("-inf")  # when that came
        self.held: OrderedDict[Hashable, int] = OrderedDict()  # chunk → relatives placed from here
        self.theirs: dict[Hashable, int] = {}  # chunk → relatives placed by other routers


class Placement:
    """Places requests on replicas; for one thread. No replica's load goes above (1 + ``epsilon``) × the mean; a report counts for ``stale_after``
    seconds of ``clock``; a cache is taken to hold so many ``chunks`` until its replica says how many. Raises ValueError for a value out of range."""

    def __init__(self, epsilon: float = 0.75, stale_after: float = 10.0, chunks: int = 4096, clock: Callable[[], float] = time.monotonic):
        if not (epsilon >= 0 and stale_after > 0 and chunks >= 1):
            raise ValueError(f"epsilon={epsilon} must be at least 0, stale_after={stale_after} above 0, chunks={chunks} at least 1")
        self.epsilon, self.stale_after, self.chunks, self.clock = epsilon, stale_after, chunks, clock
        self._replicas: dict[Hashable, _Replica] = {}
        self._holders: dict[Hashable, dict[Hashable, _Replica]] = {}  # by chunk
        self._placed: dict[Hashable, tuple[_Replica, Sequence[Hashable]]] = {}  # outstanding requests

    def update(self, ids: Collection[Hashable]) -> None:
        """These are the replicas now. What is known of those that stay is kept."""
        for id_ in self._replicas.keys() - set(ids):
            for chunk in self._replicas.pop(id_).held:
                self._let_go(chunk, id_)
        self._replicas |= {id_: _Replica(id_, self.chunks) for id_ in ids if id_ not in self._replicas}

    def report(self, id_: Hashable, told: Mapping[str, Any]) -> None:
        """What a replica says of itself (``feather.ray.statistics``). The same report again is no news."""
        replica = self._replicas.get(id_)
        if replica is None or told == replica.told:
            return
        replica.told, replica.seen, replica.theirs = told, self.clock(), {}
        replica.capacity = told["chunks"] or self.chunks
        replica.others = max(0, told["running"] + told["waiting"] - replica.own)
        replica.load = replica.own + replica.others
        for chunk, relatives in told["prefixes"]:
            if relatives > replica.held.get(chunk, 0):
                replica.theirs[chunk] = relatives - replica.held.get(chunk, 0)
                self._hold(replica, chunk, 0)
        self._evict(replica)

    def choose(self, path: Sequence[Hashable], among: Collection[Hashable]) -> Hashable | None:
        """The replica ``among`` these for a request with such cumulative prefix hashes; None: none that has reported lately may take it."""
        mean = (sum(replica.load for replica in self._replicas.values()) + 1) / max(1, len(self._replicas))
        bound, oldest = ceil((1 + self.epsilon) * mean), self.clock() - self.stale_after
        free = {id_: one for id_, one in self._replicas.items() if one.load < bound and one.seen >= oldest and id_ in among}
        for chunk in reversed(path):
            holders, able = self._holders.get(chunk, {}), []
            for id_, one in holders.items():
                relatives, over = one.held[chunk] + one.theirs.get(chunk, 0), one.load / mean - 1
                slack = self.epsilon * (1 - _HOT * relatives / max(1, one.load))
                if id_ in free and over < slack:
                    gathers = len(holders) == 1 or over < slack * _COPIED
                    able.append((gathers, gathers * relatives, -one.load, random.random(), id_))
            if able:
                return max(able)[-1]
        return min(free.values(), key=lambda one: (one.load, len(one.held), random.random())).id if free else None

    def place(self, request_id: Hashable, path: Sequence[Hashable], id_: Hashable) -> None:
        """A request goes to a replica, or None, wherever it was placed before."""
        self.done(request_id)
        if replica := self._replicas.get(id_):
            self._placed[request_id] = replica, path
            replica.own += 1
            replica.load += 1
            for chunk in reversed(path):  # so that a prefix outlives what follows it
                self._hold(replica, chunk, 1)
            self._evict(replica)

    def done(self, request_id: Hashable, id_: Hashable | None = None) -> None:
        """A request has ended, in whatever way. ``id_``: only if it is placed there."""
        replica, path = self._placed.get(request_id, (None, ()))
        if replica and id_ in (None, replica.id):
            del self._placed[request_id]
            replica.own -= 1
            replica.load -= 1
            for chunk in path:
                replica.held[chunk] -= 1

    def _hold(self, replica: _Replica, chunk: Hashable, more: int) -> None:
        self._holders.setdefault(chunk, {})[replica.id] = replica
        replica.held[chunk] = replica.held.get(chunk, 0) + more
        replica.held.move_to_end(chunk)

    def _evict(self, replica: _Replica) -> None:
        """Down to the capacity, except for what outstanding requests use."""
        for _ in range(len(replica.held) - replica.capacity):
            chunk, users = replica.held.popitem(last=False)
            if users:
                replica.held[chunk] = users
            else:
                self._let_go(chunk, replica.id)

    def _let_go(self, chunk: Hashable, id_: Hashable) -> None:
        del self._holders[chunk][id_]
        if not self._holders[chunk]:
            del self._holders[chunk]

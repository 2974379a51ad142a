"""Every way to route that is compared, with the operations of ``feather.ray.placement.Placement``, by the name that rows and figures give it.

Ray's own rules are here for the modelled replicas; before real ones Ray's own code decides (``lab.routing.router``).
"""

import random
from bisect import bisect
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

import xxhash

from feather.ray.placement import Placement

OURS = "Feather's router"
RAYS = ("round robin", "power of two", "prefix affinity")
"""Ray Serve's own"""


class Rule:
    """Counts what is outstanding where; a subclass chooses."""

    def __init__(self, seed: int = 0):
        self.random = random.Random(seed)
        self.load: dict[Hashable, int] = {}
        self._placed: dict[Hashable, Hashable] = {}

    def update(self, replicas: Collection[Hashable]) -> None:
        self.load = {replica: self.load.get(replica, 0) for replica in replicas}

    def report(self, id_: Hashable, told: Mapping[str, Any]) -> None:
        """Of no use to a rule that goes by what it has sent itself."""

    def choose(self, path: Sequence[Hashable], among: Collection[Hashable] = ()) -> Hashable:
        raise NotImplementedError

    def place(self, request_id: Hashable, path: Sequence[Hashable], id_: Hashable) -> None:
        self._placed[request_id] = id_
        self.load[id_] += 1

    def done(self, request_id: Hashable) -> None:
        place = self._placed.pop(request_id, None)
        if place in self.load:
            self.load[place] -= 1

    def _two(self, among: Sequence[Hashable]) -> Hashable:
        """Power of two choices: of two at random, the less loaded."""
        return min(self.random.sample(list(among), min(2, len(among))), key=self.load.__getitem__)


class RoundRobin(Rule):
    def __init__(self, seed: int = 0):
        super().__init__(seed)
        self._next = 0

    def choose(self, path, among=()):
        self._next += 1
        return list(self.load)[self._next % len(self.load)]


class PowerOfTwo(Rule):
    def choose(self, path, among=()):
        return self._two(self.load)


class DualMap(Rule):
    """Two candidates by two hashes of the prefix (its first chunk), the less loaded of them takes it. Without a prefix: power of two."""

    def choose(self, path, among=()):
        if not path:
            return self._two(self.load)
        replicas, key = list(self.load), str(path[0]).encode()
        first = xxhash.xxh3_64_intdigest(key, seed=1) % len(replicas)
        second = xxhash.xxh3_64_intdigest(key, seed=2) % max(1, len(replicas) - 1)
        return min(replicas[first], replicas[second + (second >= first)], key=self.load.__getitem__) if len(replicas) > 1 else replicas[0]


class PrefixAffinity(Rule):
    """Ray's ``PrefixCacheAffinityRouter`` with its defaults: whoever was sent the longest part of the prefix takes it, whatever else it has;
    of several the less loaded of two. What nobody knows goes to the replica that was sent least."""

    def __init__(self, seed: int = 0):
        super().__init__(seed)
        self._knows: dict[Hashable, dict[Hashable, None]] = {}
        self._sent: dict[Hashable, int] = {}

    def choose(self, path, among=()):
        for chunk in reversed(path):
            if known := self._knows.get(chunk):
                # Below the prefix the tree compares suffixes, which match by chance: of several that know the prefix, any.
                return self.random.choice(list(known))
        least = min(self._sent.get(replica, 0) for replica in self.load)
        return self._two([replica for replica in self.load if self._sent.get(replica, 0) == least])

    def place(self, request_id, path, id_):
        super().place(request_id, path, id_)
        for chunk in path:
            known = self._knows.setdefault(chunk, {})
            self._sent[id_] = self._sent.get(id_, 0) + (id_ not in known)
            known[id_] = None


class Oracle(Rule):
    """Is told the groups and how often each comes: lays them side by side on as many equal shares as there are replicas, and sends a
    request to the least loaded of those that its group reaches. The first chunk of a path names the group; ``weights``: group → share."""

    def __init__(self, weights: Mapping[Hashable, float], seed: int = 0):
        super().__init__(seed)
        self._weights = weights

    def update(self, replicas):
        super().update(replicas)
        whole = sum(self._weights.values())
        edges = [0.0, *accumulate(weight / whole * len(replicas) for weight in self._weights.values())]
        places, ends = list(replicas), list(range(1, len(replicas)))
        self._homes = {
            group: places[bisect(ends, start + 1e-9) : bisect(ends, end - 1e-9) + 1]
            for group, (start, end) in zip(self._weights, pairwise(edges))
        }

    def choose(self, path, among=()):
        homes = self._homes.get(path[0] if path else None) or list(self.load)
        least = min(self.load[home] for home in homes)
        return self.random.choice([home for home in homes if self.load[home] == least])


class Informed(Rule):
    """Knows what every replica really holds and owes, and what a prefix costs: least expected delay, its own and that of those whom computing the
    prefix would hold up. ``look``: a replica and a path → (requests there, whether the prefix is or will be there); ``rows``: of a replica;
    ``prefill``: what a prefix costs, in times of a full batch's service."""

    def __init__(self, rows: int, prefill: float, seed: int = 0):
        super().__init__(seed)
        self.look: Callable[[Hashable, Sequence[Hashable]], tuple[int, bool]]
        self._rows, self._prefill = rows, prefill

    def choose(self, path, among=()):
        def delay(replica: Hashable) -> tuple[float, float]:
            load, there = self.look(replica, path)
            batches = load / self._rows
            return batches + (0.0 if there else self._prefill * (1 + batches)), self.random.random()

        return min(self.load, key=delay)


RULES: dict[str, Callable[..., Any]] = {
    "round robin": RoundRobin,
    "power of two": PowerOfTwo,
    "prefix affinity": PrefixAffinity,
    "DualMap": DualMap,
    OURS: lambda seed=0, **options: Placement(**options),
}

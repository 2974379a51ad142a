"""What every engine's adapter needs between its waiting queue and the batch former: priorities, requests that the engine
passes over, and a watch on decisions that fail or take too long."""

import time
from array import array
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, KeysView
from heapq import heappop, heappush
from operator import attrgetter
from typing import Any

from feather.former import BatchFormer, Formed
from feather.request import Request

_OVERRUNS = 3


class Admission:
    """The requests of an engine, offered to the former as priorities allow.

    A request waits, runs, or is set aside (the engine cannot admit it now, and may bring it back). The former knows those
    that run, and of those that wait the *offered* ones: all of them, or with priorities only those of the best one.

    Args:
        former: forms the batches; not shared.
        by_priority: the best priority that waits (the least number) goes first. A stop never holds it back behind a running request of a
            worse one. A few requests that come while many of a worse one are offered go in order of arrival, since to take those back and
            offer them again would cost time for each.
        decision_budget: seconds that a decision may take. One overrun may be the machine's fault, three in a row are not.

    No mistake of the former or its policy reaches the engine: ``guarded`` keeps an exception, or decisions that exceed their
    budget, in ``failure``. From then on nothing happens here, and the engine must continue by itself.
    """

    def __init__(self, former: BatchFormer, by_priority: bool = False, decision_budget: float = float("inf")):
        self.former = former
        self.failure: str | None = None
        self.stops = 0  # decisions to stop
        self.decision_seconds = 0.0
        self._by_priority = by_priority
        self._decision_budget = decision_budget
        self._overruns = 0  # decisions in a row that took too long
        self._waiting: dict[Hashable, Request] = {}  # in the order in which they began to wait
        self._offered: dict[Hashable, None] = {}  # ids of those of them that the former knows
        self._aside: dict[Hashable, Request] = {}
        self._running: dict[Hashable, Request] = {}
        self._came = 0  # requests so far
        self._classes: dict[int, list[tuple[bool, int, Request]]] = {}  # heaps of those that wait, by priority; some entries have passed
        self._sizes: Counter[int] = Counter()  # how many wait, by priority
        self._class: int | None = None  # priority of the offered ones
        self._places: dict[Hashable, bytes] = {}  # of running requests, in the order by prefix

    @property
    def waiting(self) -> KeysView[Hashable]:
        """Ids of the waiting requests, a set-like view."""
        return self._waiting.keys()

    @property
    def aside(self) -> KeysView[Hashable]:
        """Ids of the requests that were set aside, a set-like view."""
        return self._aside.keys()

    @property
    def running(self) -> KeysView[Hashable]:
        """Ids of the running requests, a set-like view."""
        return self._running.keys()

    def guarded(self, action: Callable, *arguments: Any) -> Any:
        """Call something that involves the former, unless it has failed. Returns None if it has, or fails now."""
        if self.failure is not None:
            return None
        try:
            return action(*arguments)
        except Exception as error:
            self.failure = f"{type(error).__name__}: {error}"
            return None

    # -- what happens to requests ------------------------------------------------------------------------------------

    def insert(self, request: Request) -> None:
        """A new request waits."""
        if request.came is None:
            request.came = self._came
            self._came += 1
        self._wait(request)
        self.former.waits(request)
        if not self._by_priority or request.priority == self._class:  # otherwise it is offered when its priority's turn comes
            self._offer(request)

    def add_to_batch(self, request_id: Hashable) -> None:
        """The engine has admitted a waiting request, whether it was offered or not."""
        if request_id not in self._offered:
            self._offer(self._waiting[request_id])
        del self._offered[request_id]
        self._running[request_id] = self._leave(request_id)
        self.former.add_to_batch(request_id)

    def finish(self, request_id: Hashable) -> None:
        """A running request is gone, for whatever reason."""
        del self._running[request_id]
        self.former.finish(request_id)

    def preempt(self, request_id: Hashable) -> None:
        """A running request waits again."""
        request = self._running.pop(request_id)
        self.former.preempt(request_id)
        self._wait(request)
        self._offered[request_id] = None
        if self._by_priority and request.priority != self._class:
            self._take_back(request_id)

    def remove(self, request_id: Hashable) -> None:
        """A request that waits, or was set aside, is gone."""
        if self._aside.pop(request_id, None) is None:
            self._leave(request_id)
        if request_id in self._offered:
            self._take_back(request_id)

    def set_aside(self, request_id: Hashable) -> None:
        """A waiting request cannot be admitted now, for the engine's own reasons. It keeps its place by arrival."""
        self._aside[request_id] = self._leave(request_id)
        if request_id in self._offered:
            self._take_back(request_id)

    def put_back(self, request_id: Hashable) -> None:
        """A request that was set aside waits again."""
        self.insert(self._aside.pop(request_id))

    # -- the batch ---------------------------------------------------------------------------------------------------

    def next(self, busy: bool) -> Hashable | None:
        """The id of the request to admit next; None: none can be, or the batch is to run as it stands. ``busy``: something runs;
        without it a stop would never end."""
        if self._by_priority and (urgent := self._urgent()) is not None:
            return urgent
        if not self._offered:
            return None
        start, before = time.perf_counter(), self.former.decisions
        request_id = self.former.next()
        taken = time.perf_counter() - start
        decided = self.former.decisions > before
        if decided:
            self.decision_seconds += taken
            self._overruns = self._overruns + 1 if taken > self._decision_budget else 0
        if self._overruns == _OVERRUNS:
            raise TimeoutError(f"{_OVERRUNS} decisions in a row took too long, the last {taken:.3f} s of {self._decision_budget:g} s")
        if request_id is None and not (busy and self._may_stop()):
            request_id = self.former.oldest()
        self.stops += decided and request_id is None
        return request_id

    def formed(self) -> Formed:
        """The step has been scheduled: see ``BatchFormer.formed``."""
        return self.former.formed(len(self._waiting) - len(self._offered))

    def by_prefix(self, request_ids: Iterable[Hashable]) -> list[Hashable]:
        """The same ids, in an order in which running requests of one prefix stand side by side, at every depth; those of equal prefixes, and
        those that are not known here, in the order given."""
        for request_id in self._places.keys() - self._running.keys():
            del self._places[request_id]
        for request_id in self._running.keys() - self._places.keys():
            self._places[request_id] = array("q", map(hash, self._running[request_id].path)).tobytes()
        return sorted(request_ids, key=lambda request_id: self._places.get(request_id, b""))

    def _may_stop(self) -> bool:
        if not self._by_priority or not self._running:
            return True
        return self._waiting[next(iter(self._offered))].priority >= max(request.priority for request in self._running.values())

    def _wait(self, request: Request) -> None:
        self._waiting[request.id] = request
        if self._by_priority:
            heappush(self._classes.setdefault(request.priority, []), (not request.preempted, request.came or 0, request))
            self._sizes[request.priority] += 1

    def _leave(self, request_id: Hashable) -> Request:
        """It waits no longer."""
        request = self._waiting.pop(request_id)
        if self._by_priority:
            self._sizes[request.priority] -= 1
            if not self._sizes[request.priority]:
                del self._sizes[request.priority], self._classes[request.priority]
        return request

    def _offer(self, request: Request) -> None:
        self.former.insert(request)
        self._offered[request.id] = None

    def _take_back(self, request_id: Hashable) -> None:
        del self._offered[request_id]
        self.former.remove(request_id)

    def _urgent(self) -> Hashable | None:
        """See to it that the best priority that waits is offered. Returns who goes next without having been: one of a few that are of a better
        priority than many who are offered."""
        best = min(self._classes, default=None)
        if best is None or best == self._class:
            return None
        heap = self._classes[best]
        while self._waiting.get(heap[0][2].id) is not heap[0][2] or heap[0][0] == heap[0][2].preempted:
            heappop(heap)
        if self._sizes[best] < len(self._offered):
            return heap[0][2].id
        for request_id in list(self._offered):
            self._take_back(request_id)
        self._class = best
        for request in sorted((one for one in self._waiting.values() if one.priority == best), key=attrgetter("came")):
            self._offer(request)
        return None

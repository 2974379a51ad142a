"""The Chunked Hash Tree: which waiting request fits the running batch best, found without walking any tokens.

A node is a cumulative prefix hash (see ``hashing``), its parent the hash before it in any request that has it. Nodes
that running ("active") requests pass through are the *working set*. The deepest node that every active request passes
through is the *shared-prefix tip*. A waiting request's *cost* is its distance from the working set: how many of its
chunks are not in it.

Costs are never stored per request, since one admission changes the cost of every relative at once. Instead each node
keeps a lazy heap of the waiting requests below it, shortest first, and the *frontier* is a lazy heap over the nodes of
the working set: the least of (shortest length below the node − the node's depth) over them *is* the least cost,
because a request reached through a shallower node than its deepest match only looks dearer than it is. "Lazy" means
that what has become stale stays in a heap until it surfaces there, or until it makes up half of it.

With c chunks in a path, n requests waiting and m nodes in the working set (amortised):

==============  ======================  =====================================
operation       cost                    moves
==============  ======================  =====================================
insert          O(c log n)              → waiting
find_best       O(log m + log n)        (nothing)
add_to_batch    O(c (log n + log m))    waiting → active; the tip may move up
finish          O(c)                    active → gone; the tip may move down
preempt         O(c log n)              active → waiting; likewise
remove          O(c)                    waiting → gone
==============  ======================  =====================================
"""

from collections.abc import Hashable, Iterable
from heapq import heapify, heappop, heappush
from itertools import count
from typing import NamedTuple

ORDERS = ("cost", "tip", "arrival")
_SLACK = 16  # stale entries a heap may hold before being stale is measured against its size


class Candidate(NamedTuple):
    """The waiting request to admit next, and what admitting it would do. Depths are in chunks."""

    request_id: Hashable
    cost: int
    """its chunks outside the working set (all of them where it shares nothing, or nothing runs)"""
    tip_before: int
    """depth of the batch's shared-prefix tip as it stands"""
    tip_after: int
    """depth of the tip once it has joined; an empty batch has no tip to lose: then equal to ``tip_before``, 0"""
    sharing: int
    """w: waiting requests, itself included where it does, that pass through the present tip"""


class NodeView(NamedTuple):
    """One node as a picture of the tree needs it."""

    hash: Hashable
    parent: Hashable | None
    """None below the root"""
    active: int
    """active requests through it; the node is in the working set where there is one"""
    waiting: int
    """waiting requests through it"""
    tip: bool
    """whether it is the shared-prefix tip"""


class _Node:
    __slots__ = ("hash", "depth", "active", "waiting", "heap", "frontier")

    def __init__(self, hash_: Hashable, depth: int):
        self.hash = hash_
        self.depth = depth
        self.active = 0  # active requests through this node: its reference count in the working set
        self.waiting = 0  # waiting requests through this node
        self.heap: list[tuple] = []  # (length, arrival, ticket, request), stale entries included
        self.frontier: tuple | None = None  # this node's one valid entry in the tree's frontier

    def shortest(self) -> tuple | None:
        """The entry of the shortest waiting request below, the earliest of several."""
        heap = self.heap
        while heap and heap[0][3].ticket != heap[0][2]:
            heappop(heap)
        return heap[0] if heap else None


class _Request:
    __slots__ = ("id", "path", "arrival", "ticket")

    def __init__(self, id_: Hashable, path: list[_Node], arrival: int):
        self.id = id_
        self.path = path
        self.arrival = arrival
        self.ticket = 0  # of its present wait: heap entries that bear another are stale; 0 = not waiting


class ChunkedHashTree:
    """Waiting and active requests by their prefixes.

    ``order`` says which relative of the batch is best: "cost", the least cost (the paper's), or "tip", the least loss
    of shared-prefix tip and among those the least cost. "arrival" is for telling the order's part from the stopping's: the
    oldest request, always. In the first two, requests that share nothing with the working set come
    after all that do, in order of arrival; the seed of an empty batch is the oldest request; ties go to the earlier
    arrival. A path may be empty (a prompt shorter than a chunk): such a request shares nothing.

    Unknown ids raise KeyError, an id that is already here raises ValueError, and neither changes anything.
    """

    def __init__(self, order: str = "cost"):
        if order not in ORDERS:
            raise ValueError(f"order {order!r} is not one of {', '.join(ORDERS)}")
        self.order = order
        self._nodes: dict[Hashable, _Node] = {}
        self._waiting: dict[Hashable, _Request] = {}
        self._active: dict[Hashable, _Request] = {}
        self._by_arrival: list[tuple] = []  # (arrival, ticket, request), lazy
        self._frontier: list[tuple] = []  # (cost, arrival, ticket, node), lazy
        self._tickets = count(1)
        self._arrivals = count()
        self._working_set = 0  # nodes with an active request
        self._active_chunks = 0  # the sum of the active requests' path lengths
        self._tip = 0
        self._witness: list[_Node] = []  # path of an active request: its first `_tip` nodes lead to the tip

    # -- the operations ------------------------------------------------------------------------------------------

    def insert(self, request_id: Hashable, path: Iterable[Hashable], arrival: int | None = None) -> None:
        """A request starts waiting. ``path`` holds its cumulative prefix hashes, shallowest first; ``arrival`` is
        for one that was here before and keeps its place (see ``remove``)."""
        if request_id in self._waiting or request_id in self._active:
            raise ValueError(f"request {request_id!r} is in the tree already")
        nodes = self._nodes
        chain = []
        for depth, hash_ in enumerate(path, 1):
            node = nodes.get(hash_)
            if node is None:
                node = nodes[hash_] = _Node(hash_, depth)
            chain.append(node)
        request = _Request(request_id, chain, next(self._arrivals) if arrival is None else arrival)
        self._start_waiting(request)

    def find_best(self) -> Candidate | None:
        """The waiting request to admit next, or None when none waits. Changes nothing that can be observed."""
        if not self._waiting:
            return None
        entry = self._best_relative() if self._active and self.order != "arrival" else None
        if entry is None:
            request = self._waiting[self.oldest()]
            path = request.path
            cost = len(path) - _deepest(0, len(path), lambda depth: path[depth - 1].active > 0)
        else:
            request, cost = entry
        tip_after = self._common_with_tip(request.path) if self._active else 0
        return Candidate(request.id, cost, self._tip, tip_after, self.sharing)

    def add_to_batch(self, request_id: Hashable) -> None:
        """A waiting request becomes active; its chunks join the working set."""
        request = self._take(self._waiting, request_id, "waiting")
        self._stop_waiting(request)
        for node in request.path:
            node.active += 1
            if node.active == 1:
                self._working_set += 1
                if node.waiting:
                    self._watch(node)
        if self._active:
            self._move_tip(self._common_with_tip(request.path))
        else:
            self._witness = request.path
            self._tip = len(request.path)
        self._active_chunks += len(request.path)
        self._active[request_id] = request

    def finish(self, request_id: Hashable) -> int:
        """An active request is done and leaves. Returns its arrival number."""
        request = self._take(self._active, request_id, "active")
        self._deactivate(request)
        self._prune(request.path)
        return request.arrival

    def preempt(self, request_id: Hashable) -> None:
        """An active request goes back to waiting, in its old place by arrival."""
        request = self._take(self._active, request_id, "active")
        self._deactivate(request)
        self._start_waiting(request)

    def remove(self, request_id: Hashable) -> int:
        """A waiting request is withdrawn. Returns its arrival number, for ``insert`` should it come back."""
        request = self._take(self._waiting, request_id, "waiting")
        self._stop_waiting(request)
        self._prune(request.path)
        return request.arrival

    # -- what can be asked ---------------------------------------------------------------------------------------

    @property
    def active(self):
        """The ids of the active requests, a set-like view."""
        return self._active.keys()

    @property
    def waiting(self):
        """The ids of the waiting requests, a set-like view."""
        return self._waiting.keys()

    def oldest(self) -> Hashable:
        """The id of the waiting request that arrived first. Raises LookupError where none waits."""
        if not self._waiting:
            raise LookupError("no request is waiting")
        heap = self._by_arrival
        while heap[0][2].ticket != heap[0][1]:
            heappop(heap)
        return heap[0][2].id

    def arrival(self, request_id: Hashable) -> int:
        """The arrival number of a waiting request: 0 for the first that came, and so on."""
        return self._waiting[request_id].arrival

    def length(self, request_id: Hashable) -> int:
        """Chunks in a waiting request's path."""
        return len(self._waiting[request_id].path)

    def path(self, request_id: Hashable) -> list[Hashable]:
        """The cumulative prefix hashes of an active request, as they were inserted."""
        return [node.hash for node in self._active[request_id].path]

    @property
    def tip_depth(self) -> int:
        """Chunks that all active requests share; 0 for an empty batch."""
        return self._tip

    @property
    def homogeneity(self) -> float:
        """1 − distinct ÷ all chunks of the active requests: 0 where none is shared, near 1 where many share all of theirs."""
        return 1 - self._working_set / self._active_chunks if self._active_chunks else 0.0

    @property
    def sharing(self) -> int:
        """w: waiting requests that pass through the tip; all of them where the tip is the root."""
        return self._witness[self._tip - 1].waiting if self._tip else len(self._waiting)

    def nodes(self) -> list[NodeView]:
        """Every node, parents before their children, siblings by arrival."""
        tip = self._witness[self._tip - 1] if self._tip else None
        views: dict[Hashable, NodeView] = {}
        for request in sorted((*self._waiting.values(), *self._active.values()), key=lambda request: request.arrival):
            parent = None
            for node in request.path:
                views.setdefault(node.hash, NodeView(node.hash, parent, node.active, node.waiting, node is tip))
                parent = node.hash
        return list(views.values())

    # -- waiting requests ----------------------------------------------------------------------------------------

    def _start_waiting(self, request: _Request) -> None:
        ticket = request.ticket = next(self._tickets)
        entry = (len(request.path), request.arrival, ticket, request)
        for node in request.path:
            node.waiting += 1
            heappush(node.heap, entry)
            if node.active and (node.frontier is None or node.heap[0] is entry):
                self._watch(node)
        heappush(self._by_arrival, (request.arrival, ticket, request))
        self._waiting[request.id] = request

    def _stop_waiting(self, request: _Request) -> None:
        request.ticket = 0
        for node in request.path:
            node.waiting -= 1
            if len(node.heap) > 2 * node.waiting + _SLACK:
                node.heap = [entry for entry in node.heap if entry[3].ticket == entry[2]]
                heapify(node.heap)
        if len(self._by_arrival) > 2 * len(self._waiting) + _SLACK:
            self._by_arrival = [entry for entry in self._by_arrival if entry[2].ticket == entry[1]]
            heapify(self._by_arrival)

    # -- the working set, its frontier and its tip ---------------------------------------------------------------

    def _watch(self, node: _Node) -> None:
        """Give a node of the working set its valid entry in the frontier."""
        shortest = node.shortest()
        if shortest is None:
            node.frontier = None
            return
        node.frontier = (shortest[0] - node.depth, shortest[1], next(self._tickets), node)
        heappush(self._frontier, node.frontier)
        self._compact_frontier()

    def _compact_frontier(self) -> None:
        if len(self._frontier) > 2 * self._working_set + _SLACK:
            self._frontier = [entry for entry in self._frontier if entry[3].frontier is entry]
            heapify(self._frontier)

    def _best_relative(self) -> tuple[_Request, int] | None:
        """The best request that shares a chunk with the working set, and its cost."""
        floor = 0
        if self.order == "tip" and self._tip:
            keeper = self._deepest_with_waiting()
            if keeper < self._tip:
                # Nobody waits at the tip: below the last node where somebody does, all lose the same and leave there.
                if not keeper:
                    return None
                node = self._witness[keeper - 1]
                entry = node.shortest()
                return entry[3], entry[0] - node.depth
            floor = self._tip
        frontier = self._frontier
        while frontier:
            top = frontier[0]
            node = top[3]
            if node.frontier is not top:
                heappop(frontier)
                continue
            if node.depth < floor:
                heappop(frontier)
                node.frontier = None  # watched again when the tip moves up to it
                continue
            entry = node.shortest()
            if entry is not None and (entry[0] - node.depth, entry[1]) == top[:2]:
                return entry[3], top[0]
            heappop(frontier)
            self._watch(node)
            frontier = self._frontier
        return None

    def _deactivate(self, request: _Request) -> None:
        self._active_chunks -= len(request.path)
        for node in request.path:
            node.active -= 1
            if not node.active:
                self._working_set -= 1
                node.frontier = None
        self._compact_frontier()
        if not self._active:
            self._witness, self._tip = [], 0
            return
        if self._witness is request.path:
            self._witness = next(iter(self._active.values())).path
        witness, size = self._witness, len(self._active)
        self._tip = _deepest(self._tip, len(witness), lambda depth: witness[depth - 1].active >= size)

    def _move_tip(self, depth: int) -> None:
        if self.order == "tip":
            for node in self._witness[max(depth - 1, 0) : self._tip]:
                if node.frontier is None and node.waiting:
                    self._watch(node)
        self._tip = depth

    def _common_with_tip(self, path: list[_Node]) -> int:
        witness, limit = self._witness, min(self._tip, len(path))
        if limit and path[limit - 1] is witness[limit - 1]:
            return limit
        return _deepest(0, limit, lambda depth: path[depth - 1] is witness[depth - 1])

    def _deepest_with_waiting(self) -> int:
        witness = self._witness
        return _deepest(0, self._tip, lambda depth: witness[depth - 1].waiting > 0)

    # -- bookkeeping ---------------------------------------------------------------------------------------------

    def _take(self, where: dict[Hashable, _Request], request_id: Hashable, state: str) -> _Request:
        request = where.pop(request_id, None)
        if request is None:
            raise KeyError(f"request {request_id!r} is not {state}")
        return request

    def _prune(self, path: list[_Node]) -> None:
        for node in path:
            if not (node.active or node.waiting):
                self._nodes.pop(node.hash, None)


def _deepest(low: int, high: int, holds) -> int:
    """The greatest depth in [low, high] at which ``holds``, given that it holds at ``low`` and at every depth above
    one where it holds (as everything about prefixes does)."""
    while low < high:
        middle = (low + high + 1) // 2
        if holds(middle):
            low = middle
        else:
            high = middle - 1
    return low

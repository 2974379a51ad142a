"""The Chunked Hash Tree: finds the waiting request that fits the running batch best, without walking tokens.

A node is a cumulative prefix hash (see ``hashing``); its parent is the hash before it in any request's path. The nodes that
running ("active") requests pass through are the *working set*. The deepest node that every active request passes through is
the *shared-prefix tip*. The *cost* of a waiting request is the number of its chunks that are not in the working set.

Costs are not stored per request, because one admission changes the cost of every relative at once. Instead, each node keeps
a lazy heap of the waiting requests below it, shortest first, and the *frontier* is a lazy heap over the nodes of the working
set. The least value of (shortest length below the node − the node's depth) over all of them *is* the least cost: a request
that is reached through a shallower node than its deepest match only looks dearer than it is. "Lazy" means that stale entries
stay in a heap until they come to its top, or until they make up half of it.

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

from collections.abc import Callable, Hashable, KeysView
from heapq import heapify, heappop, heappush
from itertools import count
from typing import NamedTuple

from feather.cost import Load
from feather.request import Request

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
    __slots__ = ("hash", "depth", "active", "waiting", "heap", "frontier", "members")

    def __init__(self, hash_: Hashable, depth: int):
        self.hash = hash_
        self.depth = depth
        self.active = 0  # active requests through this node: its reference count in the working set
        self.waiting = 0  # waiting requests through this node
        self.heap: list[tuple] = []  # (length, arrival, ticket, place), stale entries included
        self.frontier: tuple | None = None  # this node's one valid entry in the tree's frontier
        self.members = 0  # waiting requests whose branch this node is

    def shortest(self) -> tuple | None:
        """The entry of the shortest waiting request below, the earliest of several."""
        heap = self.heap
        while heap and heap[0][3].ticket != heap[0][2]:
            heappop(heap)
        return heap[0] if heap else None


class Branch(NamedTuple):
    """Requests that wait and have one prefix in common."""

    request_id: Hashable
    """the first of them to be admitted"""
    depth: int
    """of the prefix, in chunks"""
    waiting: int
    """how many wait"""


class _Place:
    """A request in the tree."""

    __slots__ = ("request", "nodes", "arrival", "ticket", "branch")

    def __init__(self, request: Request, nodes: list[_Node], arrival: int):
        self.request = request
        self.nodes = nodes  # its path
        self.arrival = arrival
        self.ticket = 0  # of its present wait: heap entries with another ticket are stale; 0 = not waiting
        self.branch: _Node | None = None  # while it waits: the deepest node that it shared with any other; None: it shared none


class ChunkedHashTree:
    """Waiting and active requests by their prefixes.

    ``order`` says which request is best. "cost" (the paper's): the one with the least cost. "tip": the one that loses least
    of the shared-prefix tip, and among equals the one with the least cost. "arrival": always the oldest, for telling the effect
    of the order from that of stopping. With "cost" and "tip", requests that share nothing with the working set come after
    all that do, in order of arrival. An empty batch starts with the oldest request. Ties go to the earlier arrival. A request
    with an empty path shares nothing.

    An unknown id raises KeyError, an id that is already here raises ValueError, and neither changes anything.
    """

    def __init__(self, order: str = "cost"):
        if order not in ORDERS:
            raise ValueError(f"order {order!r} is not one of {', '.join(ORDERS)}")
        self.order = order
        self._nodes: dict[Hashable, _Node] = {}
        self._waiting: dict[Hashable, _Place] = {}
        self._active: dict[Hashable, _Place] = {}
        self._by_arrival: list[tuple] = []  # (arrival, ticket, place), lazy
        self._frontier: list[tuple] = []  # (cost, arrival, ticket, node), lazy
        self._tickets = count(1)
        self._arrivals = count()
        self._working_set = 0  # nodes with an active request
        self._active_chunks = 0  # the sum of the active requests' path lengths
        self._squares = 0  # the sum over nodes of active²
        self._branches: list[
            tuple
        ] = []  # (-chunks that the branch would share, members, ticket, node), lazy: branches outside the working set
        self._tip = 0
        self._witness: list[_Node] = []  # path of an active request: its first `_tip` nodes lead to the tip

    # -- the operations ------------------------------------------------------------------------------------------

    def insert(self, request: Request) -> None:
        """A request starts waiting. It is given its arrival number if it has none yet."""
        if request.id in self._waiting or request.id in self._active:
            raise ValueError(f"request {request.id!r} is in the tree already")
        nodes = self._nodes
        chain = []
        for depth, hash_ in enumerate(request.path, 1):
            node = nodes.get(hash_)
            if node is None:
                node = nodes[hash_] = _Node(hash_, depth)
            chain.append(node)
        if request.arrival is None:
            request.arrival = next(self._arrivals)
        self._start_waiting(_Place(request, chain, request.arrival))

    def find_best(self) -> Candidate | None:
        """The waiting request to admit next, or None when none waits. Changes nothing that can be observed."""
        if not self._waiting:
            return None
        entry = self._best_relative() if self._active and self.order != "arrival" else None
        if entry is None:
            place = self._waiting[self.oldest()]
            nodes = place.nodes
            cost = len(nodes) - _deepest(0, len(nodes), lambda depth: nodes[depth - 1].active > 0)
        else:
            place, cost = entry
        tip_after = self._common_with_tip(place.nodes) if self._active else 0
        return Candidate(place.request.id, cost, self._tip, tip_after, self.sharing)

    def add_to_batch(self, request_id: Hashable) -> None:
        """A waiting request becomes active; its chunks join the working set."""
        place = self._take(self._waiting, request_id, "waiting")
        self._stop_waiting(place)
        for node in place.nodes:
            self._squares += 2 * node.active + 1
            node.active += 1
            if node.active == 1:
                self._working_set += 1
                if node.waiting:
                    self._watch(node)
        if self._active:
            self._move_tip(self._common_with_tip(place.nodes))
        else:
            self._witness = place.nodes
            self._tip = len(place.nodes)
        self._active_chunks += len(place.nodes)
        self._active[request_id] = place

    def finish(self, request_id: Hashable) -> Request:
        """An active request is done and leaves the tree. Returns its record."""
        place = self._take(self._active, request_id, "active")
        self._deactivate(place)
        self._prune(place.nodes)
        return place.request

    def preempt(self, request_id: Hashable) -> Request:
        """An active request waits again, in its old place by arrival. Returns its record."""
        place = self._take(self._active, request_id, "active")
        self._deactivate(place)
        self._start_waiting(place)
        return place.request

    def remove(self, request_id: Hashable) -> Request:
        """A waiting request is withdrawn. Returns its record; if it is inserted again, it has its old place by arrival."""
        place = self._take(self._waiting, request_id, "waiting")
        self._stop_waiting(place)
        self._prune(place.nodes)
        return place.request

    # -- what can be asked ---------------------------------------------------------------------------------------

    @property
    def active(self) -> KeysView[Hashable]:
        """The ids of the active requests, a set-like view."""
        return self._active.keys()

    @property
    def waiting(self) -> KeysView[Hashable]:
        """The ids of the waiting requests, a set-like view."""
        return self._waiting.keys()

    def oldest(self) -> Hashable:
        """The id of the waiting request that arrived first. Raises LookupError where none waits."""
        if not self._waiting:
            raise LookupError("no request is waiting")
        heap = self._by_arrival
        while heap[0][2].ticket != heap[0][1]:
            heappop(heap)
        return heap[0][2].request.id

    def request(self, request_id: Hashable) -> Request:
        """The record of a waiting request."""
        return self._waiting[request_id].request

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
        return self.sharing_at(self._tip)

    def sharing_at(self, depth: int) -> int:
        """Waiting requests that pass through the node of that depth on the way to the tip; all of them at 0, the root."""
        return self._witness[depth - 1].waiting if depth else len(self._waiting)

    def nodes(self) -> list[NodeView]:
        """Every node, parents before their children, siblings by arrival."""
        tip = self._witness[self._tip - 1] if self._tip else None
        views: dict[Hashable, NodeView] = {}
        for place in sorted((*self._waiting.values(), *self._active.values()), key=lambda place: place.arrival):
            parent = None
            for node in place.nodes:
                views.setdefault(node.hash, NodeView(node.hash, parent, node.active, node.waiting, node is tip))
                parent = node.hash
        return list(views.values())

    # -- waiting requests ----------------------------------------------------------------------------------------

    def _start_waiting(self, place: _Place) -> None:
        ticket = place.ticket = next(self._tickets)
        entry = (len(place.nodes), place.arrival, ticket, place)
        for node in place.nodes:
            node.waiting += 1
            heappush(node.heap, entry)
            if node.active and (node.frontier is None or node.heap[0] is entry):
                self._watch(node)
        heappush(self._by_arrival, (place.arrival, ticket, place))
        self._waiting[place.request.id] = place
        self._find_branch(place)

    def _stop_waiting(self, place: _Place) -> None:
        place.ticket = 0
        self._set_branch(place, None)
        for node in place.nodes:
            node.waiting -= 1
            if len(node.heap) > 2 * node.waiting + _SLACK:
                node.heap = [entry for entry in node.heap if entry[3].ticket == entry[2]]
                heapify(node.heap)
        if len(self._by_arrival) > 2 * len(self._waiting) + _SLACK:
            self._by_arrival = [entry for entry in self._by_arrival if entry[2].ticket == entry[1]]
            heapify(self._by_arrival)

    # -- branches ------------------------------------------------------------------------------------------------

    def _find_branch(self, place: _Place) -> None:
        """A request has begun to wait. The deepest node that it shares becomes its branch, and that of the one other request which may
        not have shared so deep a node before."""
        nodes = place.nodes
        depth = _deepest(0, len(nodes), lambda depth: nodes[depth - 1].active + nodes[depth - 1].waiting > 1)
        if not depth:
            return
        node = nodes[depth - 1]
        if node.waiting == 2 and not node.members:
            node.shortest()
            for entry in node.heap:  # at most a few, see `_stop_waiting`
                other = entry[3]
                if other is not place and other.ticket == entry[2]:
                    if other.branch is None or other.branch.depth < depth:
                        self._set_branch(other, node)
                    break
        self._set_branch(place, node)

    def _set_branch(self, place: _Place, node: _Node | None) -> None:
        before, place.branch = place.branch, node
        if before is not None:
            before.members -= 1
            self._rank(before)
        if node is not None:
            node.members += 1
            self._rank(node)

    def _rank(self, node: _Node) -> None:
        if node.members:
            heappush(self._branches, (-node.members * node.depth, node.members, next(self._tickets), node))
            if len(self._branches) > 2 * len(self._waiting) + _SLACK:
                ranked = {id(entry[3]): entry for entry in self._branches if entry[3].members == entry[1]}
                self._branches = list(ranked.values())
                heapify(self._branches)

    def largest_branch(self) -> Branch | None:
        """Of the branches with at most half as many active requests as waiting ones, the one whose waiting requests have most chunks of it. None
        where there is none. O((1 + a) log n), amortised, with a larger branches that are active."""
        heap, passed, seen, found = self._branches, [], set(), None
        while heap:
            node = heap[0][3]
            if node.members != heap[0][1] or id(node) in seen:
                heappop(heap)
            elif 2 * node.active > node.members:
                seen.add(id(node))
                passed.append(heappop(heap))
            else:
                entry = node.shortest()
                found = Branch(entry[3].request.id, node.depth, node.members) if entry else None
                break
        for entry in passed:
            heappush(heap, entry)
        return found

    def branch_of(self, request_id: Hashable) -> Branch:
        """The branch of a waiting request, as if that one were its first."""
        place = self._waiting[request_id]
        if place.branch is None:
            return Branch(request_id, len(place.nodes), 1)
        return Branch(request_id, place.branch.depth, place.branch.members)

    def first_through(self, hash_: Hashable) -> Hashable | None:
        """The id of the shortest waiting request, the earliest of several, whose path holds this node; None where there is none."""
        node = self._nodes.get(hash_)
        entry = node.shortest() if node is not None else None
        return entry[3].request.id if entry else None

    def runs(self, mark: Hashable) -> bool:
        """Whether a request runs that is of the branch with this mark (``mark_of``)."""
        node = self._nodes.get(mark)
        return node.active > 0 if node is not None else mark in self._active

    def mark_of(self, request_id: Hashable) -> Hashable:
        """What the members of a waiting request's branch have in common, and no other."""
        branch = self._waiting[request_id].branch
        return request_id if branch is None else branch.hash

    def length_of(self, request_id: Hashable) -> int:
        """Chunks of a waiting request."""
        return len(self._waiting[request_id].nodes)

    def related(self, candidate: Candidate) -> bool:
        """Whether a waiting request shares more than half of its chunks with the working set."""
        return 2 * candidate.cost < len(self._waiting[candidate.request_id].nodes)

    # -- what batches hold ---------------------------------------------------------------------------------------

    def load(self) -> Load:
        """Of the batch as it stands."""
        return Load(len(self._active), self._active_chunks, self._working_set, self._squares, self._tip)

    def load_alone(self, branch: Branch, count: float) -> Load:
        """Of a batch of so many requests of one branch, each as long as its first."""
        length, depth = len(self._waiting[branch.request_id].nodes), branch.depth
        own = count * (length - depth)
        return Load(count, count * length, depth + own, depth * count * count + own, depth if count > 1 else length)

    def load_with(self, branch: Branch, count: float) -> Load:
        """Of the batch once so many requests of the branch have joined."""
        nodes, depth = self._waiting[branch.request_id].nodes, branch.depth
        new, squares = 0, float(self._squares)
        for node in nodes[:depth]:
            if node.active:
                squares += 2 * node.active * count
            else:
                new += 1
        own = count * (len(nodes) - depth)
        tip = min(self._common_with_tip(nodes), depth) if self._active else depth
        chunks = self._active_chunks + count * len(nodes)
        return Load(len(self._active) + count, chunks, self._working_set + new + own, squares + depth * count * count + own, tip)

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

    def _best_relative(self) -> tuple[_Place, int] | None:
        """The best request that shares a chunk with the working set, and its cost."""
        floor = 0
        if self.order == "tip" and self._tip:
            keeper = self._deepest_with_waiting()
            if keeper < self._tip:
                # Nobody waits at the tip. All who wait at the deepest node of its path leave the path there and lose the same.
                node = self._witness[keeper - 1]
                entry = node.shortest() if keeper else None
                return None if entry is None else (entry[3], entry[0] - node.depth)
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

    def _deactivate(self, place: _Place) -> None:
        self._active_chunks -= len(place.nodes)
        for node in place.nodes:
            node.active -= 1
            self._squares -= 2 * node.active + 1
            if not node.active:
                self._working_set -= 1
                node.frontier = None
        self._compact_frontier()
        if not self._active:
            self._witness, self._tip = [], 0
            return
        if self._witness is place.nodes:
            self._witness = next(iter(self._active.values())).nodes
        witness, size = self._witness, len(self._active)
        self._tip = _deepest(self._tip, len(witness), lambda depth: witness[depth - 1].active >= size)

    def _move_tip(self, depth: int) -> None:
        if self.order == "tip":
            for node in self._witness[max(depth - 1, 0) : self._tip]:
                if node.frontier is None and node.waiting:
                    self._watch(node)
        self._tip = depth

    def _common_with_tip(self, nodes: list[_Node]) -> int:
        witness, limit = self._witness, min(self._tip, len(nodes))
        if limit and nodes[limit - 1] is witness[limit - 1]:
            return limit
        return _deepest(0, limit, lambda depth: nodes[depth - 1] is witness[depth - 1])

    def _deepest_with_waiting(self) -> int:
        witness = self._witness
        return _deepest(0, self._tip, lambda depth: witness[depth - 1].waiting > 0)

    # -- bookkeeping ---------------------------------------------------------------------------------------------

    def _take(self, where: dict[Hashable, _Place], request_id: Hashable, state: str) -> _Place:
        place = where.pop(request_id, None)
        if place is None:
            raise KeyError(f"request {request_id!r} is not {state}")
        return place

    def _prune(self, nodes: list[_Node]) -> None:
        for node in nodes:
            if not (node.active or node.waiting):
                self._nodes.pop(node.hash, None)


def _deepest(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """The greatest depth in [low, high] for which ``holds`` is true. It must be true for ``low``, and for every depth that is less
    than one for which it is true (as with everything about prefixes)."""
    while low < high:
        middle = (low + high + 1) // 2
        if holds(middle):
            low = middle
        else:
            high = middle - 1
    return low

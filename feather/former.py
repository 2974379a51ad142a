"""Batch formation without an engine: the tree proposes, the policy decides, stragglers are let go, and nobody is passed
over for ever.

An engine adapter reports what happens to its requests (wait, cancel, start, finish, preempt) and asks ``next``.
"""

import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable

from feather.agent import BatchState, Policy
from feather.cht import ChunkedHashTree

_UNKNOWN = object()


class BatchFormer:
    """Chooses the next request for the batch, or that the batch is best run as it stands.

    **Stragglers.** Decode lengths differ, so a batch that was stopped drains one request at a time, and its last few
    would hold the engine while a full queue waits. Once no more than ``straggler_share`` of the batch's largest size
    is left and the policy still says STOP, the oldest waiting request seeds the next batch beside them. When it starts,
    they are retired from the tree: they run on to their end, but no longer speak for the batch.

    **Fairness.** A request's turn under first come, first served is when as many requests have left the queue as came
    before it. Once that is ``max_wait`` seconds past, the request goes next, whatever its prefix and whatever the policy
    says. What it waits because of its prefix is so bounded, while a queue that is long for everybody is still served in
    the order of the tree. Preempted requests, which had their turn, go before all others, as they do in vLLM.
    """

    def __init__(
        self,
        policy: Policy,
        order: str = "cost",
        straggler_share: float = 0.5,
        max_wait: float = float("inf"),
        clock: Callable[[], float] = time.monotonic,
    ):
        self.tree = ChunkedHashTree(order)
        self.policy = policy
        self.straggler_share = straggler_share
        self.max_wait = max_wait
        self.decisions = 0  # made so far, each asked for any number of times
        self._clock = clock
        self._preempted: dict[Hashable, int] = {}  # waiting again, with their arrival numbers
        self._turns: deque[float] = deque()  # when the requests numbered from `_first_turn` on had their turn
        self._first_turn = 0
        self._retired: dict[Hashable, int] = {}  # running requests that left the tree early, with their arrival number
        self._peak = 0  # largest size of the present batch
        self._next: Hashable | None = _UNKNOWN
        self._seeds_beside_stragglers = False  # what `_next` is the seed of

    # -- what happened ---------------------------------------------------------------------------------------------

    def wait(self, request_id: Hashable, path: Iterable[Hashable], arrival: int | None = None) -> None:
        """A request starts waiting; ``arrival`` as ``cancel`` gave it, for one that was here before."""
        self.tree.insert(request_id, path, arrival)
        if arrival is not None:
            self._came_back()
        self._next = _UNKNOWN

    def cancel(self, request_id: Hashable) -> int:
        """A waiting request is withdrawn. Returns its arrival number, to wait again with."""
        self._next = _UNKNOWN
        self._turns.append(self._clock())
        self._preempted.pop(request_id, None)
        return self.tree.remove(request_id)

    def start(self, request_id: Hashable) -> None:
        """The engine has admitted a waiting request."""
        if self._seeds_beside_stragglers and request_id == self._next:
            for straggler in list(self.tree.active):
                self._retired[straggler] = self.tree.finish(straggler)
            self._peak = 0
        self.tree.add_to_batch(request_id)
        self._preempted.pop(request_id, None)
        self._turns.append(self._clock())
        self._peak = max(self._peak, len(self.tree.active))
        self._next = _UNKNOWN

    def finish(self, request_id: Hashable) -> None:
        """A running request is gone, for whatever reason."""
        if self._retired.pop(request_id, None) is None:
            self.tree.finish(request_id)
            self._batch_shrank()
        self._next = _UNKNOWN

    def preempt(self, request_id: Hashable, path: Iterable[Hashable]) -> None:
        """A running request waits again, before those that have not run yet."""
        arrival = self._retired.pop(request_id, None)
        if arrival is None:
            self.tree.preempt(request_id)
            self._batch_shrank()
        else:
            self.tree.insert(request_id, path, arrival)
        self._preempted[request_id] = self.tree.arrival(request_id)
        self._came_back()
        self._next = _UNKNOWN

    @property
    def running(self) -> set[Hashable]:
        """Ids of all requests that have started and not finished, retired ones included."""
        return self.tree.active | self._retired.keys()

    # -- what to do next -------------------------------------------------------------------------------------------

    def next(self) -> Hashable | None:
        """The id of the request to admit next; None: nobody waits, or the batch is best run as it stands.

        Asking again gives the same answer until something happens, a new step (``new_step``) included.
        """
        if self._next is _UNKNOWN:
            self._seeds_beside_stragglers = False
            self.decisions += 1
            self._next = self._decide()
        return self._next

    def new_step(self) -> None:
        """The engine begins another scheduling step: time has passed, so a stop may be void by now."""
        self._next = _UNKNOWN

    def oldest(self) -> Hashable:
        """The id of the request that has waited longest. Raises LookupError where none waits."""
        return self.tree.oldest()

    def _decide(self) -> Hashable | None:
        if not self.tree.waiting:
            return None
        if self._preempted:
            return min(self._preempted, key=self._preempted.__getitem__)
        if self._oldest_is_overdue():
            return self.tree.oldest()
        candidate = self.tree.find_best()
        if not self.tree.active:
            return candidate.request_id
        size = len(self.tree.active)
        state = BatchState(size, candidate.tip_before - candidate.tip_after, candidate.sharing, len(self.tree.waiting))
        if self.policy.decide(state):
            return candidate.request_id
        if size > self.straggler_share * self._peak:
            return None
        self._seeds_beside_stragglers = True
        return self.tree.oldest()

    def _oldest_is_overdue(self) -> bool:
        number = self.tree.arrival(self.tree.oldest())
        while self._turns and self._first_turn < number:
            self._turns.popleft()
            self._first_turn += 1
        return number <= self._first_turn and bool(self._turns) and self._clock() - self._turns[0] > self.max_wait

    def _came_back(self) -> None:
        """A request that had left the queue is in it again: one turn fewer has been given."""
        if self._turns:
            self._turns.pop()
        else:
            self._first_turn -= 1

    def _batch_shrank(self) -> None:
        if not self.tree.active:
            self._peak = 0

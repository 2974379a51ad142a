"""Batch formation without an engine: the tree proposes, the policy decides, and stragglers are let go.

An engine adapter reports what happens to its requests (wait, cancel, start, finish, preempt) and asks ``next``.
"""

from collections.abc import Hashable, Iterable

from feather.agent import BatchState, Policy
from feather.cht import ChunkedHashTree

_UNKNOWN = object()


class BatchFormer:
    """Chooses the next request for the batch, or that the batch is best run as it stands.

    **Stragglers.** Decode lengths differ, so a batch that was stopped drains one request at a time, and its last few
    would hold the engine while a full queue waits. Once no more than ``straggler_share`` of the batch's largest size
    is left and the policy still says STOP, the rest are retired from the tree: they run on to their end, but no longer
    speak for the batch, and the next batch is seeded beside them.
    """

    def __init__(self, policy: Policy, order: str = "cost", straggler_share: float = 0.5):
        self.tree = ChunkedHashTree(order)
        self.policy = policy
        self.straggler_share = straggler_share
        self._retired: dict[Hashable, int] = {}  # running requests that left the tree early, with their arrival number
        self._peak = 0  # largest size of the present batch
        self._next: Hashable | None = _UNKNOWN

    # -- what happened ---------------------------------------------------------------------------------------------

    def wait(self, request_id: Hashable, path: Iterable[Hashable], arrival: int | None = None) -> None:
        """A request starts waiting; ``arrival`` as ``cancel`` gave it, for one that was here before."""
        self.tree.insert(request_id, path, arrival)
        self._next = _UNKNOWN

    def cancel(self, request_id: Hashable) -> int:
        """A waiting request is withdrawn. Returns its arrival number."""
        self._next = _UNKNOWN
        return self.tree.remove(request_id)

    def start(self, request_id: Hashable) -> None:
        """The engine has admitted a waiting request."""
        self.tree.add_to_batch(request_id)
        self._peak = max(self._peak, len(self.tree.active))
        self._next = _UNKNOWN

    def finish(self, request_id: Hashable) -> None:
        """A running request is gone, for whatever reason."""
        if self._retired.pop(request_id, None) is None:
            self.tree.finish(request_id)
            self._batch_shrank()
        self._next = _UNKNOWN

    def preempt(self, request_id: Hashable, path: Iterable[Hashable]) -> None:
        """A running request waits again, in its old place by arrival."""
        arrival = self._retired.pop(request_id, None)
        if arrival is None:
            self.tree.preempt(request_id)
            self._batch_shrank()
        else:
            self.tree.insert(request_id, path, arrival)
        self._next = _UNKNOWN

    @property
    def running(self) -> set[Hashable]:
        """Ids of all requests that have started and not finished, retired ones included."""
        return self.tree.active | self._retired.keys()

    # -- what to do next -------------------------------------------------------------------------------------------

    def next(self) -> Hashable | None:
        """The id of the request to admit next; None: nobody waits, or the batch is best run as it stands.

        Asking again gives the same answer until something happens.
        """
        if self._next is _UNKNOWN:
            self._next = self._decide()
        return self._next

    def oldest(self) -> Hashable:
        """The id of the request that has waited longest. Raises LookupError where none waits."""
        return self.tree.oldest()

    def _decide(self) -> Hashable | None:
        candidate = self.tree.find_best()
        if candidate is None or not self.tree.active:
            return candidate and candidate.request_id
        size = len(self.tree.active)
        state = BatchState(size, candidate.tip_before - candidate.tip_after, candidate.sharing, len(self.tree.waiting))
        if self.policy.decide(state):
            return candidate.request_id
        if size > self.straggler_share * self._peak:
            return None
        for request_id in list(self.tree.active):
            self._retired[request_id] = self.tree.finish(request_id)
        self._batch_shrank()
        return self.tree.find_best().request_id

    def _batch_shrank(self) -> None:
        if not self.tree.active:
            self._peak = 0

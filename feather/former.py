"""Batch formation without an engine: the policy chooses from the tree, and nobody waits for ever.

An engine's adapter reports what happens to requests (``insert``, ``add_to_batch``, ``finish``, ``preempt``, ``remove``), asks for
the ``next`` one, and reports every step (``formed``, ``ran``).
"""

import time
from collections.abc import Callable, Collection, Hashable
from typing import Any, NamedTuple

from feather.bursts import Bursts
from feather.cht import ChunkedHashTree
from feather.cost import Load
from feather.policies import Policy, Step, Trace
from feather.request import Request
from feather.turns import USUAL_WAIT, Turns

_UNKNOWN: Any = object()


class Formed(NamedTuple):
    """What a scheduled step will tell the policy, kept until its result is there: fields of ``Step``."""

    contended: bool
    load: Load
    admitted: int
    burst: bool
    kv_use: float


def make_former(policy: Policy, *arguments: Any, **named: Any) -> "BatchFormer":
    """A former of the kind that this policy needs; its further arguments are those of ``BatchFormer``."""
    return (policy.former or BatchFormer)(policy, *arguments, **named)


class BatchFormer:
    """Asks its policy for the next request for the batch, or to run the batch as it stands. Only these go past the policy:

    * **Preempted requests** had their turn: they go before all others, as in vLLM.
    * **A burst** (see ``feather.bursts``) is served in order of arrival.

    **Fairness.** The policy is told when the oldest request is ``max_wait`` seconds past its turn under first come, first served
    (``Turns``). This bounds the wait that a prefix causes; a queue that is long for everybody is still served in the policy's order.

    Args:
        policy: chooses.
        order: of the tree, see ``ChunkedHashTree``.
        max_wait: seconds; negative: the policy's own limit, and ``USUAL_WAIT`` where it has none.
        saturated_after: batches; 0: no queue is a burst.
        max_batch: requests that the engine can run at once.
        clock: gives seconds.
        kv_use: gives the share of the KV cache in use; 0 where there is no prefix cache.
        trace: where decisions are written down.
    """

    def __init__(
        self,
        policy: Policy,
        order: str = "cost",
        max_wait: float = float("inf"),
        saturated_after: float = 0.0,
        max_batch: float = float("inf"),
        clock: Callable[[], float] = time.monotonic,
        kv_use: Callable[[], float] = lambda: 0.0,
        trace: Trace | None = None,
    ):
        self.tree = ChunkedHashTree(order)
        self.policy = policy
        self.max_wait = max_wait if max_wait >= 0 else USUAL_WAIT
        self._told_wait = max_wait  # to the policy, which may have a limit of its own
        self.max_batch = max_batch
        self.kv_use = kv_use
        self.trace = trace
        self.decisions = 0  # made so far; one may be asked for several times
        self._clock = clock
        self._turns = Turns(clock)
        self._bursts = Bursts(saturated_after)
        self._came = 0  # requests so far: the next one's arrival number
        self._preempted: dict[Hashable, Request] = {}  # waiting again
        self._elsewhere = 0  # requests that waited after the last step and were not offered to this former
        self._next: Hashable | None = _UNKNOWN
        self._step = 0  # that have run
        self._admitted = 0  # since the last step
        self._began: dict[Hashable, int] = {}  # steps that had run when a running request was admitted
        self._begun = 0  # their sum

    # -- what happened ---------------------------------------------------------------------------------------------

    def insert(self, request: Request) -> None:
        """A request starts waiting. One that was removed before keeps its place by arrival."""
        came_back = request.arrival is not None
        if request.arrival is None:
            request.arrival = self._came
        self.tree.insert(request)
        if came_back:
            self._turns.take_back()
        else:
            self._came += 1
            self.policy.arrived(self.tree, request.id)
        self.waits(request)
        if request.preempted:
            self._preempted[request.id] = request
        self._next = _UNKNOWN

    def waits(self, request: Request) -> None:
        """A request waits from now on, unless it does so already."""
        if request.since is None:
            request.since = self._clock()

    def remove(self, request_id: Hashable) -> Request:
        """A waiting request is withdrawn. Returns its record, to be inserted again should it come back."""
        self._next = _UNKNOWN
        self._turns.give()
        self._preempted.pop(request_id, None)
        self.policy.finished(request_id, 0)
        return self.tree.remove(request_id)

    def add_to_batch(self, request_id: Hashable) -> None:
        """The engine has admitted a waiting request, the ``next`` one or another."""
        self.tree.request(request_id).preempted = False
        self.tree.add_to_batch(request_id)
        self._preempted.pop(request_id, None)
        self._turns.give()
        self._began[request_id] = self._step
        self._begun += self._step
        self._admitted += 1
        self._bursts.admit(len(self.running))
        self._next = _UNKNOWN

    def finish(self, request_id: Hashable) -> None:
        """A running request is gone, for whatever reason."""
        self.tree.finish(request_id)
        self.policy.finished(request_id, self._leave(request_id))
        self._next = _UNKNOWN

    def preempt(self, request_id: Hashable) -> None:
        """A running request waits again, before those that have not run yet."""
        request = self._preempted[request_id] = self.tree.preempt(request_id)
        request.preempted, request.since = True, self._clock()
        self._turns.take_back()
        self._leave(request_id)
        self._next = _UNKNOWN

    def _leave(self, request_id: Hashable) -> int:
        """Steps for which it has run."""
        began = self._began.pop(request_id)
        self._begun -= began
        return self._step - began

    @property
    def running(self) -> Collection[Hashable]:
        """Ids of all running requests."""
        return self.tree.active

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return len(self.tree.waiting)

    @property
    def burst(self) -> bool:
        """Whether the queue, if there is one, is taken for a burst."""
        return self._bursts.is_burst(self.waiting + self._elsewhere)

    # -- what to do next -------------------------------------------------------------------------------------------

    def next(self) -> Hashable | None:
        """The id of the request to admit next; None: nobody waits, or the batch is to run as it stands.

        The answer stays the same until something happens or a step begins (``new_step``).
        """
        if self._next is _UNKNOWN:
            self.decisions += 1
            self._next = self._decide()
        return self._next

    def new_step(self) -> None:
        """The engine begins another scheduling step. Time has passed, so a stop may no longer hold."""
        self._next = _UNKNOWN
        self.policy.begin_step(self.tree, self.max_batch, self._told_wait, bool(self.tree.waiting) and not self.burst)

    def oldest(self) -> Hashable:
        """The id of the request that has waited longest. Raises LookupError where none waits."""
        return self.tree.oldest()

    def _decide(self) -> Hashable | None:
        if not self.tree.waiting:
            return None
        if self._preempted:
            return min(self._preempted, key=lambda request_id: self._preempted[request_id].arrival or 0)
        return self._choose(self.tree.request(self.tree.oldest()))

    def _choose(self, oldest: Request) -> Hashable | None:
        if self.burst:
            return oldest.id
        tree = self.tree
        late = self._turns.seconds_past(oldest.arrival or 0) > self.max_wait
        chosen = self.policy.choose(tree, self.max_batch - len(self.running), self._clock() - (oldest.since or 0.0), late)
        if self.trace and tree.active and (best := tree.find_best()):
            self.trace.decided(len(tree.active), best.tip_before - best.tip_after, best.sharing, self.waiting, 0, chosen is not None)
        return chosen

    # -- what became of it -----------------------------------------------------------------------------------------

    def formed(self, elsewhere: int = 0) -> Formed:
        """The engine has scheduled a step. Returns what ``ran`` must be given once the step's result is there; with several steps in
        flight each keeps its own. ``elsewhere``: number of waiting requests that were not offered to this former.
        """
        self._elsewhere = elsewhere
        contended = self.waiting + elsewhere > 0 or len(self.running) >= self.max_batch
        if not contended:
            self._bursts.end_queue()
        admitted, self._admitted = self._admitted, 0
        decoded = len(self._began) * self._step - self._begun
        return Formed(contended, self.tree.load()._replace(decoded=decoded), admitted, contended and self.burst, self.kv_use())

    def ran(self, formed: Formed, tokens: int, seconds: float, prefill_tokens: int) -> None:
        """The step has produced so many output tokens in so many seconds, and computed so many prompt tokens."""
        self._step += 1
        self._tell(Step(tokens, seconds, prefill_tokens, *formed))

    def _tell(self, step: Step) -> None:
        if self.trace:
            self.trace.ran(step, self.policy)
        self.policy.feedback(step)

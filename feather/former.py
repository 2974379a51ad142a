"""Batch formation without an engine: the tree proposes a request, the policy decides, and nobody waits for ever.

An engine's adapter reports what happens to requests (``insert``, ``add_to_batch``, ``finish``, ``preempt``, ``remove``), asks for
the ``next`` one, and reports every step (``formed``, ``ran``).
"""

import time
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

from feather.bursts import Bursts
from feather.cht import Candidate, ChunkedHashTree
from feather.cost import Load
from feather.policies import BatchState, Decision, Policy, Step
from feather.request import Request
from feather.turns import Turns

_UNKNOWN: Any = object()
_FEW = 0.1  # share of the batch


class Formed(NamedTuple):
    """What a scheduled step will tell the policy, kept until its result is there: fields of ``Step``."""

    decisions: tuple[Decision, ...]
    contended: bool
    alone: bool
    load: Load
    admitted: int
    burst: bool


class BatchFormer:
    """Chooses the next request for the batch, or runs the batch as it stands.

    **Stragglers.** Decode lengths differ, so a stopped batch drains one request at a time, and its last few requests would
    hold the engine while a full queue waits. Once at most ``straggler_share`` of the batch's largest size is left and the
    policy still says STOP, the oldest waiting request starts the next batch beside them. The stragglers are then retired from
    the tree: they run to their end, but no longer count as part of the batch.

    **A policy that commits** (``Policy.commits``) holds a stop to the last request instead. If a request joins that breaks the
    shared prefix (leaves less than half of it) because the policy added it, or it was overdue or preempted, those that ran are
    retired too. Otherwise one such request would leave nothing to lose, and the batch would stay mixed for ever.

    **A policy that plans** (``Policy.plans``) chooses by itself: only preempted requests and bursts are kept from it.

    **Bursts** (see ``feather.bursts``): a policy that plans, or never stops, serves one in order of arrival.

    **Fairness.** A request that is ``max_wait`` seconds past its turn under first come, first served (``Turns``) goes next,
    whatever its prefix and whatever the policy says (one that plans sees to that itself). Once it is half of that past its turn, a policy that commits adds no more
    to its batch, so that the next batch starts with that request. This bounds the wait that a prefix causes; a queue that
    is long for everybody is still served in the order of the tree. Preempted requests had their turn: they go before all
    others, as in vLLM.

    Args:
        policy: when to stop.
        order: of the tree, see ``ChunkedHashTree``.
        straggler_share: 0 … 1.
        max_wait: seconds.
        saturated_after: batches; 0: no queue is a burst.
        max_batch: requests that the engine can run at once; the policy is not asked about a full batch.
        clock: gives seconds.
        kv_use: gives the share of the KV cache in use, for a ``wide`` policy.
    """

    def __init__(
        self,
        policy: Policy,
        order: str = "cost",
        straggler_share: float = 0.5,
        max_wait: float = float("inf"),
        saturated_after: float = 0.0,
        max_batch: float = float("inf"),
        clock: Callable[[], float] = time.monotonic,
        kv_use: Callable[[], float] = lambda: 0.0,
    ):
        self.tree = ChunkedHashTree(order)
        self.policy = policy
        self.straggler_share = straggler_share
        self.max_wait = max_wait
        self.max_batch = max_batch
        self.decisions = 0  # made so far; one may be asked for several times
        self._clock = clock
        self._kv_use = kv_use
        self._turns = Turns(clock)
        self._bursts = Bursts(saturated_after)
        self._came = 0  # requests so far: the next one's arrival number
        self._preempted: dict[Hashable, Request] = {}  # waiting again
        self._retired: dict[Hashable, Request] = {}  # running, but out of the tree
        self._elsewhere = 0  # requests that waited after the last step and were not offered to this former
        self._peak = 0  # largest size of the present batch
        self._next: Hashable | None = _UNKNOWN
        self._seeds_a_batch = False  # whether `_next`, once it starts, retires the batch that runs
        self._asked: Decision | None = None  # what the policy said about `_next`; None: it was not asked, or was overruled
        self._in_effect: list[tuple[Decision, set[Hashable]]] = []  # each with those of its batch that still run
        self._stopped = False  # until the batch is gone, by a policy that commits
        self._shrunk = False  # a request of the present batch has finished
        self._step = 0  # that have run
        self._admitted = 0  # since the last step
        self._began: dict[Hashable, int] = {}  # steps that had run when a running request was admitted

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
            if self.policy.plans:
                self.policy.arrived(self.tree, request.id)
        request.since = self._clock()
        self._next = _UNKNOWN

    def remove(self, request_id: Hashable) -> Request:
        """A waiting request is withdrawn. Returns its record, to be inserted again should it come back."""
        self._next = _UNKNOWN
        self._turns.give()
        self._preempted.pop(request_id, None)
        if self.policy.plans:
            self.policy.finished(request_id, 0)
        return self.tree.remove(request_id)

    def add_to_batch(self, request_id: Hashable) -> None:
        """The engine has admitted a waiting request, the ``next`` one or another."""
        if request_id == self._next:
            if self._asked is not None and self._asked.state.tip_loss and not self.policy.fills:
                self._in_effect.append((self._asked, set(self.running)))
            if self._seeds_a_batch:
                self._retire_all()
        tip = self.tree.tip_depth
        self.tree.add_to_batch(request_id)
        if self.policy.commits and not self.policy.fills and 2 * self.tree.tip_depth < tip:
            self._retire_all(but=request_id)
        self._preempted.pop(request_id, None)
        self._turns.give()
        self._began[request_id] = self._step
        self._admitted += 1
        self._bursts.admit(len(self.tree.active) + len(self._retired))
        self._peak = max(self._peak, len(self.tree.active))
        self._next = _UNKNOWN

    def finish(self, request_id: Hashable) -> None:
        """A running request is gone, for whatever reason."""
        began = self._began.get(request_id, self._step)
        if self._retired.pop(request_id, None) is None:
            self.tree.finish(request_id)
            self._shrunk = True
        self._left(request_id)
        if self.policy.plans:
            self.policy.finished(request_id, self._step - began)

    def preempt(self, request_id: Hashable) -> None:
        """A running request waits again, before those that have not run yet."""
        request = self._retired.pop(request_id, None)
        if request is None:
            request = self.tree.preempt(request_id)
        else:
            self.tree.insert(request)
        self._preempted[request_id] = request
        request.since = self._clock()
        self._turns.take_back()
        self._left(request_id)

    @property
    def running(self) -> set[Hashable]:
        """Ids of all running requests, retired ones included."""
        return self.tree.active | self._retired.keys()

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
        if self.policy.plans:
            self.policy.begin_step(self.tree, self.max_batch, self.max_wait, bool(self.tree.waiting) and not self.burst)

    def oldest(self) -> Hashable:
        """The id of the request that has waited longest. Raises LookupError where none waits."""
        return self.tree.oldest()

    def question(self, candidate: Candidate) -> BatchState:
        """The state in which the policy is asked about a candidate."""
        tree = self.tree
        state = BatchState(
            len(tree.active), candidate.tip_before - candidate.tip_after, candidate.sharing, self.waiting, len(self._retired)
        )
        if not self.policy.wide:
            return state
        length = len(tree.request(candidate.request_id).path)
        waited = self._clock() - tree.request(tree.oldest()).since
        return state._replace(tip=candidate.tip_before, length=length, oldest_wait=waited, kv_use=self._kv_use())

    def _decide(self) -> Hashable | None:
        self._seeds_a_batch, self._asked = False, None
        candidate = self.tree.find_best()
        if candidate is None:
            return None
        if self._preempted:
            return min(self._preempted, key=lambda request_id: self._preempted[request_id].arrival or 0)
        oldest = self.tree.oldest()
        size = len(self.tree.active)
        if self.burst and (self.policy.plans or self.policy.fills):
            return oldest
        if self.policy.plans:
            return self.policy.choose(self.tree, self.max_batch - size, self._clock() - self.tree.request(oldest).since)
        overdue = self._turns.seconds_past(self.tree.request(oldest).arrival or 0)
        if overdue > self.max_wait:
            return oldest
        if size and self._shrunk and self.policy.commits and not self.policy.fills and overdue > self.max_wait / 2:
            return None
        if not size or size + len(self._retired) >= self.max_batch:
            return candidate.request_id
        state = self.question(candidate)
        if self._stopped:
            return candidate.request_id if not state.tip_loss else None
        add = self.policy.decide(state)
        if add or self.policy.commits or size > self.straggler_share * self._peak:
            self._asked = Decision(state, add)
            return candidate.request_id if add else None
        self._seeds_a_batch = True
        return oldest

    # -- what became of it -----------------------------------------------------------------------------------------

    def formed(self, elsewhere: int = 0) -> Formed:
        """The engine has scheduled a step. Returns what ``ran`` must be given once the step's result is there; with several steps in
        flight each keeps its own. ``elsewhere``: number of waiting requests that were not offered to this former.
        """
        if self._next is None and self._asked is not None and self.policy.commits:
            self._stopped = True
            self._in_effect.append((self._asked, set(self.tree.active)))
            self._asked = None
        decisions = tuple(decision for decision, _ in self._in_effect)
        if self._next is None and self._asked is not None:
            decisions += (self._asked,)
        size = len(self.tree.active) + len(self._retired)
        self._elsewhere = elsewhere
        contended = self.waiting + elsewhere > 0 or size >= self.max_batch
        if not contended:
            self._bursts.end_queue()
        admitted, self._admitted = self._admitted, 0
        alone = len(self._retired) <= _FEW * size
        return Formed(decisions, contended, alone, self.tree.load(), admitted, contended and self.burst)

    def ran(self, formed: Formed, tokens: int, seconds: float, prefill_tokens: int) -> None:
        """The step has produced so many output tokens in so many seconds, and computed so many prompt tokens."""
        self._step += 1
        self.policy.feedback(Step(tokens, seconds, prefill_tokens, *formed))

    # -- the batch ---------------------------------------------------------------------------------------------------

    def _retire_all(self, but: Hashable | None = None) -> None:
        for request_id in self.tree.active - {but}:
            self._retired[request_id] = self.tree.finish(request_id)
        self._peak, self._stopped, self._shrunk = 0, False, False

    def _left(self, request_id: Hashable) -> None:
        if self._in_effect:
            for _, batch in self._in_effect:
                batch.discard(request_id)
            self._in_effect = [(decision, batch) for decision, batch in self._in_effect if batch]
        self._began.pop(request_id, None)
        if not self.tree.active:
            self._peak, self._stopped, self._shrunk = 0, False, False
        self._next = _UNKNOWN

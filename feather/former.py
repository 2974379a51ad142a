"""Batch formation without an engine: the tree proposes, the policy decides, stragglers are let go, and nobody is passed
over for ever.

An engine adapter reports what happens to its requests (wait, cancel, start, finish, preempt), asks ``next``, and says
what became of every step (``formed``, ``ran``).
"""

import time
from collections.abc import Callable, Hashable, Iterable
from typing import NamedTuple

from feather.cht import Candidate, ChunkedHashTree
from feather.policies import BatchState, Decision, Policy, Step
from feather.turns import Turns

_UNKNOWN = object()
_FEW = 0.1  # share of the batch


class Formed(NamedTuple):
    """What a scheduled step owes to the policy, kept until its result is there."""

    decisions: tuple[Decision, ...]
    contended: bool
    phase: int
    settled: bool
    alone: bool
    burst: bool


class BatchFormer:
    """Chooses the next request for the batch, or that the batch is best run as it stands.

    **Stragglers.** Decode lengths differ, so a batch that was stopped drains one request at a time, and its last few
    would hold the engine while a full queue waits. Once no more than ``straggler_share`` of the batch's largest size
    is left and the policy still says STOP, the oldest waiting request seeds the next batch beside them. When it starts,
    they are retired from the tree: they run on to their end, but no longer speak for the batch.

    **A policy that commits** (``Policy.commits``) holds what it stops to the last request instead. Where somebody joins who
    breaks the shared prefix (leaves less than half of it), added by the policy, overdue or preempted before, those that ran are
    retired likewise: otherwise one such request would leave nothing to lose, and the batch would be mixed for ever.

    **A policy that fills** (``Policy.fills``) means the batch to be all that runs: nobody is retired, and where it takes over
    from one that stops, those who were retired speak again. Where it gives way, all that runs is retired.

    **Bursts.** While the engine keeps up, little is gained by throughput, and tails are what its users notice. Once a queue has been
    seen to end (a step with nobody waiting and room for more), the next is a burst until it amounts to ``saturated_after`` times
    the largest batch. If the policy fills, a burst is served in sweeps: who comes while others wait goes into the tree once
    those have gone. Otherwise relatives of what runs would overtake for as long as they keep coming, which is what makes the
    tails of prefix-aware queues. (Disk arms are scheduled like that under the name of FSCAN.)

    **Fairness.** Once a request's turn under first come, first served (``Turns``) is ``max_wait`` seconds past, it goes
    next, whatever its prefix and whatever the policy says; once half of that is past, a policy that commits replenishes its
    batch no more, so that the next one begins with that request. What it waits because of its prefix is so bounded, while a
    queue that is long for everybody is still served in the order of the tree. Preempted requests, which had their turn, go
    before all others, as they do in vLLM.

    Args:
        policy: when to stop.
        order: of the tree, see ``ChunkedHashTree``.
        straggler_share: 0 … 1.
        max_wait: seconds.
        saturated_after: batches; 0: no queue is a burst.
        max_batch: requests that the engine can run at once; a full batch is nobody's decision.
        clock: seconds.
        kv_use: gives the share of the KV cache in use, for a policy that is ``wide``.
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
        self.saturated_after = saturated_after
        self.decisions = 0  # made so far, each asked for any number of times
        self._clock = clock
        self._kv_use = kv_use
        self._preempted: dict[Hashable, int] = {}  # waiting again, with their arrival numbers
        self._turns = Turns(clock)
        self._came = 0  # requests so far: the next one's arrival number
        self._later: dict[Hashable, tuple[Iterable[Hashable], int]] = {}  # for the next sweep: path, arrival
        self._swept = 0  # arrival number that the present sweep ends before
        self._admitted = float("inf")  # from the present queue; the first is no burst: nothing is known yet
        self._largest = 0  # batch so far
        self._elsewhere = 0  # requests that waited after the last step and were kept from here
        self._since: dict[Hashable, float] = {}  # when the waiting requests came
        self._retired: dict[Hashable, tuple[int, list[Hashable]]] = {}  # running, but out of the tree: arrival, path
        self._peak = 0  # largest size of the present batch
        self._next: Hashable | None = _UNKNOWN
        self._seeds_a_batch = False  # whether `_next`, once it starts, retires the batch that runs
        self._asked: Decision | None = None  # what the policy said of `_next`; None: it was not asked, or overruled
        self._in_effect: list[tuple[Decision, set[Hashable]]] = []  # with whom still runs of the batch of that time
        self._stopped = False  # for good: by a policy that commits
        self._shrunk = False  # somebody of the present batch has finished
        self._phase = policy.phase
        self._fills = policy.fills
        self._before_phase: set[Hashable] = set()  # running requests that were admitted before the present phase

    # -- what happened ---------------------------------------------------------------------------------------------

    def wait(self, request_id: Hashable, path: Iterable[Hashable], arrival: int | None = None) -> None:
        """A request starts waiting; ``arrival`` as ``cancel`` gave it, for one that was here before."""
        if request_id in self._later:
            raise ValueError(f"request {request_id!r} waits already")
        came_back = arrival is not None
        if not came_back:
            arrival = self._came
        if self._sweeping and arrival >= self._swept:
            self._later[request_id] = path, arrival
        else:
            self.tree.insert(request_id, path, arrival)
            self._swept = max(self._swept, arrival + 1)
        if came_back:
            self._turns.take_back()
        else:
            self._came += 1
        self._since[request_id] = self._clock()
        self._next = _UNKNOWN

    def cancel(self, request_id: Hashable) -> int:
        """A waiting request is withdrawn. Returns its arrival number, to wait again with."""
        self._next = _UNKNOWN
        self._turns.give()
        self._preempted.pop(request_id, None)
        self._since.pop(request_id, None)
        if request_id in self._later:
            return self._later.pop(request_id)[1]
        return self.tree.remove(request_id)

    def start(self, request_id: Hashable) -> None:
        """The engine has admitted a waiting request."""
        if request_id in self._later:
            self.tree.insert(request_id, *self._later.pop(request_id))
        if request_id == self._next:
            if self._asked is not None and self._asked.state.tip_loss and not self._fills:
                self._in_effect.append((self._asked, set(self.running)))
            if self._seeds_a_batch:
                self._retire_all()
        tip = self.tree.tip_depth
        self.tree.add_to_batch(request_id)
        if self.policy.commits and not self._fills and 2 * self.tree.tip_depth < tip:
            self._retire_all(but=request_id)
        self._preempted.pop(request_id, None)
        self._since.pop(request_id, None)
        self._turns.give()
        self._admitted += 1
        self._largest = max(self._largest, len(self.running))
        self._peak = max(self._peak, len(self.tree.active))
        self._next = _UNKNOWN

    def finish(self, request_id: Hashable) -> None:
        """A running request is gone, for whatever reason."""
        if self._retired.pop(request_id, None) is None:
            self.tree.finish(request_id)
            self._shrunk = True
        self._left(request_id)

    def preempt(self, request_id: Hashable) -> None:
        """A running request waits again, before those that have not run yet."""
        arrival, path = self._retired.pop(request_id, (None, None))
        if arrival is None:
            self.tree.preempt(request_id)
        else:
            self.tree.insert(request_id, path, arrival)
        self._preempted[request_id] = self.tree.arrival(request_id)
        self._since[request_id] = self._clock()
        self._turns.take_back()
        self._left(request_id)

    @property
    def running(self) -> set[Hashable]:
        """Ids of all requests that have started and not finished, retired ones included."""
        return self.tree.active | self._retired.keys()

    @property
    def waiting(self) -> int:
        """Requests that wait, those for the next sweep included."""
        return len(self.tree.waiting) + len(self._later)

    @property
    def burst(self) -> bool:
        """Whether the queue, if there is one, is taken for a burst."""
        return self._admitted + self.waiting + self._elsewhere < self.saturated_after * self._largest

    # -- what to do next -------------------------------------------------------------------------------------------

    def next(self) -> Hashable | None:
        """The id of the request to admit next; None: nobody waits, or the batch is best run as it stands.

        Asking again gives the same answer until something happens, a new step (``new_step``) included.
        """
        if self._next is _UNKNOWN:
            self.decisions += 1
            self._next = self._decide()
        return self._next

    def new_step(self) -> None:
        """The engine begins another scheduling step: time has passed, so a stop may be void by now."""
        self._next = _UNKNOWN
        self._begin_sweep_if_due()
        if self.policy.phase != self._phase:
            self._phase = self.policy.phase
            self._before_phase = set(self.running)
        if self.policy.fills != self._fills:
            self._fills = self.policy.fills
            if self._fills:
                self._recall_all()
            else:
                self._retire_all()

    def oldest(self) -> Hashable:
        """The id of the request that has waited longest. Raises LookupError where none waits."""
        self._begin_sweep_if_due()
        return self.tree.oldest()

    def question(self, candidate: Candidate) -> BatchState:
        """What the policy is asked about a candidate."""
        tree = self.tree
        state = BatchState(
            len(tree.active), candidate.tip_before - candidate.tip_after, candidate.sharing, self.waiting, len(self._retired)
        )
        if not self.policy.wide:
            return state
        length = tree.length(candidate.request_id)
        waited = self._clock() - self._since[tree.oldest()]
        return state._replace(tip=candidate.tip_before, length=length, oldest_wait=waited, kv_use=self._kv_use())

    def _decide(self) -> Hashable | None:
        self._seeds_a_batch, self._asked = False, None
        self._begin_sweep_if_due()
        if not self.tree.waiting:
            return None
        if self._preempted:
            return min(self._preempted, key=self._preempted.__getitem__)
        overdue = self._turns.seconds_past(self.tree.arrival(self.tree.oldest()))
        if overdue > self.max_wait:
            return self.tree.oldest()
        size = len(self.tree.active)
        if size and self._shrunk and self.policy.commits and not self._fills and overdue > self.max_wait / 2:
            return None
        candidate = self.tree.find_best()
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
        return self.tree.oldest()

    # -- what became of it -----------------------------------------------------------------------------------------

    def formed(self, elsewhere: int = 0) -> Formed:
        """The engine has scheduled a step: what ``ran`` is to be given once the step's result is there. ``elsewhere``: requests
        that wait and are kept from this former.

        Steps may be scheduled before the result of the one before is known; each keeps its own.
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
        if not contended and self._largest:
            self._admitted = 0
        settled = len(self._before_phase) <= _FEW * size
        alone = len(self._retired) <= _FEW * size
        return Formed(decisions, contended, self._phase, settled, alone, contended and self.burst)

    def ran(self, formed: Formed, tokens: int, seconds: float, prefill_tokens: int) -> None:
        """The step has given so many output tokens in so many seconds, and computed so many of prompts."""
        self.policy.feedback(Step(tokens, seconds, prefill_tokens, *formed))

    # -- the batch ---------------------------------------------------------------------------------------------------

    def _retire_all(self, but: Hashable | None = None) -> None:
        for request_id in self.tree.active - {but}:
            path = self.tree.path(request_id)
            self._retired[request_id] = self.tree.finish(request_id), path
        self._peak, self._stopped, self._shrunk = 0, False, False

    def _recall_all(self) -> None:
        for request_id, (arrival, path) in self._retired.items():
            self.tree.insert(request_id, path, arrival)
            self.tree.add_to_batch(request_id)
        self._retired.clear()
        self._peak, self._stopped, self._shrunk = len(self.tree.active), False, False

    def _left(self, request_id: Hashable) -> None:
        if self._in_effect:
            for _, batch in self._in_effect:
                batch.discard(request_id)
            self._in_effect = [(decision, batch) for decision, batch in self._in_effect if batch]
        self._before_phase.discard(request_id)
        if not self.tree.active:
            self._peak, self._stopped, self._shrunk = 0, False, False
        self._next = _UNKNOWN

    # -- sweeps ------------------------------------------------------------------------------------------------------

    @property
    def _sweeping(self) -> bool:
        return self._fills and self.burst

    def _begin_sweep_if_due(self) -> None:
        if self._later and not (self.tree.waiting and self._sweeping):
            self._swept = self._came
            sweep, self._later = self._later, {}
            for request_id, (path, arrival) in sweep.items():
                self.tree.insert(request_id, path, arrival)

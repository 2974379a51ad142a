"""To add the tree's candidate to the batch or to stop: the paper's question, what a policy sees of it, and the former that asks it."""

from collections.abc import Collection, Hashable, Sequence
from typing import Any, NamedTuple

from feather.cht import Candidate
from feather.former import BatchFormer, Formed
from feather.policies import Policy, Step
from feather.request import Request

_FEW = 0.1  # share of the batch


class BatchState(NamedTuple):
    """The state in which one decision is made. Prefix depths are in chunks.

    The first three fields are the paper's state. The fields after ``stragglers`` are filled in only for a ``wide`` policy.
    """

    batch_size: int
    """b: requests in the batch so far, at least 1"""
    tip_loss: int
    """Δ: how much shared prefix the batch would lose by adding the candidate (tip depth before − after)"""
    sharing: int
    """w: waiting requests that share the batch's whole tip"""
    waiting: int
    """requests that wait, the candidate included"""
    stragglers: int = 0
    """requests of earlier batches that still run"""
    tip: int = 0
    """depth of the batch's shared-prefix tip"""
    length: int = 0
    """length of the candidate's own prefix, shared or not"""
    oldest_wait: float = 0.0
    """how long the oldest waiting request has waited, seconds"""
    kv_use: float = 0.0
    """share of the KV cache in use, 0 … 1"""


class Decision(NamedTuple):
    """A policy's answer in one state."""

    state: BatchState
    add: bool
    """True: ADD, False: STOP"""


class StoppingFormer(BatchFormer):
    """Asks a ``Stopping`` policy about the candidate that the tree proposes. It is asked only where stopping is possible: never for the
    first request of an empty batch, never once the engine's largest batch is reached.

    **Stragglers.** Decode lengths differ, so a stopped batch drains one request at a time, and its last few requests would
    hold the engine while a full queue waits. Once at most ``straggler_share`` of the batch's largest size is left and the
    policy still says STOP, the oldest waiting request starts the next batch beside them. The stragglers are then retired from
    the tree: they run to their end, but no longer count as part of the batch.

    **A policy that commits** (``Stopping.commits``) holds a stop to the last request instead. If a request joins that breaks the
    shared prefix (leaves less than half of it) because the policy added it, or it was overdue or preempted, those that ran are
    retired too. Otherwise one such request would leave nothing to lose, and the batch would stay mixed for ever.

    **Fairness.** A request that is ``max_wait`` seconds past its turn goes next, whatever its prefix and whatever the policy says. Once it
    is half of that past its turn, a policy that commits adds no more to its batch, so that the next batch starts with that request.
    """

    policy: "Stopping"

    def __init__(self, *arguments: Any, **engine: Any):
        super().__init__(*arguments, **engine)
        self._retired: dict[Hashable, Request] = {}  # running, but out of the tree
        self._peak = 0  # largest size of the present batch
        self._seeds_a_batch = False  # whether the next one, once it starts, retires the batch that runs
        self._asked: Decision | None = None  # what the policy said about it; None: it was not asked, or was overruled
        self._in_effect: list[tuple[Decision, set[Hashable]]] = []  # each with those of its batch that still run
        self._stopped = False  # until the batch is gone, by a policy that commits
        self._shrunk = False  # a request of the present batch has finished

    @property
    def running(self) -> Collection[Hashable]:
        """Ids of all running requests, retired ones included."""
        return self.tree.active | self._retired.keys() if self._retired else self.tree.active

    # -- what happened ---------------------------------------------------------------------------------------------

    def add_to_batch(self, request_id: Hashable) -> None:
        if request_id == self._next:
            if self._asked is not None and self._asked.state.tip_loss:
                self._in_effect.append((self._asked, set(self.running)))
            if self._seeds_a_batch:
                self._retire_all()
        tip = self.tree.tip_depth
        super().add_to_batch(request_id)
        if self.policy.commits and 2 * self.tree.tip_depth < tip:
            self._retire_all(but=request_id)
        self._peak = max(self._peak, len(self.tree.active))

    def finish(self, request_id: Hashable) -> None:
        if request_id in self._retired:
            self._take_in(request_id)
        else:
            self._shrunk = True
        super().finish(request_id)
        self._left(request_id)

    def preempt(self, request_id: Hashable) -> None:
        if request_id in self._retired:
            self._take_in(request_id)
        super().preempt(request_id)
        self._left(request_id)

    # -- what to do next -------------------------------------------------------------------------------------------

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
        return state._replace(tip=candidate.tip_before, length=length, oldest_wait=waited, kv_use=self.kv_use())

    def _decide(self) -> Hashable | None:
        self._seeds_a_batch, self._asked = False, None
        return super()._decide()

    def _choose(self, oldest: Request) -> Hashable | None:
        size, candidate = len(self.tree.active), self.tree.find_best()
        overdue = self._turns.seconds_past(oldest.arrival or 0)
        if overdue > self.max_wait:
            return oldest.id
        if size and self._shrunk and self.policy.commits and overdue > self.max_wait / 2:
            return None
        if not size or size + len(self._retired) >= self.max_batch:
            return candidate.request_id
        state = self.question(candidate)
        if self._stopped:
            return candidate.request_id if not state.tip_loss else None
        add = self.policy.decide(state)
        if self.trace:
            self.trace.decided(*state[:5], add)
        if add or self.policy.commits or size > self.policy.straggler_share * self._peak:
            self._asked = Decision(state, add)
            return candidate.request_id if add else None
        self._seeds_a_batch = True
        return oldest.id

    # -- what became of it -----------------------------------------------------------------------------------------

    def formed(self, elsewhere: int = 0) -> tuple[Formed, tuple[Decision, ...], bool]:
        if self._next is None and self._asked is not None and self.policy.commits:
            self._stopped = True
            self._in_effect.append((self._asked, set(self.tree.active)))
            self._asked = None
        decisions = tuple(decision for decision, _ in self._in_effect)
        if self._next is None and self._asked is not None:
            decisions += (self._asked,)
        alone = len(self._retired) <= _FEW * len(self.running)
        return super().formed(elsewhere), decisions, alone

    def ran(self, formed: tuple[Formed, tuple[Decision, ...], bool], tokens: int, seconds: float, prefill_tokens: int) -> None:
        plain, decisions, alone = formed
        super().ran(plain, tokens, seconds, prefill_tokens)
        self.policy.judge(Step(tokens, seconds, prefill_tokens, *plain), decisions, alone)

    # -- the batch ---------------------------------------------------------------------------------------------------

    def _retire_all(self, but: Hashable | None = None) -> None:
        for request_id in self.tree.active - {but}:
            self._retired[request_id] = self.tree.finish(request_id)
        self._peak, self._stopped, self._shrunk = 0, False, False

    def _take_in(self, request_id: Hashable) -> None:
        self.tree.insert(self._retired.pop(request_id))
        self.tree.add_to_batch(request_id)

    def _left(self, request_id: Hashable) -> None:
        if self._in_effect:
            for _, batch in self._in_effect:
                batch.discard(request_id)
            self._in_effect = [(decision, batch) for decision, batch in self._in_effect if batch]
        if not self.tree.active:
            self._peak, self._stopped, self._shrunk = 0, False, False


class Stopping(Policy):
    """When to stop filling the batch. A subclass answers ``decide``; one that learns overrides ``judge`` too."""

    former = StoppingFormer
    fills = False
    wide: bool = False
    """whether it looks at the wider state"""
    commits: bool = False
    """whether its STOP holds until the batch is gone (only requests that cost no shared prefix may join) and is judged by all
    of that time; otherwise it is asked again in every step"""
    straggler_share: float = 0.0
    """see ``StoppingFormer``; of a policy that does not commit"""

    def decide(self, state: BatchState) -> bool:
        """True: ADD the candidate. False: STOP and run the batch as it stands."""
        raise NotImplementedError

    def judge(self, step: Step, decisions: Sequence[Decision], alone: bool) -> None:
        """A step has run; called once per step, in the order of the steps. ``decisions``: those that formed the batch. An ADD that cost
        shared prefix, and a STOP of a policy that ``commits``, count as long as any request runs that was in the batch then; a STOP of
        any other policy counts for this step only. ``alone``: False while much of what ran were stragglers of earlier batches."""

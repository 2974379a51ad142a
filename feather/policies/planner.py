"""A policy that learns what a step costs, plays through what each way to form batches would give, and follows the best."""

import math
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from feather.cht import Branch, ChunkedHashTree
from feather.cost import Load, StepCost
from feather.policies.base import BatchState, CommonOptions, Policy, Step
from feather.rehearsal import ARRIVAL, PLANS, RELATIVES, Plan, Rehearsal, Scene, may_join, patience
from feather.settings import setting

_SEEN = 3  # decode-only steps of each kind that an experiment waits for
_LASTS, _PRESSED = 1.5, 32  # batches of requests, or steps under pressure, from which on a queue is taken to last
_STRANGERS = 1.5  # times the rows of the first prefix, that an experiment fills up to with the second
_PURE = 0.75  # share of the rows' chunks that all share, from which on they have one prefix
_PAYS, _KEEPS = 0.03, 0.015  # by which a plan must be better than a fairer one to be taken, and to be kept
_PLAYS = 1000  # steps that are played through per second of serving: each takes 10 to 20 µs
_AGAIN = 5.0  # seconds between two rounds of rehearsals, but for
_YOUNG = 1000  # the first steps, in which one follows the other
_UNKNOWN = tuple(range(20, 200, 12))  # steps that requests run for, before any has ended
_PREFIXES = 64  # told apart in a rehearsal; rarer ones count as shared with nobody
_UNHEARD = 100  # steps without a result, after which the order of arrival is left
_MOST_LOST = 10.0  # seconds, after which an experiment is broken off
_RAREST = 120.0  # seconds without a batch of one prefix, after which an experiment makes one, and
_RARER = 15.0  # without a mixed one, which is cheaper to make
_BUDGET = 0.015  # share of the time that experiments may lose


@dataclass(frozen=True)
class PlannerSettings:
    ttft_slo: float = setting(
        0.0, "seconds to the first token that 99 of 100 requests should not exceed; 0: no target", low=0, unit="seconds"
    )
    ttft_slo_over_fcfs: float = setting(
        0.0, "the same as a multiple of what first come, first served would give; 0: no target", low=0, unit="times"
    )
    latency_weight: float = setting(
        0.0, "share of throughput that a plan must gain for each doubling of the longest waits (99th percentile)", low=0, high=10
    )
    fairness_weight: float = setting(
        0.0, "share of throughput that a plan must gain to take Jain's index of the prefixes' mean waits from 1 to 0", low=0, high=10
    )


class Planner(Policy):
    """Learns what a step costs, plays through what each of several plans would give with the requests that come, and follows the best.

    The plans, from the fairest on: *arrival*, nobody is passed over; *relatives first*, the batch is always full, and who shares most with it goes
    first; *four, two prefixes, one*: a batch takes requests of so many prefixes, those that most wait for, and runs to its end (*gated*), or their
    relatives join while it runs, and another prefix once one has gone (*refilled*). A plan has to promise more than those before it: throughput, less
    what the options ``latency_weight`` and ``fairness_weight`` charge for tails and unfairness. A target for the time to the first token bounds how long a request may be past its turn.

    At the start, and rarely again, an experiment shows what steps cost: a batch of one prefix grows, then a second prefix joins.
    """

    kind = "feather planner"
    plans = True
    settings = PlannerSettings

    def __init__(self, settings: PlannerSettings | None = None) -> None:
        self.wanted = settings or PlannerSettings()
        self.cost = StepCost()
        self.plan: Plan = ARRIVAL
        self.rates: dict[str, float] = {}
        """plan → promised throughput, tok/s"""
        self.experiments = 0
        self._stage = 0  # of an experiment: 0 one prefix, 1 more of it, 2 one row of another, 3 more of that, 4 no experiment
        self._stage_steps = 0  # decoded in this stage
        self._rows = 0.0  # in the batch when it began
        self._begun = False  # whether the experiment waits no longer for a queue that lasts
        self._pressed = 0  # steps in a row that left half as many waiting as run
        self._lost = self._since = 0.0  # seconds: lost in the last experiment, and without what the plan does not show
        self._usual = 0.0  # throughput outside of experiments, tok/s
        self._changes = 0  # of the prices, seen so far
        self._rehearsal: Rehearsal | None = None  # that is being played
        self._plans: list[Plan] = []  # of the present round
        self._played: list[Rehearsal] = []
        self._worth: dict[Plan, float] = {}  # of the plans, over that of the first, averaged over rounds
        self._fair_wait = self._limit = float("inf")  # seconds: in order of arrival, and beyond that at most
        self._unheard = 0  # steps begun since the last result
        self._owed = 0.0  # steps to be played
        self._rested = 0.0  # seconds since the last round
        self._entering: Hashable | None = None  # prefix that was let in during the present step
        self._held: dict[Hashable, None] = {}  # prefixes of the batch, and some that have gone
        self._last: Hashable = None  # prefix that was let in last
        self._forming = True  # whether the batch was empty when this step began
        self._arrivals: dict[Hashable, float] = {}  # by prefix, faded
        self._came = 0.0
        self._depth = self._length = self._common = 0.0  # means: of a prefix, of a path, of what all prefixes have in common
        self._prefix_of: dict[Hashable, Hashable] = {}  # of the requests that wait or run
        self._lifetimes: dict[Hashable, deque[int]] = {}  # by prefix: steps that its latest requests ran for
        self._latest: deque[int] = deque(maxlen=128)  # the same of any prefix
        self._known = False  # whether the present round knows any of them
        self._prompt_tokens = 0.0  # computed per request
        self._admitted = 0

    @classmethod
    def make(cls, settings: PlannerSettings, common: CommonOptions) -> "Planner":
        return cls(settings)

    @property
    def fills(self) -> bool:  # type: ignore[override]
        """Whether the batch is always filled at present."""
        return not self._experimenting and self.plan in (ARRIVAL, RELATIVES)

    def decide(self, state: BatchState) -> bool:
        """Asked by nobody who lets it choose: it stops by choosing no one."""
        return True

    # -- the decision --------------------------------------------------------------------------------------------------

    def choose(self, tree: ChunkedHashTree, room: float, waited: float) -> Hashable | None:
        gone = patience(waited, self._fair_wait, self._limit)
        if gone >= 1 or self._unheard > _UNHEARD:
            return self._admit(tree, tree.oldest())
        if self._experimenting:
            return self._experimental(tree) if self._begun else self._admit(tree, tree.oldest())
        if self.plan == ARRIVAL or self.plan == RELATIVES and gone > 0.5:
            return self._admit(tree, tree.oldest())
        if self.plan == RELATIVES:
            best = tree.find_best()
            return self._admit(tree, best.request_id) if best else None
        if self._entering is not None and (relative := tree.first_through(self._entering)) is not None:
            return self._admit(tree, relative)
        fresh = tree.branch_of(tree.oldest()) if gone > 0.5 else tree.largest_branch()
        if not tree.active:
            return self._admit(tree, fresh.request_id if fresh else tree.oldest())
        self._held = {prefix: None for prefix in self._held if tree.runs(prefix)}
        if self.plan.refilled and gone <= 0.5:
            for prefix in self._held:
                if (relative := tree.first_through(prefix)) is not None:
                    return self._admit(tree, relative)
        if fresh is None:
            return None
        if len(self._held) < self.plan.prefixes and (self._forming or self.plan.refilled):
            return self._admit(tree, fresh.request_id)
        return self._beside_the_last(tree, room, fresh)

    def _beside_the_last(self, tree: ChunkedHashTree, room: float, fresh: Branch) -> Hashable | None:
        """The next batch may begin beside the last rows of the one before."""
        load, count = tree.load(), min(fresh.waiting, room)
        apart = self.cost.seconds(load) + self.cost.seconds(tree.load_alone(fresh, count))
        joins = may_join(load.rows, count, self.cost.seconds(tree.load_with(fresh, count)), apart)
        return self._admit(tree, fresh.request_id) if joins else None

    def _admit(self, tree: ChunkedHashTree, request_id: Hashable) -> Hashable:
        self._entering = self._last = tree.mark_of(request_id)
        self._held[self._last] = None
        return request_id

    # -- experiments ---------------------------------------------------------------------------------------------------

    @property
    def _experimenting(self) -> bool:
        return self._stage < 4

    def _lasts(self, running: int, waiting: int, max_batch: float) -> bool:
        """Whether the queue will last for long enough to learn from it: more than fit, by the size of the batch or as it has shown."""
        self._pressed = self._pressed + 1 if waiting >= running / 2 > 0 else 0
        return running + waiting >= _LASTS * max_batch or self._pressed > _PRESSED

    def _experimental(self, tree: ChunkedHashTree) -> Hashable | None:
        """Whom the experiment admits."""
        load = tree.load()
        if not load.rows:
            fresh = tree.largest_branch()
            return self._admit(tree, fresh.request_id if fresh else tree.oldest())
        if self._stage == 3 and load.rows < _STRANGERS * self._rows or self._stage == 1 and load.rows < 2 ** (self._stage_steps // _SEEN):
            return tree.first_through(self._last)
        if self._stage == 2 and _prefixes(load) <= 1 and (fresh := tree.largest_branch()) is not None:
            return self._admit(tree, fresh.request_id)
        return None

    def _experiment(self, tree: ChunkedHashTree, max_batch: float, max_wait: float) -> None:
        load, steps = tree.load(), self._stage_steps
        if self._stage >= 2 and _prefixes(load) > 1:
            self._common = load.tip
        if self._lost > _MOST_LOST:
            self._stage, done = 3, True
        elif self._stage == 0:
            done = load.rows > 0 and _is_pure(load)
        elif self._stage == 1:
            done = steps >= 2 * _SEEN and (load.rows < 2 ** (steps // _SEEN - 1) or load.rows >= max_batch / 2)
        elif self._stage == 2:
            done = steps >= _SEEN or not tree.waiting
        else:
            done = steps >= 2 * _SEEN or not tree.waiting
        if done:
            self._stage, self._stage_steps, self._rows = self._stage + 1, 0, load.rows
            if self._stage == 2 and (tree.largest_branch() is None or load.rows < 2):
                self._stage = 4
            if self._stage == 4:
                self._since, self._begun, self._pressed = 0.0, False, 0
                self._plan_at_once(tree, max_batch, max_wait)

    def _plan_at_once(self, tree: ChunkedHashTree, max_batch: float, max_wait: float) -> None:
        self._begin_round(tree, max_batch, max_wait)
        while self._rehearsal:
            self._play(1000)

    # -- the plan ------------------------------------------------------------------------------------------------------

    def begin_step(self, tree: ChunkedHashTree, max_batch: float, max_wait: float, contended: bool) -> None:
        self._entering, self._forming = None, not tree.active
        self._unheard += 1
        if len(self._held) > 2 * len(tree.active) + 8:
            self._held = {prefix: None for prefix in self._held if tree.runs(prefix)}
        if not contended:
            return
        load = tree.load()
        if self._experimenting:
            self._begun = self._begun or self._lasts(len(tree.active), len(tree.waiting), max_batch)
            if self._begun:
                self._experiment(tree, max_batch, max_wait)
            return
        if not self.rates:
            self._plan_at_once(tree, max_batch, max_wait)
        if _prefixes(load) > 1.5:
            self._common += (load.tip - self._common) * 0.02
        if self.cost.changes > self._changes or self._since > max(_RARER if self.plan.prefixes else _RAREST, self._lost / _BUDGET):
            self._changes = self.cost.changes
            self._stage = self._stage_steps = 0
            self._lost = 0.0
            self._worth.clear()
            self.experiments += 1
        elif self._rehearsal:
            self._play(int(self._owed))
            self._owed -= int(self._owed)
        elif self._rested > _AGAIN or self.cost.steps < _YOUNG and self._lifetimes:
            self._begin_round(tree, max_batch, max_wait)

    def _begin_round(self, tree: ChunkedHashTree, max_batch: float, max_wait: float) -> None:
        self._rested = self._owed = 0.0
        often = [mark for mark, count in self._arrivals.items() if count >= 2]
        often = sorted(often, key=self._arrivals.__getitem__, reverse=True)[:_PREFIXES]
        shares = tuple(self._arrivals[mark] / self._came for mark in often)
        all_ = tuple(self._latest)
        if all_ and not self._known:
            self._worth.clear()
        self._known, all_ = bool(all_), all_ or _UNKNOWN
        lifetimes = tuple(tuple(self._lifetimes.get(mark, ())) or all_ for mark in often)
        requests = len(tree.active) + len(tree.waiting)
        scene = Scene(
            int(min(max_batch, requests)), requests, shares, lifetimes, all_,
            min(self._common, self._depth), self._depth, self._length, self._prompt_tokens, float("inf"), max_wait,
        )  # fmt: skip
        self._played = []
        self._plans = [plan for plan in PLANS if plan.prefixes <= len(shares)]
        self._rehearsal = Rehearsal(ARRIVAL, scene, self.cost)

    def _play(self, steps: int) -> None:
        assert self._rehearsal is not None
        if not self._rehearsal.advance(steps):
            return
        scene, played = self._rehearsal.scene, self._played
        played.append(self._rehearsal)
        if len(played) == 1:
            self._fair_wait = played[0].longest_wait
            self._limit = self._allowed(scene.max_wait)
            scene = scene._replace(fair_wait=self._fair_wait, max_wait=self._limit)
        if len(played) < len(self._plans):
            self._rehearsal = Rehearsal(self._plans[len(played)], scene, self.cost)
        else:
            self._rehearsal = None
            self._choose_plan()

    def _allowed(self, max_wait: float) -> float:
        """Seconds that a request may wait beyond what it would in order of arrival. At half of it no more join before it whose turn is later; a batch of
        few prefixes is then run to its end first, for letting strangers in would slow it down, and with it everybody."""
        seconds, times, fair = self.wanted.ttft_slo, self.wanted.ttft_slo_over_fcfs, self._fair_wait
        return max(0.0, min(2 * max_wait, seconds - fair if seconds else math.inf, (times - 1) * fair if times else math.inf))

    def _choose_plan(self) -> None:
        arrival = self._played[0]
        self.rates = {one.plan.name: one.throughput for one in self._played}
        best, most = ARRIVAL, 1.0
        for one in self._played[1:]:
            worth = one.throughput / arrival.throughput if arrival.throughput else 0.0
            if self.wanted.latency_weight and arrival.longest_wait:
                worth -= self.wanted.latency_weight * max(0.0, one.longest_wait / arrival.longest_wait - 1)
            worth -= self.wanted.fairness_weight * max(0.0, arrival.fairness - one.fairness)
            worth = self._worth[one.plan] = (worth + self._worth.get(one.plan, worth)) / 2  # a play is a sample
            if worth > most * (1 + (_KEEPS if one.plan == self.plan else _PAYS)):
                best, most = one.plan, worth
        self.plan = best

    # -- what it learns ------------------------------------------------------------------------------------------------

    def arrived(self, tree: ChunkedHashTree, request_id: Hashable) -> None:
        branch, mark = tree.branch_of(request_id), tree.mark_of(request_id)
        # A prefix shows with its second request; its first one was taken to share with nobody.
        self._arrivals[mark] = self._arrivals.get(mark, float(mark != request_id)) + 1
        self._came += 1
        self._prefix_of[request_id] = mark
        if self._came > max(400, 4 * len(tree.waiting)):
            self._came /= 2
            self._arrivals = {mark: count / 2 for mark, count in self._arrivals.items() if count > 0.5}
            self._lifetimes = {mark: each for mark, each in self._lifetimes.items() if mark in self._arrivals}
        step = 1 / min(100, self._came)
        self._depth += step * (branch.depth - self._depth)
        self._length += step * (tree.length_of(request_id) - self._length)

    def finished(self, request_id: Hashable, steps: int) -> None:
        mark = self._prefix_of.pop(request_id, None)
        if steps > 0:
            self._latest.append(steps)
        if steps > 0 and mark in self._arrivals:
            self._lifetimes.setdefault(mark, deque(maxlen=32)).append(steps)

    def told(self) -> dict[str, float]:
        prices = {f"price_{name}": price for name, price in self.cost.prices.items()}
        return prices | {f"promise_{plan}": rate for plan, rate in self.rates.items()}

    def feedback(self, step: Step) -> None:
        if not (math.isfinite(step.seconds) and step.seconds > 0):
            return
        load, self._unheard = step.load, 0
        self.cost.observe(load, step.seconds, step.prefill_tokens)
        self._since += step.seconds
        self._rested += step.seconds
        self._owed += step.seconds * _PLAYS
        if step.admitted:
            self._admitted += step.admitted
            each, weight = step.prefill_tokens / step.admitted, min(1.0, step.admitted / min(self._admitted, 200))
            self._prompt_tokens += weight * (each - self._prompt_tokens)
        if self._experimenting:
            self._stage_steps += not step.prefill_tokens
            self._lost += step.seconds - step.tokens / self._usual if self._usual else 0.0
        else:
            self._usual += (step.tokens / step.seconds - self._usual) * (0.02 if self._usual else 1.0)
            if _is_pure(load) != bool(self.plan.prefixes):
                self._since = 0.0

    def learned(self) -> Any:
        return {"cost": self.cost.learned(), "stage": self._stage, "lifetimes": list(self._latest), "prompt_tokens": self._prompt_tokens}

    def restore(self, learned: Any) -> None:
        stage = int(learned["stage"])
        if stage not in range(5):
            raise ValueError(f"its stage {stage} is not one of 0 to 4")
        lifetimes, prompt_tokens = [int(steps) for steps in learned["lifetimes"]], float(learned["prompt_tokens"])
        if min(lifetimes, default=1) < 1 or not 0 <= prompt_tokens < math.inf:
            raise ValueError("its requests ran for less than a step, or had fewer than no prompt tokens")
        self.cost.restore(learned["cost"])
        self._latest.extend(lifetimes)
        self._prompt_tokens = prompt_tokens
        self._stage = stage


def _is_pure(load: Load) -> bool:
    return load.tip * load.rows >= _PURE * load.chunks


def _prefixes(load: Load) -> float:
    """How many different prefixes the rows have, by their chunks: 1 where all share, ``rows`` where none does."""
    return load.rows * load.chunks / load.squares if load.squares else 1.0

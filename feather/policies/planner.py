"""A policy that learns what a step costs, plays through what each way to form batches would give, and follows the best."""

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from feather.cht import Branch, ChunkedHashTree
from feather.cost import StepCost
from feather.policies.base import CommonOptions, Policy, Step
from feather.policies.experiment import OVER, Experiment, is_pure, prefixes
from feather.rehearsal import ARRIVAL, PLANS, RELATIVES, Plan, Rehearsal, may_join, patience
from feather.settings import setting
from feather.traffic import Traffic

_PAYS, _KEEPS = 0.03, 0.015  # by which a plan must be better than a fairer one to be taken, and to be kept
_PLAYS = 1000  # steps that are played through per second of serving: each takes 10 to 20 µs
_AGAIN = 5.0  # seconds between two rounds of rehearsals, but for
_YOUNG = 1000  # the first steps, in which one follows the other
_UNHEARD = 100  # steps without a result, after which the order of arrival is left
_RAREST = 120.0  # seconds without a batch of one prefix, after which an experiment makes one
_RARER, _PROBE = (
    15.0,
    0.125,
)  # seconds without a mixed one, after which the next prefix begins beside so many of the last rows, as a share of its own
_CALM = 0.95  # share of what order of arrival can give, up to which requests may come and it will do, if
_QUIET = 60.0  # seconds at most have passed without a moment in which nobody had to wait
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

    At the start, and rarely again, an experiment shows what steps cost.
    """

    kind = "feather planner"
    settings = PlannerSettings

    def __init__(self, settings: PlannerSettings | None = None) -> None:
        self.wanted = settings or PlannerSettings()
        self.cost = StepCost()
        self.traffic = Traffic()
        self.experiment = Experiment()
        self.experiments = 0
        """begun since the first"""
        self.plan: Plan = ARRIVAL
        self.rates: dict[str, float] = {}
        """plan → promised throughput, tok/s"""
        self._since = 0.0  # seconds without what the plan does not show
        self._usual = 0.0  # throughput outside of experiments, tok/s
        self._changes = 0  # of the prices, seen so far
        self._rehearsal: Rehearsal | None = None  # that is being played
        self._plans: list[Plan] = []  # of the present round
        self._played: list[Rehearsal] = []
        self._worth: dict[Plan, float] = {}  # of the plans, over that of the first, averaged over rounds
        self._known = False  # whether the present round knows how long any request runs
        self._fair_wait = self._limit = float("inf")  # seconds: in order of arrival, and beyond that at most
        self._unheard = 0  # steps begun since the last result
        self._owed = 0.0  # steps to be played
        self._rested = 0.0  # seconds since the last round
        self._entering: Hashable | None = None  # prefix that was let in during the present step
        self._held: dict[Hashable, None] = {}  # prefixes of the batch, and some that have gone
        self._last: Hashable = None  # prefix that was let in last
        self._is_calm = False
        self._pressed = math.inf  # seconds since nobody had to wait; a first queue has no such moment
        self._forming = True  # whether the batch was empty when this step began

    @classmethod
    def make(cls, settings: PlannerSettings, common: CommonOptions) -> "Planner":
        return cls(settings)

    @property
    def fills(self) -> bool:  # type: ignore[override]
        """Whether the batch is always filled at present."""
        return self._is_calm or not self.experiment.runs and self.plan in (ARRIVAL, RELATIVES)

    @property
    def calm(self) -> bool:
        """Whether order of arrival keeps up with what comes, although a queue has built up: to overtake would gain nothing but tails."""
        capacity = self.rates.get(ARRIVAL.name, 0.0)
        return self._pressed < _QUIET and self.traffic.offered < _CALM * capacity

    # -- the decision --------------------------------------------------------------------------------------------------

    def choose(self, tree: ChunkedHashTree, room: float, waited: float, late: bool) -> Hashable | None:
        chosen = self._chosen(tree, room, patience(waited, self._fair_wait, self._limit))
        if chosen is not None:
            self._entering = self._last = tree.mark_of(chosen)
            self._held[self._last] = None
        return chosen

    def _chosen(self, tree: ChunkedHashTree, room: float, gone: float) -> Hashable | None:
        """``gone``: share of the oldest request's patience that is used up."""
        if gone >= 1 or self._is_calm or self._unheard > _UNHEARD:
            return tree.oldest()
        if self.experiment.runs:
            return self.experiment.choose(tree, self._last)
        if self.plan == ARRIVAL or self.plan == RELATIVES and gone > 0.5:
            return tree.oldest()
        if self.plan == RELATIVES:
            best = tree.find_best()
            return best.request_id if best else None
        if self._entering is not None and (relative := tree.first_through(self._entering)) is not None:
            return relative
        fresh = tree.branch_of(tree.oldest()) if gone > 0.5 else tree.largest_branch()
        if not tree.active:
            return fresh.request_id if fresh else tree.oldest()
        self._held = {prefix: None for prefix in self._held if tree.runs(prefix)}
        if self.plan.refilled and gone <= 0.5:
            for prefix in self._held:
                if (relative := tree.first_through(prefix)) is not None:
                    return relative
        if fresh is None:
            return None
        if len(self._held) < self.plan.prefixes and (self._forming or self.plan.refilled):
            return fresh.request_id
        return fresh.request_id if self._joins_the_last(tree, room, fresh) else None

    def _joins_the_last(self, tree: ChunkedHashTree, room: float, fresh: Branch) -> bool:
        """Whether the next batch may begin beside the last rows of the one before: where that is cheaper, or to see what it costs."""
        load, count = tree.load(), min(fresh.waiting, room)
        if self._since > _RARER and load.rows <= _PROBE * count:
            return True
        apart = self.cost.seconds(load) + self.cost.seconds(tree.load_alone(fresh, count))
        return may_join(load.rows, count, self.cost.seconds(tree.load_with(fresh, count)), apart)

    # -- the plan ------------------------------------------------------------------------------------------------------

    def begin_step(self, tree: ChunkedHashTree, max_batch: float, max_wait: float, contended: bool) -> None:
        self._entering, self._forming = None, not tree.active
        self._unheard += 1
        if len(self._held) > 2 * len(tree.active) + 8:
            self._held = {prefix: None for prefix in self._held if tree.runs(prefix)}
        if not contended:
            self._pressed = 0.0
        self._is_calm = self.calm
        if not contended or self._is_calm:
            return
        load, experiment = tree.load(), self.experiment
        if not experiment.over:
            if experiment.runs and experiment.mixes and prefixes(load) > 1:
                self.traffic.common = load.tip
            if experiment.begin_step(tree, max_batch, self.traffic.varied):
                self._since = 0.0
                self._plan_at_once(tree, max_batch, max_wait)
            return
        if not self.rates:
            self._plan_at_once(tree, max_batch, max_wait)
        if prefixes(load) > 1.5:
            self.traffic.common += (load.tip - self.traffic.common) * 0.02
        # A surprise in what the plan does not show, a mixed step of a plan that takes one prefix at a time, has taught what an experiment would.
        changed = self.cost.changes > self._changes and is_pure(load) == (self.plan.prefixes == 1)
        self._changes = self.cost.changes
        if changed or not self.plan.prefixes and self._since > max(_RAREST, experiment.lost / _BUDGET):
            self._worth.clear()
            self.experiments += 1
            experiment.restart()
        elif self._rehearsal:
            self._play(int(self._owed))
            self._owed -= int(self._owed)
        elif self._rested > _AGAIN or self.cost.steps < _YOUNG and self.traffic.knows_lifetimes:
            self._begin_round(tree, max_batch, max_wait)

    def _plan_at_once(self, tree: ChunkedHashTree, max_batch: float, max_wait: float) -> None:
        self._begin_round(tree, max_batch, max_wait)
        while self._rehearsal:
            self._play(1000)

    def _begin_round(self, tree: ChunkedHashTree, max_batch: float, max_wait: float) -> None:
        self._rested = self._owed = 0.0
        if self.traffic.knows_lifetimes and not self._known:
            self._worth.clear()
        self._known = self.traffic.knows_lifetimes
        scene = self.traffic.scene(tree, max_batch, max_wait)
        self._played = []
        self._plans = [plan for plan in PLANS if plan.prefixes <= len(scene.shares)]
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
        self.traffic.arrived(tree, request_id)

    def finished(self, request_id: Hashable, steps: int) -> None:
        self.traffic.finished(request_id, steps)

    def feedback(self, step: Step) -> None:
        if not (math.isfinite(step.seconds) and step.seconds > 0):
            return
        self._unheard = 0
        self.cost.observe(step.load, step.seconds, step.prefill_tokens)
        self.traffic.passed(step.seconds)
        self._pressed += step.seconds
        self._since += step.seconds
        self._rested += step.seconds
        self._owed += step.seconds * _PLAYS
        if step.admitted:
            self.traffic.admitted(step.admitted, step.prefill_tokens)
        if self.experiment.runs:
            self.experiment.ran(step, self._usual)
            return
        self._usual += (step.tokens / step.seconds - self._usual) * (0.02 if self._usual else 1.0)
        if is_pure(step.load) != bool(self.plan.prefixes):
            self._since = 0.0

    def told(self) -> dict[str, float]:
        prices = {f"price_{name}": price for name, price in self.cost.prices.items()}
        return prices | {f"promise_{plan}": rate for plan, rate in self.rates.items()}

    def learned(self) -> Any:
        return {"cost": self.cost.learned(), "stage": self.experiment.stage, **self.traffic.learned()}

    def restore(self, learned: Any) -> None:
        stage = int(learned["stage"])
        if stage not in range(OVER + 1):
            raise ValueError(f"its stage {stage} is not one of 0 to {OVER}")
        traffic = Traffic()
        traffic.restore(learned)
        self.cost.restore(learned["cost"])
        self.traffic, self.experiment.stage = traffic, stage

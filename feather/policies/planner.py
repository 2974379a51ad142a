"""A policy that learns what a step costs, plays through what each way to form batches would give, and follows the best."""

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from feather.cht import ChunkedHashTree
from feather.cost import StepCost
from feather.plans import ARRIVAL, PLANS, RELATIVES, Plan, next_of, patience
from feather.policies.base import CommonOptions, Policy, Step
from feather.policies.experiment import OVER, Experiment
from feather.policies.forming import InEarnest
from feather.rehearsal import Rehearsal, Scene
from feather.settings import setting
from feather.traffic import Traffic
from feather.turns import USUAL_WAIT

_PAYS, _KEEPS = 0.03, 0.015  # by which a plan must be better than a fairer one to be taken, and to be kept
_PLAYS = 2000  # work of rehearsals per second of serving
_AT_ONCE = 3000  # and at least per step, until a round after an experiment is over: until then nobody joins
_AGAIN = 5.0  # seconds between two rounds of rehearsals, but for
_YOUNG = 1000  # the first steps, in which one follows the other
_UNHEARD = 100  # steps without a result, after which the order of arrival is left
_RAREST = 120.0  # seconds without what the plan does not show, after which an experiment shows it,
_TURNS = 10  # and at least so many full batches' time: what it mixes takes longer than itself to go in order again,
_SURPRISED = 20.0  # and if prices have changed since the last
_RARER = 15.0  # seconds without a mixed batch, after which the next prefix begins beside a batch's last rows
_CALM = 0.95  # share of what order of arrival can give, up to which requests may come and it will do, if
_QUIET = 60.0  # seconds at most have passed without a moment in which nobody had to wait
_BROKEN = 0.5  # of what a plan has promised: with less, what comes is counted anew, but
_TELLS = 100  # steps of a plan have to show it
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

    def __init__(self, settings: PlannerSettings | None = None, chunk_size: int = 512) -> None:
        self.wanted = settings or PlannerSettings()
        self.cost = StepCost()
        self.traffic = Traffic(chunk_size)
        self.experiment = Experiment()
        self.experiments = 0
        """begun since the first"""
        self.plan: Plan = ARRIVAL
        self.rates: dict[str, float] = {}
        """plan → promised throughput, tok/s"""
        self._since = 0.0  # seconds without a batch such as the plan does not make: of one prefix, or mixed
        self._changes = 0  # of the prices, when the last experiment began
        self._recounts = 0  # when the present round began
        self._usual = 0.0  # throughput outside of experiments, tok/s
        self._followed = 0  # steps of it that the present plan has been followed in a row
        self._rehearsal: Rehearsal | None = None  # that is being played
        self._plans: list[Plan] = []  # of the present round
        self._played: list[Rehearsal] = []
        self._worth: dict[Plan, float] = {}  # of the plans, over that of the first, averaged over rounds
        self._known = False  # whether the present round knows how long any request runs
        self._fair_wait = self._limit = float("inf")  # seconds: in order of arrival, and beyond that at most
        self._turn = 0.0  # seconds that a full batch takes
        self._unheard = 0  # steps begun since the last result
        self._owed = 0.0  # work of rehearsals; below 0 after a step that took more
        self._hurries = False  # whether the present round is played as fast as may be
        self._holds = (
            False  # whether nobody joins until it is over: an experiment has just ended, and the plan of before it would fill the batch
        )
        self._rested = 0.0  # seconds since the last round
        self._forming = InEarnest(self.cost)
        self.calm = False
        """whether order of arrival keeps up with what comes, although a queue has built up: to overtake would gain nothing but tails"""
        self._pressed = math.inf  # seconds since nobody had to wait; a first queue has no such moment

    @classmethod
    def make(cls, settings: PlannerSettings, common: CommonOptions) -> "Planner":
        return cls(settings, common.chunk_size)

    @property
    def fills(self) -> bool:  # type: ignore[override]
        """Whether the batch is always filled at present."""
        return self.calm or not (self.experiment.runs or self._holds) and self.plan in (ARRIVAL, RELATIVES)

    # -- the decision --------------------------------------------------------------------------------------------------

    def choose(self, tree: ChunkedHashTree, room: float, waited: float, late: bool) -> Hashable | None:
        forming, gone = self._forming, patience(waited, self._fair_wait, self._limit)
        forming.asked(tree, room, self.plan.prefixes == 1 and self._since > _RARER)
        if self.calm or gone >= 1 or late and (self.experiment.runs or self._holds) or self._unheard > _UNHEARD:
            chosen: Hashable | None = tree.oldest()
        elif self._holds and tree.active:
            chosen = None
        elif self.experiment.runs:
            chosen = self.experiment.choose(tree, forming.last)
        else:
            chosen = next_of(self.plan, forming, gone)
        if chosen is not None:
            forming.admitted(chosen)
        return chosen

    # -- the plan ------------------------------------------------------------------------------------------------------

    def begin_step(self, tree: ChunkedHashTree, max_batch: float, max_wait: float, contended: bool) -> None:
        self._forming.begin_step(tree)
        self._unheard = self._unheard + 1 if tree.active else 0
        if not contended:
            self._pressed = 0.0
        self.calm = self._pressed < _QUIET and self.traffic.offered < _CALM * self.rates.get(ARRIVAL.name, 0.0)
        if not contended or self.calm:
            return
        load, experiment = tree.load(), self.experiment
        if not experiment.over:
            if experiment.runs and experiment.mixes and load.prefixes > 1:
                self.traffic.common = load.tip
            if ended := experiment.begin_step(tree, max_batch, self.traffic.varied):
                self._since, self._holds = 0.0, True
                self._begin_round(tree, max_batch, max_wait, hurries=True)
            if ended or experiment.runs or not self.rates:
                return
        if not self.rates and not self._rehearsal:
            self._begin_round(tree, max_batch, max_wait, hurries=True)
        if load.prefixes > 1.5:
            self.traffic.common += (load.tip - self.traffic.common) * 0.02
        rarest = _SURPRISED if self.cost.changes > self._changes else max(_RAREST, _TURNS * self._turn)
        if experiment.over and self._since > max(rarest, experiment.lost / _BUDGET):
            self._worth.clear()
            self._changes = self.cost.changes
            self.experiments += 1
            experiment.restart()
        elif self._rehearsal:
            self._play(max(self._owed, _AT_ONCE * self._hurries))
        elif self._rested > _AGAIN or self.cost.steps < _YOUNG and self.traffic.knows_lifetimes:
            self._begin_round(tree, max_batch, max_wait)

    def _begin_round(self, tree: ChunkedHashTree, max_batch: float, max_wait: float, hurries: bool = False) -> None:
        self._rested, self._owed, self._hurries = 0.0, 0.0, hurries
        if self.traffic.knows_lifetimes and not self._known:
            self._worth.clear()
        if self.plan.prefixes and self._followed > _TELLS and self._usual < _BROKEN * self.rates.get(self.plan.name, 0.0):
            self.traffic.recount(tree)
        if self.traffic.recounts > self._recounts:
            self._recounts = self.traffic.recounts
            self._worth.clear()
        self._known = self.traffic.knows_lifetimes
        scene = self.traffic.scene(tree, max_batch, max_wait)
        self._played = []
        self._plans = [plan for plan in PLANS if plan.prefixes <= len(scene.shares)]
        self._rehearse(ARRIVAL, scene)

    def _rehearse(self, plan: Plan, scene: Scene) -> None:
        self._rehearsal = Rehearsal(plan, scene, self.cost)
        self._owed -= self._rehearsal.work

    def _play(self, work: float) -> None:
        assert self._rehearsal is not None
        before = self._rehearsal.work
        ended = self._rehearsal.advance(work)
        self._owed -= self._rehearsal.work - before
        if not ended:
            return
        scene, played = self._rehearsal.scene, self._played
        played.append(self._rehearsal)
        if len(played) == 1:
            self._fair_wait, self._turn = played[0].longest_wait, played[0].turn
            self._limit = self._allowed(scene.max_wait if scene.max_wait >= 0 else max(USUAL_WAIT, self._turn))
            scene = scene._replace(fair_wait=self._fair_wait, max_wait=self._limit)
        if len(played) < len(self._plans):
            self._rehearse(self._plans[len(played)], scene)
        else:
            self._rehearsal = None
            self._choose_plan()

    def _allowed(self, max_wait: float) -> float:
        """Seconds that a request may wait beyond what it would in order of arrival. At half of it no more join before it whose turn is later; a batch of
        few prefixes is then run to its end first, for letting strangers in would slow it down, and with it everybody. Where nobody says how long,
        it is no shorter than a full batch runs: once all of one are late, they mix the next, which is late then, and so for ever."""
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
        self._holds = False
        self._followed *= best == self.plan
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
        self.traffic.admitted(step.admitted, step.prefill_tokens)
        if not step.prefill_tokens:
            self.traffic.holds(step.load, step.kv_use)
        if not step.contended:
            self._followed = 0
            return
        if self.experiment.runs and not step.burst and not self.calm:
            self.experiment.ran(step, self._usual)
            return
        self._followed += 1
        self._usual += (step.tokens / step.seconds - self._usual) * (0.02 if self._usual else 1.0)
        if step.load.is_pure != (self.plan.prefixes == 1):
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
        traffic = Traffic(self.traffic.chunk_size)
        traffic.restore(learned)
        self.cost.restore(learned["cost"])
        self.traffic, self.experiment.stage = traffic, stage

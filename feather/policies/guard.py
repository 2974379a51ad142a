"""No regret: a policy drives only while it beats never stopping, and what trying it may cost is bounded."""

import logging
import math
from dataclasses import dataclass, field

from feather.policies.base import BatchState, Policy, Step
from feather.policies.rate import Rate

logger = logging.getLogger("feather")

_UNHEARD = 1000  # decisions without a result, after which results are taken for missing
_FEWEST = 8  # steps of a trial before it can be lost
_RARER = 3.0  # times, that trials of never stopping may be rarer than those of the policy
_CHANGE = 0.25  # of the incumbent's throughput, at which the workload is taken for another


@dataclass
class Guard(Policy):
    """Lets ``policy`` drive where it beats never stopping, and never stops where it does not.

    One of the two is the incumbent; the other, the challenger, gets trials. A trial's *regret* is the time it has lost
    against the incumbent's throughput. Time without trials earns a budget, and a trial whose regret exceeds it is broken off.
    What it lost is paid from the budget, so that the next one waits the longer the dearer it was. For trials of the policy
    that bounds the loss; a trial of never stopping may cost more, since what it has admitted runs to its end.

    A challenger that has kept up for ``enough`` seconds becomes the incumbent: the policy if it was better by ``margin``, never
    stopping also if it was equal. After a trial that failed the next one waits twice as long; and again ``first`` once never
    stopping gives another throughput than it did, or the policy less than never stopping did.

    In a burst never stopping drives, the incumbent or not, and nothing is learned: while the engine keeps up, what is held back
    only waits longer. What the policy then finds in the batch is not charged to it.

    Only steps count that had more requests than fit, since any others would have been the same under both. What prefill takes
    is left out, by an estimate of its cost per token: a trial begins with some, and either would have had to do it.

    Results that are missing or not finite teach nothing, and without any the policy does not drive.
    """

    kind = "feather guard"

    policy: Policy
    share: float = 0.02
    """of the time, that trials may lose"""
    margin: float = 0.05
    """by which the policy must be better to take over"""
    first: float = 2.0
    """seconds before the first trial"""
    rarest: float = 60.0
    """seconds between two trials of the policy, at most; between two of never stopping up to three times as many"""
    enough: float = 2.0
    """seconds that a challenger must have kept up"""
    settling: float = 0.1
    """share of its time that a trial may lose on top of the budget while the incumbent's requests still run"""
    fills: bool = True
    """whether never stopping drives at present"""
    phase: int = 0
    on_trial: bool = False
    """whether that which drives is the challenger"""
    trials: int = 0
    takeovers: int = 0
    rates: dict[bool, Rate] = field(default_factory=dict)
    """of never stopping (True) and of the policy (False), when they last drove"""
    budget: float = 0.0
    """seconds that may be lost to a trial"""
    regret: float = 0.0
    """seconds that the present trial has lost"""
    _resting: bool = False  # the policy is the incumbent, and never stopping drives because of a burst
    _resumed: bool = False  # the policy drives again, and what runs is not yet its own
    _before: Rate | None = None  # the challenger's rate before the present trial
    _wait: float = 0.0
    _since_trial: float = 0.0
    _settling_regret: float = 0.0
    _ran: float = 0.0
    _unsettled: float = 0.0
    _usual: float = 0.0  # the incumbent's throughput before the trial
    _prefill_seconds: float = 0.0
    _prefill_tokens: float = 0.0
    _steps: int = 0
    _unheard: int = 0

    def __post_init__(self) -> None:
        self.rates = self.rates or {fills: Rate(5 * self.enough) for fills in (True, False)}
        self._wait = self.first
        self.wide, self.commits = self.policy.wide, self.policy.commits

    def decide(self, state: BatchState) -> bool:
        if self.fills:
            return True
        self._unheard += 1
        if self._unheard > _UNHEARD:
            logger.warning("no step's result for %d decisions: Feather does not stop batches until results come again", _UNHEARD)
            self._unheard = 0
            self.on_trial = False
            self._switch()
            return True
        return self.policy.decide(state)

    def feedback(self, step: Step) -> None:
        if not (math.isfinite(step.tokens) and math.isfinite(step.seconds) and step.seconds > 0):
            return
        self._unheard = 0
        if step.phase != self.phase:
            return
        if not self.fills:
            self.policy.feedback(step)
        if step.burst:
            self._rest()
        if step.burst or not step.contended:
            return
        if self._resting:
            self._resting, self._resumed = False, True
            self._change_driver()
            return
        seconds = self._decoding_seconds(step)
        if not seconds:
            return
        if self._is_settled(step, seconds):
            self.rates[self.fills].add(step.tokens, seconds)
            settled_seconds = seconds
        else:
            settled_seconds = 0.0
        lost = seconds - step.tokens / self._usual if self._usual else 0.0
        if self.on_trial:
            self._judge(lost, settled_seconds)
        else:
            self._reign(lost, settled_seconds)

    # -- the incumbent drives ----------------------------------------------------------------------------------------

    def _reign(self, lost: float, settled_seconds: float) -> None:
        if not settled_seconds:
            if not (self.fills or self._resumed):
                self.budget -= max(lost, 0.0)  # what never stopping has left in the batch
            return
        self._resumed = False
        self._since_trial += settled_seconds
        self.budget = min(self.budget + self.share * settled_seconds, self.share * self.rarest)
        if self._since_trial < min(self.enough, self.first):
            return
        now = self.rates[self.fills].value
        self._notice_change(now)
        if self._since_trial >= self._wait and self.budget > 0:
            self._usual = now
            self._start_trial()

    def _notice_change(self, now: float) -> None:
        """A workload that has changed may have changed which of the two is better. Homogeneous batches come and go, and the
        throughput with them: the policy is put to the test only where it gives less than never stopping last did."""
        if not self.fills:
            self._usual = now
            if now < self.rates[True].value:
                self._wait = self.first
        elif not self._usual or abs(now / self._usual - 1) > _CHANGE:
            self._usual, self._wait = now, self.first

    def _start_trial(self) -> None:
        self.trials += 1
        self.on_trial = True
        self.regret = self._settling_regret = self._ran = 0.0
        self._steps = 0
        self._before = self.rates[not self.fills]
        self._switch()

    # -- the challenger drives ---------------------------------------------------------------------------------------

    def _judge(self, lost: float, settled_seconds: float) -> None:
        self._steps += 1
        self.regret += lost
        self._ran += settled_seconds
        allowed = self.budget
        if not settled_seconds:
            self._settling_regret += lost
            allowed += self.settling * self._unsettled
        if self.regret - (self._settling_regret if settled_seconds else 0.0) > allowed and self._steps >= _FEWEST:
            self._end_trial(won=False)
        elif self._ran >= self.enough:
            ahead = self.rates[self.fills].value / self._usual - 1
            if ahead >= (0 if self.fills else self.margin):
                self._end_trial(won=True)
            elif self._ran >= 5 * self.enough:
                self._end_trial(won=self.fills and ahead > -self.margin)

    def _end_trial(self, won: bool) -> None:
        self.on_trial = False
        self._since_trial = 0.0
        if won:
            self.takeovers += 1
            self._usual, self.budget = self.rates[self.fills].value, 0.0
        else:
            self.budget -= max(self.regret, 0.0)
            self._switch()
        if self.fills:
            self._wait = self.first if won else min(2 * self._wait, self.rarest)
        else:
            # The better the policy is, the dearer is a trial of never stopping, and the less likely to win.
            never = self.rates[True].value
            self._wait = self.rarest * min(max(self._usual / never, 1.0), _RARER) if never else self.rarest

    def _switch(self) -> None:
        self._change_driver()
        self.rates[self.fills] = Rate(5 * self.enough)

    def _change_driver(self) -> None:
        self.fills = not self.fills
        self.phase += 1
        self._unsettled = 0.0

    # -- neither does --------------------------------------------------------------------------------------------------

    def _rest(self) -> None:
        """Never stopping drives until there is something to gain; a trial that has begun is paid for and says nothing."""
        self._resting |= self.fills == self.on_trial
        if self.on_trial:
            self.on_trial = False
            self._since_trial = 0.0
            self.budget -= max(self.regret, 0.0)
            self.rates[self.fills] = self._before or Rate(5 * self.enough)
        self._since_trial = min(self._since_trial, self._wait - self.enough)  # the next one is judged by what comes after the burst
        if not self.fills:
            self._change_driver()

    # -- what a step is worth ------------------------------------------------------------------------------------------

    def _is_settled(self, step: Step, seconds: float) -> bool:
        if not step.settled:
            self._unsettled += seconds
        return step.settled or self._unsettled > self.rarest

    def _decoding_seconds(self, step: Step) -> float:
        """The step's time without what its prefill took; 0 for a step that is mostly prefill."""
        if not step.prefill_tokens:
            return step.seconds
        if step.prefill_tokens > step.tokens:
            return 0.0
        rate = self.rates[self.fills].value or self._usual
        if not rate:
            return step.seconds
        self._prefill_seconds = 0.98 * self._prefill_seconds + max(step.seconds - step.tokens / rate, 0.0)
        self._prefill_tokens = 0.98 * self._prefill_tokens + step.prefill_tokens
        return max(step.seconds - step.prefill_tokens * self._prefill_seconds / self._prefill_tokens, 0.0)

    # -- what it has learned -------------------------------------------------------------------------------------------

    def learned(self) -> dict:
        inner = None if self.policy.kind is None else self.policy.learned()
        return {"fills": self.fills != (self.on_trial or self._resting), "policy": [self.policy.kind, inner]}

    def restore(self, learned: dict) -> None:
        kind, inner = learned["policy"]
        if kind != self.policy.kind:
            raise ValueError(f"it guarded a {kind}, not a {self.policy.kind}")
        if kind is not None:
            self.policy.restore(inner)
        self.fills = bool(learned["fills"])

"""An online contextual bandit over (b, Δ, w): a table of decode throughput per context and action."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from feather.policies import Step
from lab.policies.stopping import BatchState, Decision, Stopping

Context = tuple[int, int, int]


@dataclass
class Outcome:
    """What one action gave in one context. Evidence fades, so the three numbers need not be whole."""

    tokens: float = 0.0
    seconds: float = 0.0
    steps: float = 0.0

    @property
    def throughput(self) -> float:
        """tok/s; 0 before the first step"""
        return self.tokens / self.seconds if self.seconds else 0.0

    def fade(self, keep: float) -> None:
        self.tokens, self.seconds, self.steps = keep * self.tokens, keep * self.seconds, keep * self.steps


def context(state: BatchState) -> Context:
    """The state in powers of two: 0, 1, 2-3, 4-7, 8-15 …; w in five classes, the last for all above 7."""
    return state.batch_size.bit_length(), state.tip_loss.bit_length(), min(state.sharing.bit_length(), 4)


@dataclass
class Bandit(Stopping):
    """Adds or stops, whichever has given the higher decode throughput in this context. It learns while serving.

    A candidate that costs no shared prefix is always added. A STOP holds until its batch is gone. With unequal decode lengths
    a batch drains slowly; a bandit that is asked again meanwhile and judges by the next steps always finds that others should
    join its last few requests, which mixes the next batch too.

    An action that was run for fewer than ``trial`` steps counts as good as the best seen in any context (optimism in the face
    of uncertainty, Lai and Robbins 1985). So STOP is tried where nothing is known, and the other action where the first
    disappoints. All evidence fades with decoding time, so that the table follows a workload that changes.

    The reward is the paper's, decode throughput: tokens ÷ seconds of the steps that only decode, from the decision until the
    last request is gone that was in the batch then.
    """

    kind = "feather bandit"
    commits = True

    trial: float = 8.0
    """steps before an action's throughput is believed"""
    horizon: float = 60.0
    """seconds of decoding after which evidence has faded to 1/e"""
    table: dict[Context, dict[bool, Outcome]] = field(default_factory=dict)
    """context → outcome of each action"""
    _best: float = 0.0
    _unfaded: float = 0.0

    def decide(self, state: BatchState) -> bool:
        if not state.tip_loss:
            return True
        outcomes = self.table.get(context(state))
        return outcomes is not None and self._promise(outcomes[True]) > self._promise(outcomes[False])

    def _promise(self, outcome: Outcome) -> float:
        return outcome.throughput if outcome.steps >= self.trial else self._best

    def judge(self, step: Step, decisions: Sequence[Decision], alone: bool) -> None:
        if step.prefill_tokens:
            return
        for state, add in decisions:
            if not (add or alone):
                continue  # if it is slow, then because of requests that an earlier ADD has left
            outcome = self.table.setdefault(context(state), {False: Outcome(), True: Outcome()})[add]
            outcome.tokens += step.tokens
            outcome.seconds += step.seconds
            outcome.steps += 1
        self._fade(step.seconds)
        self._find_best()

    def _find_best(self) -> None:
        outcomes = (outcome for both in self.table.values() for outcome in both.values())
        self._best = max((outcome.throughput for outcome in outcomes if outcome.steps >= self.trial), default=0.0)

    def _fade(self, seconds: float) -> None:
        self._unfaded += seconds
        if self._unfaded < self.horizon / 16:
            return
        keep = math.exp(-self._unfaded / self.horizon)
        self._unfaded = 0.0
        for both in self.table.values():
            for outcome in both.values():
                outcome.fade(keep)

    def learned(self) -> list:
        return [
            [*where, add, outcome.tokens, outcome.seconds, outcome.steps]
            for where, both in self.table.items()
            for add, outcome in both.items()
        ]

    def restore(self, learned: list) -> None:
        table: dict[Context, dict[bool, Outcome]] = {}
        for b, loss, sharing, add, tokens, seconds, steps in learned:
            both = table.setdefault((int(b), int(loss), int(sharing)), {False: Outcome(), True: Outcome()})
            both[bool(add)] = Outcome(float(tokens), float(seconds), float(steps))
        self.table = table
        self._find_best()

"""What the paper's authors published besides the paper: the rule of their vLLM pull request (42134), and the bandit and the two rules without
learning of their replication package. In their words each stops on conditions that ``lab.policies.threshold`` and ``bandit`` only resemble.

They run over our tree and former, with everything of ours turned off that could overrule them: no stragglers, no limit on the
wait, no bursts, no commitment.
"""

import math
from typing import Any

from feather.cht import Candidate, ChunkedHashTree
from feather.former import BatchFormer
from feather.policies import Step
from lab.policies import BatchState, Stopping, StoppingFormer


class Published(Stopping):
    """Sees the candidate and the tree besides the state."""

    chunk_size = 50
    """tokens per chunk of the tree"""

    def look(self, candidate: Candidate, tree: ChunkedHashTree) -> None:
        """Called before ``decide`` with what it decides about."""
        self.cost, self.tip = candidate.cost * self.chunk_size, candidate.tip_before
        # Waiting requests that share the tip as it would be; nobody shares the root.
        self.sharing_after = tree.sharing_at(candidate.tip_after) if candidate.tip_after else 0


class Rule(Published):
    """The rule of the pull request: at most 5 chunks of the shared prefix for a candidate, or 7 if at least 10 waiting requests share what
    would be left of it. Below a floor everybody is admitted; the floor begins at 1 and rises by 1, up to 10, with every
    admission that costs nothing, for good."""

    def __init__(self) -> None:
        self.floor = 1

    def decide(self, state: BatchState) -> bool:
        allowed = 7 if self.sharing_after >= 10 else 5
        add = state.batch_size < self.floor or state.tip_loss <= allowed
        if add and not state.tip_loss:
            self.floor = min(self.floor + 1, 10)
        return add


class RadixCost(Published):
    """Admits while the candidate has at most 50 tokens outside the working set."""

    chunk_size = 10  # theirs is a radix tree, of single tokens; so the cost is told to within ten

    def decide(self, state: BatchState) -> bool:
        return self.cost <= 50


class PlainTree(Published):
    """Admits while the candidate has at most one chunk of 500 tokens outside the working set."""

    chunk_size = 500

    def decide(self, state: BatchState) -> bool:
        return self.cost <= self.chunk_size


class UpperConfidenceBandit(Published):
    """The bandit of the replication package: UCB1 over (b / 4 up to 10, loss up to 5 chunks, w / 4 up to 10), each action once and then
    whichever has the higher mean + 200 sqrt(ln n / n_action). A candidate that costs nothing while there is a tip is always added. The reward
    of the decisions of one schedule call is the batch's size over the time until the next."""

    exploration = 200.0

    def __init__(self) -> None:
        self.table: dict[tuple[int, int, int], dict[bool, list[float]]] = {}  # state -> action -> [times, sum of rewards]
        self._made: list[list[float]] = []  # what this step's decisions add to

    def decide(self, state: BatchState) -> bool:
        if not state.tip_loss and self.tip:
            return True
        sharing = state.sharing if self.tip else 0
        where = min(state.batch_size // 4, 10), max(-5, min(state.tip_loss, 5)), min(sharing // 4, 10)
        actions = self.table.setdefault(where, {True: [0.0, 0.0], False: [0.0, 0.0]})
        tried = sum(times for times, _ in actions.values())
        add = max(actions, key=lambda action: self._bound(*actions[action], tried))
        self._made.append(actions[add])
        return add

    def _bound(self, times: float, rewards: float, tried: float) -> float:
        if not times:
            return math.inf
        return rewards / times + self.exploration * math.sqrt(math.log(tried) / times)

    def feedback(self, step: Step) -> None:
        for outcome in self._made:
            outcome[0] += 1
            outcome[1] += step.tokens / step.seconds if step.seconds else 0.0
        self._made.clear()


RULES: dict[str, type[Published]] = {"rule": Rule, "bandit": UpperConfidenceBandit, "radix cost": RadixCost, "plain CHT": PlainTree}


class _Former(StoppingFormer):
    policy: Published

    def question(self, candidate: Candidate) -> BatchState:
        self.policy.look(candidate, self.tree)
        return super().question(candidate)


def make_former(rule: str, **engine: Any) -> tuple[BatchFormer, int]:
    """A batch former with one of ``RULES``, and the tokens per chunk of its tree. ``engine``: what only the engine knows, see
    ``BatchFormer``."""
    policy = RULES[rule]()
    return _Former(policy, **engine), policy.chunk_size

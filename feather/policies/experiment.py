"""A short deliberate variation of the batch, which shows what homogeneity is worth here."""

from collections.abc import Hashable
from math import inf

from feather.cht import ChunkedHashTree
from feather.policies.base import Step

_SEEN = 3  # decode-only steps of each kind that it waits for
_LASTS, _PRESSED = 1.5, 32  # batches of requests, or steps under pressure, from which on a queue is taken to last
_STRANGERS = 1.5  # times the rows of the first prefix, that it fills up to with the second
_MOST_LOST = 10.0  # seconds, after which it is broken off
_MOST_PROMPTS = 100  # steps, after which it is broken off if all had prompts: where requests run for a single step, none is without
_ONE, _MORE, _STRANGER, _STRANGERS_JOIN, OVER = range(5)  # its stages


class Experiment:
    """A batch of one prefix grows, then one request of a second prefix joins, then more of that. It begins with the first queue that lasts and has
    several prefixes: with less there is nothing to choose."""

    def __init__(self) -> None:
        self.stage = _ONE
        self.begun = False
        """whether it waits no longer for a queue that lasts"""
        self.lost = 0.0
        """seconds that it has cost, as far as that is known"""
        self._steps = 0  # decoded in this stage
        self._prompts = 0.0  # steps until one has no prompt
        self._rows = 0.0  # in the batch when it began
        self._pressed = 0  # steps in a row that left half as many waiting as run

    @property
    def over(self) -> bool:
        return self.stage == OVER

    @property
    def runs(self) -> bool:
        """Whether it decides who joins: it has begun and is not over."""
        return self.begun and not self.over

    @property
    def mixes(self) -> bool:
        """Whether a second prefix may be in the batch."""
        return self.stage >= _STRANGER

    def restart(self) -> None:
        self.stage, self._steps, self._prompts, self.lost = _ONE, 0, 0.0, 0.0

    def begin_step(self, tree: ChunkedHashTree, max_batch: float, varied: bool) -> bool:
        """A scheduling step begins, under contention. ``varied``: whether several prefixes come. Returns whether it ends the experiment."""
        self.begun = self.begun or self._lasts(len(tree.active), len(tree.waiting), max_batch) and varied
        if not self.begun:
            return False
        if self.lost > _MOST_LOST or self._prompts > _MOST_PROMPTS:
            self.stage = OVER
        elif self._stage_done(tree, max_batch):
            rows = tree.load().rows
            self.stage, self._steps, self._rows = self.stage + 1, 0, rows
            if self.stage == _STRANGER and (tree.largest_branch() is None or rows < 2):
                self.stage = OVER
        if self.stage == OVER:
            self.begun, self._pressed = False, 0
        return self.stage == OVER

    def choose(self, tree: ChunkedHashTree, last: Hashable) -> Hashable | None:
        """Whom it admits; ``last``: the prefix that was let in last."""
        load, fresh = tree.load(), tree.largest_branch()
        if not load.rows:
            return fresh.request_id if fresh else tree.oldest()
        grows_to = {_MORE: 2 ** (self._steps // _SEEN), _STRANGERS_JOIN: _STRANGERS * self._rows}.get(self.stage, 0)
        if load.rows < grows_to:
            return tree.first_through(last)
        if self.stage == _STRANGER and load.prefixes <= 1 and fresh is not None:
            return fresh.request_id
        return None

    def ran(self, step: Step, usual: float) -> None:
        """A step of it has run; ``usual``: throughput outside of experiments, tok/s, or 0."""
        self._steps += not step.prefill_tokens
        self._prompts += 1 if step.prefill_tokens else -inf
        self.lost += step.seconds - step.tokens / usual if usual else 0.0

    def _lasts(self, running: int, waiting: int, max_batch: float) -> bool:
        """Whether the queue will last for long enough to learn from it: more than fit, by the size of the batch or as it has shown."""
        self._pressed = self._pressed + 1 if waiting >= running / 2 > 0 else 0
        return running + waiting >= _LASTS * max_batch or self._pressed > _PRESSED

    def _stage_done(self, tree: ChunkedHashTree, max_batch: float) -> bool:
        load, steps = tree.load(), self._steps
        if self.stage == _ONE:
            return load.rows > 0 and load.is_pure
        if self.stage == _MORE:
            return steps >= 2 * _SEEN and (load.rows < 2 ** (steps // _SEEN - 1) or load.rows >= max_batch / 2)
        return steps >= (_SEEN if self.stage == _STRANGER else 2 * _SEEN) or not tree.waiting

"""A trace of every decision and every step's result: lines of JSON in a file of bounded size."""

import json
import logging
import sys
import time
from collections.abc import Callable, Hashable
from logging.handlers import RotatingFileHandler
from typing import Any

from feather.cht import ChunkedHashTree
from feather.policies.base import BatchState, Policy, Step
from feather.policies.checkpoint import is_ours

logger = logging.getLogger("feather")


class _Lines(RotatingFileHandler):
    """A file that ends where it cannot be written any more, e.g. on a full disk; that is told once."""

    ended = False

    def handleError(self, record: logging.LogRecord) -> None:
        self.ended = True
        logger.warning("Feather's trace %s ends: %s", self.baseFilename, sys.exception())


class Traced(Policy):
    """Writes down what a policy decides; behaves like that policy otherwise.

    One line per step: ``t`` (Unix time, s), ``tokens``, ``seconds``, ``prefill`` (tokens), ``contended``, ``burst``, ``fills`` (the
    policy never stops at present), ``told`` (what it tells the operator: prices, promises), and ``decisions``: those made since
    the line before, each as [b, Δ, w, waiting, stragglers, added]. The file holds the last ``megabytes``; up to half of them are in a second file, with ".1" after its name.

    Raises OSError if the file cannot be written, or another process writes it.
    """

    def __init__(self, policy: Policy, path: str, megabytes: int = 64, clock: Callable[[], float] = time.time):
        self.policy = policy
        self._clock = clock
        self._asked: list[list] = []
        if not is_ours(path):
            raise OSError(f"another process writes {path}: give each server a file")
        # Used without a logger, so that nothing that the engine configures affects it.
        self._handler = _Lines(path, maxBytes=megabytes * 500_000, backupCount=1, encoding="utf-8")

    def decide(self, state: BatchState) -> bool:
        add = self.policy.decide(state)
        self._asked.append([state.batch_size, state.tip_loss, state.sharing, state.waiting, state.stragglers, add])
        return add

    def feedback(self, step: Step) -> None:
        line = {
            "t": round(self._clock(), 6),
            "tokens": step.tokens,
            "seconds": round(step.seconds, 6),
            "prefill": step.prefill_tokens,
            "contended": step.contended,
            "burst": step.burst,
            "fills": self.policy.fills,
            "told": self.policy.told(),
            "decisions": self._asked,
        }
        self._asked = []
        if not self._handler.ended:
            self._handler.emit(logging.LogRecord("feather", logging.INFO, "", 0, json.dumps(line), None, None))
        self.policy.feedback(step)

    def arrived(self, tree: ChunkedHashTree, request_id: Hashable) -> None:
        self.policy.arrived(tree, request_id)

    def finished(self, request_id: Hashable, steps: int) -> None:
        self.policy.finished(request_id, steps)

    def told(self) -> dict[str, float]:
        return self.policy.told()

    def begin_step(self, tree: ChunkedHashTree, max_batch: float, max_wait: float, contended: bool) -> None:
        self.policy.begin_step(tree, max_batch, max_wait, contended)

    def choose(self, tree: ChunkedHashTree, room: float, waited: float) -> Hashable | None:
        chosen, best = self.policy.choose(tree, room, waited), tree.find_best()
        if best is not None and tree.active:
            loss = best.tip_before - best.tip_after
            self._asked.append([len(tree.active), loss, best.sharing, len(tree.waiting), 0, chosen is not None])
        return chosen

    def learned(self) -> Any:
        return self.policy.learned()

    def restore(self, learned: Any) -> None:
        self.policy.restore(learned)

    kind = property(lambda self: self.policy.kind)
    version = property(lambda self: self.policy.version)
    wide = property(lambda self: self.policy.wide)
    commits = property(lambda self: self.policy.commits)
    fills = property(lambda self: self.policy.fills)
    plans = property(lambda self: self.policy.plans)


def read(path: str) -> list[dict]:
    """The lines of a trace, of the older file first if there are two. Raises ValueError that names a broken line. A broken last line
    (the server was killed) is left out."""
    lines: list[tuple[str, int, str]] = []
    for name in (f"{path}.1", path):
        try:
            with open(name, encoding="utf-8") as file:
                lines += [(name, number, line) for number, line in enumerate(file, 1)]
        except FileNotFoundError:
            if name == path:
                raise
    steps = []
    for place, (name, number, line) in enumerate(lines):
        try:
            steps.append(json.loads(line))
        except ValueError as error:
            if place < len(lines) - 1:
                raise ValueError(f"{name}, line {number} is no JSON ({error}): the trace was damaged; remove that line") from None
    return steps

"""A trace of every decision and every step's result: lines of JSON in a file of bounded size."""

import json
import logging
import sys
import time
from collections.abc import Callable
from logging.handlers import RotatingFileHandler

from feather.policies.base import Policy, Step
from feather.policies.checkpoint import is_ours

logger = logging.getLogger("feather")


class _Lines(RotatingFileHandler):
    """A file that ends where it cannot be written any more, e.g. on a full disk; that is told once."""

    ended = False

    def handleError(self, record: logging.LogRecord) -> None:
        self.ended = True
        logger.warning("Feather's trace %s ends: %s", self.baseFilename, sys.exception())


class Trace:
    """Writes down what a policy decides, and what came of it.

    One line per step: ``t`` (Unix time, s), ``tokens``, ``seconds``, ``prefill`` (tokens), ``contended``, ``burst``, ``fills`` (the
    policy never stops at present), ``told`` (what it tells the operator, before it learns from this step: prices, promises), ``load`` (what
    the batch held: the fields of ``feather.cost.Load``), and ``decisions``: those made since
    the line before, each as [b, Δ, w, waiting, stragglers, added]. The file holds the last ``megabytes``; up to half of them are in a second file, with ".1" after its name.

    Raises OSError if the file cannot be written, or another process writes it.
    """

    def __init__(self, path: str, megabytes: int = 64, clock: Callable[[], float] = time.time):
        self._clock = clock
        self._decisions: list[tuple] = []
        if not is_ours(path):
            raise OSError(f"another process writes {path}: give each server a file")
        # Used without a logger, so that nothing that the engine configures affects it.
        self._handler = _Lines(path, maxBytes=megabytes * 500_000, backupCount=1, encoding="utf-8")

    def decided(self, batch: int, loss: int, sharing: int, waiting: int, stragglers: int, added: bool) -> None:
        """A decision about a candidate: batch size b, the shared prefix Δ that it would cost, and the waiting requests w that share the tip."""
        self._decisions.append((batch, loss, sharing, waiting, stragglers, added))

    def ran(self, step: Step, policy: Policy) -> None:
        """A step of this policy has run."""
        line = {
            "t": round(self._clock(), 6),
            "tokens": step.tokens,
            "seconds": round(step.seconds, 6),
            "prefill": step.prefill_tokens,
            "contended": step.contended,
            "burst": step.burst,
            "fills": policy.fills,
            "told": policy.told(),
            "load": [round(amount, 3) for amount in step.load],
            "decisions": self._decisions,
        }
        self._decisions = []
        if not self._handler.ended:
            self._handler.emit(logging.LogRecord("feather", logging.INFO, "", 0, json.dumps(line), None, None))


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

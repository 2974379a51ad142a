"""The options of the scheduler, the same for every engine, refused by name when wrong."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from feather.cht import ORDERS
from feather.former import BatchFormer
from feather.policies import Bandit, Guard, Network, NeverStop, Policy, Threshold, Traced

logger = logging.getLogger("feather")

POLICIES = ("never_stop", "threshold", "bandit", "network")


@dataclass(frozen=True)
class Options:
    policy: str = "bandit"
    """when to stop filling the batch: "never_stop", "threshold" (the authors' rule), "bandit" (learned while serving) or
    "network" (trained beforehand, ``python -m lab.train``)"""
    guard: bool = True
    """let the policy drive only while it gives more throughput than never stopping"""
    checkpoint: str = ""
    """file that what is learned is kept in, from one start to the next; none by default"""
    trace: str = ""
    """file that every decision is written to; none by default"""
    trace_megabytes: int = 64
    """size of that file at most"""
    network: str = ""
    """network: the file that ``lab.train`` wrote"""
    chunk_size: int = 512
    """tokens per chunk of the tree, 1 … 4096; a multiple of the engine's block size spares the hashing. The threshold
    counts whole chunks: with longer ones than it allows, the first lost chunk stops the batch"""
    order: str = "cost"
    """which request comes first: "cost" (of the batch's relatives, the one with fewest chunks outside it; the paper's), "tip"
    (that which loses least shared prefix), or "arrival" (no order but the stopping, for ablations)"""
    max_loss: int = Threshold.max_loss
    """threshold: tokens of shared prefix that one admission may cost"""
    max_loss_under_load: int = Threshold.max_loss_under_load
    """threshold: the same while more requests wait than run"""
    min_batch: int = Threshold.min_batch
    """threshold: a smaller batch is never stopped"""
    straggler_share: float = 0.5
    """threshold: a stopped batch that has drained to this share of its largest size no longer holds the queue; from 0 (hold
    it to the last request) to 1 (never stop). The bandit holds what it stops to the last request, and is judged by that"""
    max_wait: float = 10.0
    """seconds that a request may wait past its turn in order of arrival because of its prefix. Several times what a
    batch takes, or order of arrival is all that is left; short against what a client waits before it gives up"""
    saturated_after: float = 8.0
    """batches; once a queue has been seen to end, the next is taken for a burst until it amounts to so many (those that have left it
    and those that wait; of the largest size so far). In a burst a policy under its guard stops nothing, and where nothing is
    stopped, who comes while others wait is served after those. 0: no queue is a burst. More than the bursts of a server that keeps
    up, few against an overload"""
    decision_budget: float = 0.1
    """seconds that a decision may take; three in a row that take longer end Feather's part, and vLLM's own queue takes
    over"""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            kinds = (int, float) if field.type is float else (field.type,)
            if type(value) not in kinds:
                raise ValueError(f"option {field.name}={value!r} must be of type {field.type.__name__}")
        for name, choices in (("policy", POLICIES), ("order", ORDERS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"option {name}={getattr(self, name)!r} must be one of: {', '.join(choices)}")
        if self.policy == "network" and not Path(self.network).expanduser().is_file():
            raise ValueError(f"option network={self.network!r} must name a file that python -m lab.train has written")
        for name, low, high in (
            ("chunk_size", 1, 4096),
            ("trace_megabytes", 1, None),
            ("max_loss", 0, None),
            ("max_loss_under_load", 0, None),
            ("min_batch", 1, None),
            ("straggler_share", 0, 1),
            ("max_wait", 0, None),
            ("saturated_after", 0, None),
            ("decision_budget", 0, None),
        ):
            value = getattr(self, name)
            if not (value >= low and (high is None or value <= high)):
                bounds = f"at least {low}" if high is None else f"from {low} to {high}"
                raise ValueError(f"option {name}={value!r} must be {bounds}")

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> "Options":
        """Check names and values of options that a user wrote. Raises ValueError naming the first that is wrong."""
        known = [field.name for field in fields(cls)]
        for name in mapping:
            if name not in known:
                close = get_close_matches(name, known, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"the options are: {', '.join(known)}"
                raise ValueError(f"unknown option {name!r}: {hint}")
        return cls(**mapping)

    def make_policy(self) -> Policy:
        if self.policy == "never_stop":
            policy = NeverStop()
        elif self.policy == "threshold":
            policy = Threshold(self.chunk_size, self.max_loss, self.max_loss_under_load, self.min_batch)
        elif self.policy == "network":
            try:
                policy = Network.read(Path(self.network).expanduser())
            except (ValueError, OSError) as error:
                logger.warning("Feather never stops a batch, for want of the policy that it was to use: %s", error)
                policy = NeverStop()
        else:
            policy = Bandit()
        if self.guard and not policy.fills:
            policy = Guard(policy)
        return Traced(policy, self.trace, self.trace_megabytes) if self.trace else policy

    def make_former(self, **engine: Any) -> BatchFormer:
        """``engine``: what only the engine knows, see ``BatchFormer``."""
        return BatchFormer(self.make_policy(), self.order, self.straggler_share, self.max_wait, self.saturated_after, **engine)

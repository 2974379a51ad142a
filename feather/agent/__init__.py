"""When to stop adding requests to the batch: one decision per candidate.

A policy is anything with ``decide(state) -> bool``: True adds the candidate, False stops and runs the batch as it
stands. It is asked only where stopping is possible at all: never for the seed of an empty batch.
"""

from feather.agent.policy import BatchState, Policy
from feather.agent.rules import NeverStop, Threshold

__all__ = ["BatchState", "NeverStop", "Policy", "Threshold"]

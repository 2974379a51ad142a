"""When to stop adding requests to the batch: one decision per candidate.

Every policy answers ``decide(state)``: True adds the candidate, False stops and runs the batch as it stands. It is asked
only where stopping is possible at all: never for the seed of an empty batch, never beyond the engine's largest batch.
"""

from feather.policies.bandit import Bandit
from feather.policies.base import BatchState, Decision, Policy, Step
from feather.policies.guard import Guard
from feather.policies.network import Network
from feather.policies.rules import NeverStop, StrictStop, Threshold
from feather.policies.trace import Traced

__all__ = ["Bandit", "BatchState", "Decision", "Guard", "Network", "NeverStop", "Policy", "Step", "StrictStop", "Threshold", "Traced"]

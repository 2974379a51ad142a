"""When to stop adding requests to the batch: one decision per candidate.

Every policy answers ``decide(state)``: True adds the candidate, False stops and runs the batch as it stands. It is asked
only where stopping is possible at all: never for the seed of an empty batch, never beyond the engine's largest batch.
"""

from feather.agent.bandit import Bandit
from feather.agent.guard import Guard
from feather.agent.network import Network
from feather.agent.policy import BatchState, Decision, Policy, Step
from feather.agent.rules import NeverStop, StrictStop, Threshold
from feather.agent.trace import Traced

__all__ = ["Bandit", "BatchState", "Decision", "Guard", "Network", "NeverStop", "Policy", "Step", "StrictStop", "Threshold", "Traced"]

"""Stopping policies: for each candidate, add it to the batch or stop and run the batch as it stands.

Every policy answers ``decide(state)``: True adds the candidate, False stops. It is asked only where stopping is possible:
never for the first request of an empty batch, never once the engine's largest batch is reached.

One file per policy; ``registry`` lists them by name. ``Traced`` wraps a policy.
"""

from feather.policies.bandit import Bandit
from feather.policies.base import BatchState, Decision, Policy, Step
from feather.policies.network import Network
from feather.policies.never_stop import NeverStop
from feather.policies.planner import Planner
from feather.policies.registry import POLICIES
from feather.policies.strict_stop import StrictStop
from feather.policies.threshold import Threshold, ThresholdSettings
from feather.policies.trace import Traced

__all__ = [
    "POLICIES",
    "Bandit",
    "BatchState",
    "Decision",
    "Network",
    "NeverStop",
    "Planner",
    "Policy",
    "Step",
    "StrictStop",
    "Threshold",
    "ThresholdSettings",
    "Traced",
]

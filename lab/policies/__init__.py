"""The paper's agent and its relatives: policies that are asked about the tree's candidate, and add it to the batch or stop.

Studies compare them. A server takes one by its dotted name, e.g. ``"policy": "lab.policies.Bandit"``.
"""

from lab.policies.bandit import Bandit
from lab.policies.network import Network
from lab.policies.stopping import BatchState, Decision, Stopping, StoppingFormer
from lab.policies.strict_stop import StrictStop
from lab.policies.threshold import Threshold, ThresholdSettings

POLICIES: tuple[type[Stopping], ...] = (Threshold, StrictStop, Bandit, Network)


def dotted(policy: type[Stopping]) -> str:
    """What the option ``policy`` calls one of ``POLICIES``."""
    return f"lab.policies.{policy.__name__}"


__all__ = [
    "POLICIES",
    "Bandit",
    "BatchState",
    "Decision",
    "Network",
    "Stopping",
    "StoppingFormer",
    "StrictStop",
    "Threshold",
    "ThresholdSettings",
    "dotted",
]

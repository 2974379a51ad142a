"""Policies: who joins the batch next, and when to run it as it stands.

One file per policy; ``registry`` lists them by name. ``trace`` writes down what one decides.
"""

from feather.policies.base import Policy, Step
from feather.policies.never_stop import NeverStop
from feather.policies.planner import Planner
from feather.policies.registry import POLICIES
from feather.policies.trace import Trace

__all__ = ["POLICIES", "NeverStop", "Planner", "Policy", "Step", "Trace"]

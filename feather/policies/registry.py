"""The one list of stopping policies. Options, arms of the studies, training and benchmarks read it.

To add a policy: write its class in a file of this folder (see ``feather.policies.base.Policy``; its own options, if it has
any, in a dataclass beside it), import it here and add one line to the list.
"""

from dataclasses import Field, fields

from feather.policies.bandit import Bandit
from feather.policies.base import Policy
from feather.policies.network import Network
from feather.policies.never_stop import NeverStop
from feather.policies.strict_stop import StrictStop
from feather.policies.threshold import Threshold

POLICIES: dict[str, type[Policy]] = {
    "never_stop": NeverStop,
    "threshold": Threshold,
    "strict_stop": StrictStop,
    "bandit": Bandit,
    "network": Network,
}
"""the name that users choose it by → its class"""


def policy_options() -> dict[str, tuple[str, Field]]:
    """Option → the policy that it belongs to, and its declaration. Raises ValueError if two policies share an option's name."""
    found: dict[str, tuple[str, Field]] = {}
    for policy, made_by in POLICIES.items():
        for declared in fields(made_by.settings):
            if declared.name in found:
                raise ValueError(f"policies {found[declared.name][0]!r} and {policy!r} both have an option {declared.name!r}: rename one")
            found[declared.name] = policy, declared
    return found

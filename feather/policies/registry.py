"""The one list of stopping policies. Options, arms of the studies, training and benchmarks read it.

To add a policy: write its class in a file of this folder (see ``feather.policies.base.Policy``; its own options, if it has
any, in a dataclass beside it) and add one line to the list: the file's name, by which users choose it, and the class. The first
paragraph of the class's docstring tells users what it does, in docs/serving-vllm.md.
"""

from dataclasses import Field, fields
from importlib import import_module

from feather.policies.base import Policy

_CLASSES = {
    "never_stop": "NeverStop",
    "threshold": "Threshold",
    "strict_stop": "StrictStop",
    "bandit": "Bandit",
    "planner": "Planner",
    "network": "Network",
}
POLICIES: dict[str, type[Policy]] = {name: getattr(import_module(f"feather.policies.{name}"), class_) for name, class_ in _CLASSES.items()}
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

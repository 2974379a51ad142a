"""The one list of policies that come with Feather. Options, arms of the studies and benchmarks read it.

To add a policy: write its class in a file of this folder (see ``feather.policies.base.Policy``; its own options, if it has
any, in a dataclass beside it) and add one line to the list: the file's name, by which users choose it, and the class. The first
paragraph of the class's docstring tells users what it does, in docs/serving-vllm.md. A policy that lives elsewhere needs no line:
users give its dotted name.
"""

from dataclasses import Field, fields
from importlib import import_module

from feather.policies.base import Policy
from feather.settings import shown

_CLASSES = {"never_stop": "NeverStop", "planner": "Planner"}
POLICIES: dict[str, type[Policy]] = {name: getattr(import_module(f"feather.policies.{name}"), class_) for name, class_ in _CLASSES.items()}
"""the name that users choose it by → its class"""


def policy_class(name: str) -> type[Policy]:
    """The policy of this name, or the class of this dotted name, such as ``package.module.Class``. Raises ValueError for neither."""
    if name in POLICIES:
        return POLICIES[name]
    module, _, attribute = name.rpartition(".")
    wanted = f"option policy={shown(name)} must be one of: {', '.join(POLICIES)}; or name a class of your own, as package.module.Class"
    if not module:
        raise ValueError(wanted)
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{wanted} ({error})") from None
    if not (isinstance(found, type) and issubclass(found, Policy)):
        raise ValueError(f"option policy={shown(name)} is no subclass of feather.policies.Policy")
    return found


def policy_options(chosen: type[Policy] | None = None) -> dict[str, tuple[str, Field]]:
    """Option → the policy that it belongs to, and its declaration, of the registered policies and the chosen one. Raises ValueError if two of
    them share an option's name."""
    found: dict[str, tuple[str, Field]] = {}
    for name, policy in {**POLICIES, **({chosen.__name__: chosen} if chosen and chosen not in POLICIES.values() else {})}.items():
        for declared in fields(policy.settings):
            if declared.name in found:
                raise ValueError(f"policies {found[declared.name][0]!r} and {name!r} both have an option {declared.name!r}: rename one")
            found[declared.name] = name, declared
    return found

"""The options of the scheduler, the same for every engine. A wrong option is refused by name."""

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from difflib import get_close_matches
from typing import Any

from feather.cht import ORDERS
from feather.former import BatchFormer, make_former
from feather.policies import NeverStop, Policy, Trace
from feather.policies.registry import policy_class, policy_options
from feather.settings import check_setting, setting, shown

logger = logging.getLogger("feather")

VARIABLE = "FEATHER_OPTIONS"

_EXAMPLE = """write {"feather": {"policy": "never_stop"}} for vLLM, FEATHER_OPTIONS='{"policy": "never_stop"}' for SGLang"""
KERNELS = ("paged", "cascade", "packed")
ROW_ORDERS = ("engine", "prefix")


@dataclass(frozen=True, init=False)
class Options:
    """All options: the common ones are fields, those of the policies are in ``of_policies``. Users write them as one flat
    mapping. An option of a policy that is not chosen is checked and otherwise ignored.

    Raises ValueError for an unknown name or a wrong value.
    """

    policy: str = setting(
        "planner", "who joins the batch, and when to stop filling it: a policy of Feather's, or the dotted name of a class of your own"
    )
    checkpoint: str = setting("", "file that keeps what is learned from one start to the next; none by default")
    trace: str = setting("", "file that every decision is written to; none by default")
    trace_megabytes: int = setting(64, "largest size of that file", low=1, unit="MB")
    chunk_size: int = setting(
        512,
        "tokens per chunk of the tree; a multiple of the engine's block size saves the hashing",
        low=1,
        high=4096,
        unit="tokens",
    )
    order: str = setting(
        "cost",
        'which request comes first: "cost" (of the batch\'s relatives, the one with fewest chunks outside it; the paper\'s), "tip" (the one '
        'that loses least shared prefix), or "arrival" (always the oldest, as without Feather)',
        choices=ORDERS,
    )
    rows: str = setting(
        "engine",
        'order of the rows in a step\'s batch: "engine" (the engine\'s own), or "prefix" (rows of one prefix side by side, whoever was admitted when)',
        choices=ROW_ORDERS,
    )
    attention: str = setting(
        "paged",
        'attention kernel on a CPU: "paged" (vLLM\'s own), "cascade" (a prefix is computed once where all running requests share it), or "packed" '
        "(each prefix is computed once for all that share it)",
        choices=KERNELS,
    )
    max_wait: float = setting(
        -1.0,
        "seconds that a request may wait past its turn in order of arrival because of its prefix. -1: 10, or as long as a full batch runs where "
        "that is longer, since otherwise only the order of arrival is left. Shorter than a client waits before it gives up",
        low=-1,
        unit="seconds",
    )
    saturated_after: float = setting(
        8.0,
        "batches (of the largest size so far). Once a queue has drained, the next one is taken for a burst until its requests, waiting and "
        "admitted, amount to so many. A burst is served in order of arrival. 0: no queue is a burst. Choose more than the bursts of a server "
        "that keeps up, and few against an overload",
        low=0,
        unit="batches",
    )
    decision_budget: float = setting(
        0.1,
        "seconds that a decision may take; after three in a row that take longer, the engine's own queue takes over",
        low=0,
        unit="seconds",
    )
    of_policies: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """the policies' own options, by name; defaults included"""

    def __init__(self, of_policies: Mapping[str, Any] | None = None, **options: Any):
        given = {**(of_policies or {}), **options}
        policy = given.get("policy", Options.policy)
        check_setting("policy", policy, self.known()["policy"])
        chosen = policy_class(policy)
        known = self.known(chosen)
        for name in given:
            if name not in known:
                close = get_close_matches(name, known, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"the options are: {', '.join(known)}"
                raise ValueError(f"unknown option {shown(name)}: {hint}")
        values = {name: given.get(name, declared.default) for name, declared in known.items()}
        for name, declared in known.items():
            check_setting(name, values[name], declared)
        own = {name: values.pop(name) for name in policy_options(chosen)}
        for name, value in {**values, "of_policies": own}.items():
            object.__setattr__(self, name, value)
        chosen.check(self.settings())

    @classmethod
    def known(cls, chosen: type[Policy] | None = None) -> dict[str, Field]:
        """Every option there is, those of the chosen policy included, by name: its type, default, and metadata (help, low, high, choices,
        unit). Raises ValueError if a policy's option has the name of a common one."""
        common = {declared.name: declared for declared in fields(cls) if declared.name != "of_policies"}
        own = policy_options(chosen)
        for name in common.keys() & own.keys():
            raise ValueError(f"policy {own[name][0]!r} has an option {name!r}, which is a common option: rename it")
        return common | {name: declared for name, (_, declared) in own.items()}

    def declared(self) -> dict[str, Field]:
        """The declaration of each of these options."""
        return self.known(policy_class(self.policy))

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> "Options":
        """The options that a user wrote, flat. Raises ValueError that names the first wrong one."""
        if not isinstance(mapping, Mapping):
            raise ValueError(f"Feather's options are {shown(mapping)}, not names with values: {_EXAMPLE}")
        if "feather" in mapping:
            raise ValueError(f'"feather" stands inside itself: {_EXAMPLE}')
        if "of_policies" in mapping:
            raise ValueError("unknown option 'of_policies': write the policies' options beside the others")
        return cls({str(name): value for name, value in mapping.items()})

    @classmethod
    def from_additional_config(cls, config: Any) -> "Options":
        """The options under "feather" in vLLM's ``additional_config``; what else is there is for others. Raises ValueError where one of
        Feather's stands outside, or "feather" is misspelt."""
        if isinstance(config, (str, bytes, int, float, list, tuple)):
            raise ValueError(f"--additional-config is {shown(config)}: {_EXAMPLE}")
        config = config if isinstance(config, Mapping) else {}
        for name in config.keys() - {"feather"}:
            if name in cls.known() or _meant(name, config[name]):
                raise ValueError(f'--additional-config: {shown(name)} stands where "feather" should: {_EXAMPLE}')
        return cls.from_mapping(config.get("feather", {}))

    @classmethod
    def from_environment(cls) -> "Options":
        """Those of the variable FEATHER_OPTIONS, a JSON object. Raises ValueError for anything else."""
        text = os.environ.get(VARIABLE, "{}")
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{VARIABLE}={shown(text)} is no JSON: {error}") from None
        if not isinstance(found, dict):
            raise ValueError(f'{VARIABLE}={shown(text)} must be a JSON object, e.g. \'{{"policy": "never_stop"}}\'')
        return cls.from_mapping(found)

    def for_rank(self, rank: int) -> "Options":
        """Those of one data-parallel engine: each has a checkpoint and a trace of its own."""
        own = {"checkpoint": f".{rank}", "trace": f".rank{rank}"}  # a trace's older half ends with ".1"
        files = {name: os.path.abspath(os.path.expanduser(path)) for name in own if (path := getattr(self, name))}
        return Options(**self.flat() | {name: path + (own[name] if rank else "") for name, path in files.items()})

    def flat(self) -> dict[str, Any]:
        """Every option with its value, as ``from_mapping`` takes them."""
        common = {declared.name: getattr(self, declared.name) for declared in fields(self) if declared.name != "of_policies"}
        return {**common, **self.of_policies}

    @property
    def changes_steps(self) -> bool:
        """Whether the attention backend has anything to do."""
        return self.attention != "paged" or self.rows != "engine"

    def settings(self) -> Any:
        """The chosen policy's own options, as its ``settings`` class holds them."""
        own = policy_class(self.policy).settings
        return own(**{declared.name: self.of_policies[declared.name] for declared in fields(own)})

    def make_policy(self) -> Policy:
        """The chosen policy. One that cannot be made (a damaged file) is replaced by never stopping, with a warning."""
        try:
            return policy_class(self.policy).make(self.settings(), self)
        except Exception as error:  # a policy of somebody's own may raise anything
            logger.warning("Feather never stops a batch, because the policy %r cannot be made: %s", self.policy, error)
            return NeverStop()

    def make_former(self, **engine: Any) -> BatchFormer:
        """A batch former with this policy, and its trace where the options say so. ``engine``: what only the engine knows, see
        ``BatchFormer``."""
        policy, trace = self.make_policy(), None
        try:
            trace = Trace(self.trace, self.trace_megabytes) if self.trace else None
        except (ValueError, OSError) as error:
            logger.warning("Feather writes no trace: %s", error)
        return make_former(policy, self.order, self.max_wait, self.saturated_after, trace=trace, **engine)


def _meant(name: Any, value: Any) -> bool:
    """Whether a key beside "feather" was meant to be it: misspelt, longer ("feather_options"), or with "feather" inside it."""
    word = str(name)[:99].lower()
    close = word.startswith("feather") or get_close_matches(word, ["feather"], cutoff=0.75)
    return bool(close) or isinstance(value, Mapping) and "feather" in value

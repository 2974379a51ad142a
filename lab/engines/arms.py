"""Every way to schedule that is compared, by the name that rows, figures and tables give it."""

from dataclasses import dataclass, field
from typing import Any

from feather.options import Options
from feather.policies import POLICIES
from feather.policies.registry import policy_class
from lab import policies
from lab.policies import dotted


@dataclass(frozen=True)
class Arm:
    """One way to schedule: a kind of waiting queue and its options."""

    name: str
    kind: str
    """"fcfs" (the engine's own queue), "oracle" (group ids given), "radix" (a policy over a radix tree, as in SGLang, inside vLLM), "block table",
    "window" (a bounded look ahead), "feather", "published" (a rule of the paper's authors in our tree), or "sglang" (a policy of SGLang's inside
    SGLang). Names are those of the engine that an arm runs in."""
    options: dict[str, Any] = field(default_factory=dict)
    what: str = ""
    """in a few words, for the table of arms"""
    source: str = ""
    """where it is from, if not from where its kind is (``SOURCES``)"""

    @property
    def learns(self) -> bool:
        """Whether it changes while it serves, so that what it does first is not what it does for good."""
        if self.kind == "published":
            return self.options["rule"] == "bandit"
        return self.kind == "feather" and policy_class(self.options.get("policy", Options.policy)).kind is not None


SOURCES = {
    "fcfs": "vLLM",
    "feather": "this repository",
    "oracle": "this repository; the paper has an oracle, too",
    "radix": "SGLang",
    "block table": "PAT",
    "sglang": "SGLang",
    "published": "the paper's authors",
    "window": "an open pull request of vLLM's",
}
"""kind of an arm → where arms of that kind are from"""

_PAPER = "the paper; here"


def known_groups(groups: int | None, refill: bool = True, largest: bool = False) -> "Arm":
    """The simple discipline that ``baselines.OracleQueue`` describes, under its name: "order" holds no group back, "stop" lets one group into a
    batch, "3 groups" three; "gated": nobody joins a group that has begun."""
    name = "order" if groups is None else "stop" if groups == 1 else f"{groups} groups"
    parts = [name, *(() if refill else ("gated",)), *(("largest",) if largest else ())]
    held = "as many groups as there are rows" if groups is None else "one group" if groups == 1 else f"{groups} groups"
    what = (
        f"group ids known: {held} at a time, {'refilled while somebody of it waits' if refill else 'which nobody joins later'}; "
        f"then the {'largest' if largest else 'oldest'} group"
    )
    return Arm(f"oracle ({', '.join(parts)})", "oracle", {"at_once": groups, "refill": refill, "largest": largest}, what)


# Chunks near the authors' 50 tokens, so that their five lost chunks are not rounded to none.
_THRESHOLD = {"policy": dotted(policies.Threshold), "chunk_size": 64}
_BANDIT = {"policy": dotted(policies.Bandit)}
_STRICT = {**_THRESHOLD, "min_batch": 1, "max_loss": 0, "max_loss_under_load": 0, "straggler_share": 0.0}
# Without the limit on how long a request may be passed over, which the paper's system does not have.
_PATIENT = {"max_wait": float("inf")}

DISCIPLINES = {
    arm.name: arm
    for arm in (
        *(known_groups(None, largest=largest) for largest in (False, True)),
        *(known_groups(groups, refill, largest) for groups in (1, 2, 3, 4) for refill in (True, False) for largest in (False, True)),
    )
}
"""simple disciplines with known groups: among them a simulation looks for the best (``lab.account``)"""

ARMS = {
    arm.name: arm
    for arm in (
        Arm("FCFS", "fcfs", what="first come, first served: the engine's own queue"),
        Arm("Feather", "feather", what="the default: the planner"),
        Arm("Feather (never stop)", "feather", {"policy": "never_stop"}, "order by the tree; the batch is filled"),
        Arm("Feather (threshold)", "feather", _THRESHOLD, "stops where an admission costs too much shared prefix", _PAPER),
        Arm("Feather (threshold, patient)", "feather", _THRESHOLD | _PATIENT, "the same without a limit on waiting", _PAPER),
        Arm("Feather (threshold, patient, no floor)", "feather", _THRESHOLD | _PATIENT | {"min_batch": 1},
            "the same without the floor below which a batch takes whatever comes"),
        Arm("Feather (bandit alone)", "feather", _BANDIT, "learns when to stop, by a table over (b, Δ, w)", _PAPER),
        Arm("Feather (bandit alone, patient)", "feather", _BANDIT | _PATIENT, "the same without a limit on waiting"),
        Arm("Feather (strict stop)", "feather", _STRICT, "order by the tree; a batch holds one group until it is gone"),
        Arm("arrival order, strict stop", "feather", {**_STRICT, "order": "arrival"}, "order of arrival; a batch holds one group until it is gone"),
        Arm("Feather (SB3)", "feather", {"policy": dotted(policies.Network), "network": "rtx-6000-ada-cascade"},
            "a network trained on a modelled GPU, so for studies of that one"),
        *(DISCIPLINES[f"oracle ({name})"] for name in ("stop", "stop, largest", "stop, gated", "stop, gated, largest", "order")),
        Arm("LPM", "radix", {"policy": "lpm"}, "longest cached prefix first"),
        Arm("DFS-weight", "radix", {"policy": "dfs-weight"}, "depth-first through the tree of cached prefixes, heavier subtrees first"),
        Arm("block table", "block table", what="who shares most blocks with the batch first"),
        # What a user would try today; docs/peers.md tells more.
        Arm("HRRN", "radix", {"policy": "hrrn"}, "highest response ratio first: waiting time against prefill left"),
        Arm("shortest prefill first", "radix", {"policy": "shortest-prefill-first"}, "fewest tokens left to prefill first"),
        Arm("LPM, ageing", "radix", {"policy": "lpm, ageing", "ageing": 256}, "longest cached prefix first, plus 256 tokens for each pass waited",
            "an open pull request of SGLang's"),
        Arm("k-LPM", "radix", {"policy": "k-lpm", "k": 4}, "four picks by longest cached prefix, then one by arrival", "arXiv 2502.04677"),
        Arm("admission window", "window", {"window": 32}, "longest cached prefix among the 32 oldest"),
        Arm("authors' rule", "published", {"rule": "rule"}, "a candidate may cost five chunks of 50 tokens, or seven under load; a growing floor"),
        Arm("authors' bandit", "published", {"rule": "bandit"}, "UCB1 over batch size, loss of shared prefix and waiting relatives"),
        Arm("authors' radix cost", "published", {"rule": "radix cost"}, "a candidate may cost 50 tokens"),
        Arm("authors' plain CHT", "published", {"rule": "plain CHT"}, "a candidate may cost one chunk of 500 tokens"),
    )
}  # fmt: skip
"""inside vLLM"""


def of_policy(policy: str) -> Arm:
    """Feather with one of its own policies, under the policy's name."""
    return Arm(f"Feather ({policy.replace('_', ' ')})", "feather", {"policy": policy}, f"the policy {policy!r}")


def _of_other_policies() -> dict[str, Arm]:
    """An arm for each of Feather's own policies that none above uses or is named after."""
    used = {arm.options.get("policy", Options().policy) for arm in ARMS.values()}
    others = [of_policy(policy) for policy in POLICIES if policy not in used]
    return {arm.name: arm for arm in others if arm.name not in ARMS}


ARMS |= _of_other_policies()

SGLANG_ARMS = {
    arm.name: arm
    for arm in (
        *(arm for arm in ARMS.values() if arm.kind in ("fcfs", "feather")),
        Arm("LPM", "sglang", {"policy": "lpm"}, "longest cached prefix first; order of arrival while more than 128 requests wait"),
        Arm("LPM, no cut-off", "sglang", {"policy": "lpm", "cut_off": False}, "longest cached prefix first, however many wait"),
        Arm("DFS-weight", "sglang", {"policy": "dfs-weight"}, "depth-first through the tree of cached prefixes, heavier subtrees first"),
    )
}
"""inside SGLang 0.5.9, whose scheduler the modelled engine runs; the policies that came after it are arms inside vLLM"""


def arm_of(name: str) -> Arm:
    """The arm of this name, or the discipline with known groups. Raises KeyError for one that there is not."""
    return ARMS[name] if name in ARMS else DISCIPLINES[name]


def named(*names: str) -> list[Arm]:
    """Arms inside vLLM by their names. Raises KeyError for one that there is not."""
    return [ARMS[name] for name in names]


MAIN_ARMS = ("FCFS", "Feather", "Feather (never stop)", "Feather (threshold)", "oracle (stop)", "oracle (order)")
MAIN = named("FCFS", "Feather (never stop)", "Feather (threshold, patient)")

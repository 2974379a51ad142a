"""Every way to schedule that is compared, by the name that rows, figures and tables give it."""

from dataclasses import dataclass, field
from typing import Any

from feather.policies import POLICIES


@dataclass(frozen=True)
class Arm:
    """One way to schedule: a kind of waiting queue and its options."""

    name: str
    kind: str
    """"fcfs" (the engine's own queue), "oracle" (group ids given), "radix" (a policy of SGLang's over a radix tree, inside vLLM), "block table",
    "feather", or "sglang" (a policy of SGLang's inside SGLang). Names are those of the engine that an arm runs in."""
    options: dict[str, Any] = field(default_factory=dict)


# Chunks near the authors' 50 tokens, so that their five lost chunks are not rounded to none.
_THRESHOLD = {"policy": "threshold", "guard": False, "chunk_size": 64}
_STRICT = {**_THRESHOLD, "min_batch": 1, "max_loss": 0, "max_loss_under_load": 0, "straggler_share": 0.0}
# Without the limit on how long a request may be passed over, which the paper's system does not have.
_PATIENT = {"max_wait": float("inf")}

ARMS = {
    arm.name: arm
    for arm in (
        Arm("FCFS", "fcfs"),
        Arm("Feather", "feather"),
        Arm("Feather (never stop)", "feather", {"policy": "never_stop"}),
        Arm("Feather (threshold)", "feather", _THRESHOLD),
        Arm("Feather (threshold, patient)", "feather", _THRESHOLD | _PATIENT),
        # Without the floor below which a batch takes whatever comes.
        Arm("Feather (threshold, patient, no floor)", "feather", _THRESHOLD | _PATIENT | {"min_batch": 1}),
        Arm("Feather (bandit alone)", "feather", {"policy": "bandit", "guard": False}),
        Arm("Feather (bandit alone, patient)", "feather", {"policy": "bandit", "guard": False} | _PATIENT),
        # Strict: a batch holds one group, until it is gone.
        Arm("Feather (strict stop)", "feather", _STRICT),
        Arm("arrival order, strict stop", "feather", {**_STRICT, "order": "arrival"}),
        # Trained on a modelled GPU, so for studies of that one.
        Arm("Feather (SB3)", "feather", {"policy": "network", "network": "rtx-6000-ada-cascade"}),
        Arm("oracle (stop)", "oracle", {"stop": True}),
        Arm("oracle (order)", "oracle", {"stop": False}),
        Arm("LPM", "radix", {"policy": "lpm"}),
        Arm("DFS-weight", "radix", {"policy": "dfs-weight"}),
        Arm("block table", "block table"),
    )
}
"""inside vLLM"""


def of_policy(policy: str) -> Arm:
    """Feather with a registered policy, without the guard, under the policy's name."""
    return Arm(f"Feather ({policy.replace('_', ' ')})", "feather", {"policy": policy, "guard": False})


def _of_other_policies() -> dict[str, Arm]:
    """An arm for each registered policy that none above uses or is named after (strict stop's is the threshold rule at no loss)."""
    used = {arm.options.get("policy") for arm in ARMS.values()}
    others = [of_policy(policy) for policy in POLICIES if policy not in used]
    return {arm.name: arm for arm in others if arm.name not in ARMS}


ARMS |= _of_other_policies()

SGLANG_ARMS = {
    arm.name: arm
    for arm in (
        *(arm for arm in ARMS.values() if arm.kind in ("fcfs", "feather")),
        Arm("LPM", "sglang", {"policy": "lpm"}),  # order of arrival while more than 128 requests wait
        Arm("LPM, no cut-off", "sglang", {"policy": "lpm", "cut_off": False}),
        Arm("DFS-weight", "sglang", {"policy": "dfs-weight"}),
    )
}
"""inside SGLang"""


def named(*names: str) -> list[Arm]:
    """Arms inside vLLM by their names. Raises KeyError for one that there is not."""
    return [ARMS[name] for name in names]


MAIN_ARMS = ("FCFS", "Feather", "Feather (never stop)", "Feather (threshold)", "oracle (stop)", "oracle (order)")
MAIN = named("FCFS", "Feather (never stop)", "Feather (threshold, patient)")
APART = named("FCFS", "Feather (never stop)", "arrival order, strict stop", "Feather (strict stop)")
"""Order and stopping, each alone and both together."""

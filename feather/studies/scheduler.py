"""The scheduler of the studies: the waiting queue can be exchanged between runs, and every step is written down.

One engine serves all arms of a comparison, so they share its weights, its KV cache and the place of both in memory.
"""

from dataclasses import dataclass, field
from typing import Any

from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.request_queue import FCFSRequestQueue

from feather.options import Options
from feather.vllm.baselines import OracleQueue, group_of
from feather.vllm.scheduler import FeatherScheduler


@dataclass(frozen=True)
class Arm:
    """One way to schedule: "fcfs" (vLLM's own queue), "oracle" (group ids given) or "feather"."""

    name: str
    kind: str
    options: dict[str, Any] = field(default_factory=dict)


ARMS = {
    arm.name: arm
    for arm in (
        Arm("FCFS", "fcfs"),
        Arm("Feather (threshold)", "feather", {"policy": "threshold"}),
        Arm("Feather (never stop)", "feather", {"policy": "never_stop"}),
        Arm("oracle (stop)", "oracle", {"stop": True}),
        Arm("oracle (order)", "oracle", {"stop": False}),
    )
}


class _ArrivalQueue(FCFSRequestQueue):
    """vLLM's own queue as it is, with the one call more that the others need."""

    def reconcile(self) -> None:
        pass


@dataclass
class Step:
    """What one engine step was given to do."""

    groups: dict[str, int]
    """request id → prefix group, of every request in the step"""
    decode_rows: int
    prefill_tokens: int


class StudyScheduler(FeatherScheduler):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.steps: list[Step] = []

    def use(self, arm: Arm) -> None:
        """Exchange the waiting queue. Raises RuntimeError while a request is unfinished."""
        if self.has_unfinished_requests():
            raise RuntimeError(f"cannot change to {arm.name} while requests are unfinished")
        if arm.kind == "fcfs":
            self.waiting = _ArrivalQueue()
        elif arm.kind == "oracle":
            self.waiting = OracleQueue(running=lambda: self.running, **arm.options)
        else:
            self.waiting = self.make_feather_queue(Options.from_mapping(arm.options))
        self.steps = []

    def schedule(self, *args, **kwargs) -> SchedulerOutput:
        prefilling = {request.request_id for request in self.running if request.num_output_tokens == 0}
        known = {request.request_id for request in self.running}
        output = super().schedule(*args, **kwargs)
        tokens = output.num_scheduled_tokens
        if tokens:
            prefill = {id_: n for id_, n in tokens.items() if id_ in prefilling or id_ not in known}
            groups = {id_: group_of(self.requests[id_]) for id_ in tokens}
            self.steps.append(Step(groups, len(tokens) - len(prefill), sum(prefill.values())))
        return output

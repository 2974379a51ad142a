"""What each engine step produced and how long it took, from the two calls in which a scheduler sees it."""

from collections.abc import Callable
from typing import Any, NamedTuple

from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.engine import EngineCoreOutputs

_MOST = 64  # steps in flight; more have been dropped by the engine


class Ran(NamedTuple):
    """The result of a step, as ``BatchFormer.ran`` takes it."""

    formed: Any
    """as given to ``StepsInFlight.formed``"""
    tokens: int
    """output tokens"""
    seconds: float
    prefill_tokens: int


class StepsInFlight:
    """Steps that were scheduled and have no result yet. With async scheduling a step is scheduled before the result of the step
    before it arrives, so its time runs from the later of two moments: its own start, and that result."""

    def __init__(self, clock: Callable[[], float]):
        self._clock = clock
        self._formed: dict[int, tuple[SchedulerOutput, Any, float]] = {}
        self._last_result = float("-inf")

    def formed(self, output: SchedulerOutput, formed: Any, start: float) -> None:
        if len(self._formed) == _MOST:
            self._formed.clear()
        self._formed[id(output)] = output, formed, start

    def ran(self, output: SchedulerOutput, results: dict[int, EngineCoreOutputs]) -> Ran | None:
        """None for a step that Feather did not form."""
        now, before = self._clock(), self._last_result
        self._last_result = now
        known = self._formed.pop(id(output), None)
        if known is None:
            return None
        _, formed, start = known
        tokens = sum(len(one.new_token_ids) for result in results.values() for one in result.outputs)
        return Ran(formed, tokens, now - max(start, before), step_prefill_tokens(output))


def step_prefill_tokens(output: SchedulerOutput) -> int:
    """Prompt tokens of the step, and tokens that it computes again after a preemption."""
    scheduled = output.num_scheduled_tokens
    if output.total_num_scheduled_tokens == len(scheduled):
        return 0
    drafts = output.scheduled_spec_decode_tokens
    return sum(count for id_, count in scheduled.items() if count > 1 + len(drafts.get(id_, ())))

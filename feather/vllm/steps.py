"""What each engine step produced and how long it took, from the two calls in which a scheduler sees it."""

from collections.abc import Callable
from typing import Any, NamedTuple

from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.engine import EngineCoreOutputs

from feather.times import StepTimes

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
    """Steps that were scheduled and have no result yet."""

    def __init__(self, clock: Callable[[], float]):
        self._clock = clock
        self._formed: dict[int, tuple[SchedulerOutput, Any, float]] = {}
        self._times = StepTimes()

    def formed(self, output: SchedulerOutput, formed: Any, start: float) -> None:
        if len(self._formed) == _MOST:
            self._formed.clear()
        self._formed[id(output)] = output, formed, start

    def ran(self, output: SchedulerOutput, results: dict[int, EngineCoreOutputs], busy: bool) -> Ran | None:
        """None for a step that Feather did not form. ``busy``: whether anybody is left to serve."""
        now = self._clock()
        _, formed, start = self._formed.pop(id(output), (None, None, now))
        seconds = self._times.result(now, start, busy)
        if formed is None:
            return None
        tokens = sum(len(one.new_token_ids) for result in results.values() for one in result.outputs)
        return Ran(formed, tokens, seconds, step_prefill_tokens(output))


def step_prefill_tokens(output: SchedulerOutput) -> int:
    """Prompt tokens of the step, and tokens that it computes again after a preemption."""
    scheduled = output.num_scheduled_tokens
    if output.total_num_scheduled_tokens == len(scheduled):
        return 0
    drafts = output.scheduled_spec_decode_tokens
    return sum(count for id_, count in scheduled.items() if count > 1 + len(drafts.get(id_, ())))

"""SGLang's scheduler with Feather's policy and adder in place of its own."""

import logging
import time
from collections import deque
from collections.abc import Mapping
from itertools import chain
from typing import Any, NamedTuple

from sglang.srt import server_args as server_args_module
from sglang.srt.managers import scheduler as scheduler_module
from sglang.srt.managers.schedule_batch import Req, ScheduleBatch
from sglang.srt.managers.schedule_policy import AddReqResult, PrefillAdder
from sglang.srt.managers.scheduler import Scheduler

from feather.former import Formed
from feather.memory import Memory
from feather.options import Options
from feather.sglang.schedule_policy import FeatherSchedulePolicy, Verdict
from feather.sglang.supported import POLICY

logger = logging.getLogger(__name__)

_MOST = 64  # steps in flight; more have been dropped by the engine
SEAT = "feather_policy"  # where an adder finds the policy: an attribute of the cache, the one object that both keep


class FeatherAdder(PrefillAdder):
    """Adds the requests that Feather chooses, and none after it has stopped the batch."""

    def add_one_req(self, req: Req, *args, **kwargs) -> AddReqResult:
        policy = getattr(self.tree_cache, SEAT, None)
        if policy is None:
            return super().add_one_req(req, *args, **kwargs)
        verdict = policy.verdict(req)
        if verdict is not Verdict.ADD:
            return AddReqResult.OTHER if verdict is Verdict.STOP else AddReqResult.CONTINUE
        result = super().add_one_req(req, *args, **kwargs)
        taken = bool(self.can_run_list) and self.can_run_list[-1] is req
        if taken and not policy.admitted(req) and result is AddReqResult.CONTINUE:
            return AddReqResult.OTHER
        return result


class _StepInFlight(NamedTuple):
    formed: Formed | None
    start: float
    prefill_tokens: int


class FeatherSglangScheduler(Scheduler):
    """SGLang's scheduler; with ``--schedule-policy feather``, Feather chooses the next request and when to stop.

    If Feather fails while serving, SGLang's first come, first served takes over for the rest of the run, with one error in the
    log, and ``fallback`` gives the reason.
    """

    clock = staticmethod(time.monotonic)
    """gives seconds; a simulation puts its own in place"""

    feather_options = Options()
    fallback: str | None = None
    schedule_policy: str
    policy: Any

    def init_schedule_policy(self) -> None:
        if self.schedule_policy != POLICY:
            return super().init_schedule_policy()
        refuse_unsupported(self.server_args)
        self.schedule_policy = "fcfs"
        super().init_schedule_policy()  # sets up other things too, and gives the policy to fall back to
        self._own_policy, self.schedule_policy = self.policy, POLICY
        options = self.feather_options.for_rank(self.dp_rank or 0)
        self.policy = self.make_feather_policy(options)
        setattr(self.tree_cache, SEAT, self.policy)
        self._memory = Memory(options.checkpoint, logger)
        self._memory.recall(self.policy.former.policy)
        self._steps: deque[_StepInFlight] = deque(maxlen=_MOST)
        self._last_result = float("-inf")

    def make_feather_policy(self, options: Options) -> FeatherSchedulePolicy:
        pool = self.token_to_kv_pool_allocator
        former = options.make_former(
            max_batch=self.max_running_requests,
            clock=lambda: self.clock(),
            kv_use=lambda: 1 - (pool.available_size() + self.tree_cache.evictable_size()) / pool.size,
        )
        sign = (1 if self.schedule_low_priority_values_first else -1) if self.enable_priority_scheduling else None

        return FeatherSchedulePolicy(former, options.chunk_size, self.running_requests, sign, options.decision_budget)

    def running_requests(self) -> set[Req]:
        """What runs. SGLang leaves the last prefill out of its running batch until the next step, and a chunked prompt until its end; and
        keeps in its batches for a while what has finished, is to be aborted or was retracted."""
        batches = [batch.reqs for batch in (self.running_batch, self.last_batch) if batch is not None]
        found = chain(*batches, [] if self.chunked_req is None else [self.chunked_req])
        return {request for request in found if not (request.finished() or request.to_finish is not None or request.is_retracted)}

    def get_next_batch_to_run(self) -> ScheduleBatch | None:
        if not isinstance(self.policy, FeatherSchedulePolicy):
            return super().get_next_batch_to_run()
        start = self.clock()
        batch = super().get_next_batch_to_run()
        formed = self.policy.formed(self.waiting_queue)
        if self.policy.failure is not None:
            self._fall_back(self.policy.failure)
        elif batch is not None:
            self._steps.append(_StepInFlight(formed, start, batch_prefill_tokens(batch)))
        return batch

    def process_batch_result(self, batch: ScheduleBatch, result: Any) -> None:
        if not (isinstance(self.policy, FeatherSchedulePolicy) and self._steps):
            return super().process_batch_result(batch, result)
        requests = list(batch.reqs)
        before = sum(len(request.output_ids) for request in requests)
        super().process_batch_result(batch, result)
        tokens = sum(len(request.output_ids) for request in requests) - before
        step, now = self._steps.popleft(), self.clock()  # results come in the order of the steps
        # With overlap a step is scheduled while the one before it runs, so its time begins at the later of the two moments.
        seconds = now - max(step.start, self._last_result)
        self._last_result = now
        self.policy.ran(step.formed, tokens, seconds, step.prefill_tokens)
        self._memory.keep(self.policy.former.policy, idle=not (self.waiting_queue or self.running_requests()))

    def _fall_back(self, failure: str) -> None:
        logger.error("Feather failed (%s): requests are served first come, first served for the rest of this run", failure)
        self.fallback, self.policy = failure, self._own_policy
        self._steps.clear()
        delattr(self.tree_cache, SEAT)


def batch_prefill_tokens(batch: ScheduleBatch) -> int:
    """Prompt tokens that the step computes."""
    if not batch.forward_mode.is_extend():
        return 0
    return batch.extend_num_tokens - len(batch.decoding_reqs or ())


def refuse_unsupported(arguments: Any) -> None:
    """Raises ValueError if SGLang's server arguments ask for what Feather cannot do."""
    for name, supported, why in (
        ("tp_size", 1, "every rank schedules for itself and all must decide alike, but Feather's decisions depend on measured time"),
        ("pp_size", 1, "every stage schedules for itself and all must decide alike, but Feather's decisions depend on measured time"),
        ("disaggregation_mode", "null", "prefill and decode instances admit requests past the waiting queue"),
        ("dllm_algorithm", None, "diffusion models have an admission loop of their own"),
        ("enable_pdmux", False, "its event loop is another one"),
    ):  # fmt: skip
        value = getattr(arguments, name)
        if value != supported:
            raise ValueError(f"--schedule-policy {POLICY} does not support {name}={value!r}: {why}; leave it at {supported!r}")


def put_in_place(options: Mapping[str, Any]) -> None:
    """See ``feather.sglang.install``."""
    FeatherSglangScheduler.feather_options = Options.from_mapping(options)
    scheduler_module.Scheduler = FeatherSglangScheduler
    scheduler_module.PrefillAdder = FeatherAdder
    arguments = server_args_module.ServerArgs
    if getattr(arguments, SEAT, None):
        return
    setattr(arguments, SEAT, POLICY)
    add_cli_args, check_server_args = arguments.add_cli_args, arguments.check_server_args

    def add_cli_args_with_feather(parser):
        add_cli_args(parser)
        action = next(action for action in parser._actions if action.dest == "schedule_policy")
        action.choices = [*action.choices, POLICY]

    def check_server_args_with_feather(self):
        if self.schedule_policy != POLICY:
            return check_server_args(self)
        refuse_unsupported(self)
        self.schedule_policy = "fcfs"  # SGLang checks priorities here; in that respect Feather is like its default
        try:
            check_server_args(self)
        finally:
            self.schedule_policy = POLICY

    arguments.add_cli_args = staticmethod(add_cli_args_with_feather)
    arguments.check_server_args = check_server_args_with_feather

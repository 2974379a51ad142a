"""vLLM's scheduler with Feather's waiting queue in place of its own."""

import time
from typing import TypeGuard

from vllm.logger import init_logger
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.request_queue import RequestQueue, SchedulingPolicy, create_request_queue
from vllm.v1.engine import EngineCoreOutputs
from vllm.v1.metrics.stats import SchedulerStats
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request

from feather.memory import Memory
from feather.options import Options
from feather.report import Report
from feather.vllm.attention.counters import Reader
from feather.vllm.metrics import add_to
from feather.vllm.prefix import prefix_path
from feather.vllm.queue import FeatherQueue
from feather.vllm.steps import StepsInFlight

logger = init_logger("vllm.feather")


class FeatherScheduler(AsyncScheduler):
    """vLLM's scheduler, except that Feather chooses the next request and when to stop.

    Options are read from ``additional_config["feather"]`` (see ``feather.options.Options``); a wrong one ends the start-up
    with a ValueError that names it. If Feather fails while serving, vLLM's own queue takes over for the rest of the run, with
    one error in the log, and ``fallback`` gives the reason.
    """

    clock = staticmethod(time.monotonic)
    """gives seconds; a simulation puts its own in place"""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.vllm_config.max_concurrent_batches > 1 and not self.scheduler_config.async_scheduling:
            # AsyncScheduler relies on it. Without it, a request would be scheduled again before its last token is known.
            raise ValueError(
                "FeatherScheduler with several batches in flight (pipeline parallelism) needs async scheduling, which "
                "is off here: leave out --no-async-scheduling, or use one pipeline stage"
            )
        parallel = self.vllm_config.parallel_config
        # The engines of a dense model all have rank 0.
        rank = getattr(parallel, "data_parallel_index", parallel.data_parallel_rank)
        self.options = Options.from_additional_config(self.vllm_config.additional_config).for_rank(rank)
        queue = self.make_feather_queue(self.options)
        self.waiting: RequestQueue = queue
        self.fallback: str | None = None
        self._steps = StepsInFlight(lambda: self.clock())
        self._memory = Memory(self.options.checkpoint, logger)
        self._memory.recall(queue.former.policy)
        self._report = Report(self.options.chunk_size, Reader(self.vllm_config).read if self.options.changes_steps else dict)

    def make_feather_queue(self, options: Options) -> FeatherQueue:
        """A waiting queue of Feather's with these options, for this scheduler."""
        block_size = self.kv_cache_manager.block_pool.hash_block_size

        def path_of(request: Request):
            return prefix_path(request, options.chunk_size, block_size)

        former = options.make_former(
            max_batch=self.max_num_running_reqs,
            clock=lambda: self.clock(),
            kv_use=lambda: self.kv_cache_manager.usage if self.kv_cache_manager.enable_caching else 0.0,
        )
        by_priority = self.policy is SchedulingPolicy.PRIORITY
        return FeatherQueue(former, path_of, lambda: self.running, by_priority, options.decision_budget)

    def schedule(self, *args, **kwargs) -> SchedulerOutput:
        queue = self.waiting
        if not self._is_feather(queue):
            return super().schedule(*args, **kwargs)
        queue.reconcile()
        if queue.failure is not None:
            self._fall_back(queue.failure)
            return super().schedule(*args, **kwargs)
        start, stops = self.clock(), queue.stops
        output = super().schedule(*args, **kwargs)
        if queue.stops > stops:
            # vLLM takes a queue that is left over for a lack of capacity, and then no longer keeps prefills to every n-th step.
            self.prefill_capacity_bound = False
        self._steps.formed(output, queue.formed(), start)
        if self.options.rows == "prefix":
            # vLLM's runner for GPUs (V2) sorts the rows by kind, stably: this order decides within a kind. The running list keeps its own order,
            # which says who is preempted. On a CPU the attention backend sorts (``feather.vllm.attention``).
            rows = queue.admission.guarded(queue.admission.by_prefix, output.num_scheduled_tokens) or output.num_scheduled_tokens
            output.num_scheduled_tokens = {request_id: output.num_scheduled_tokens[request_id] for request_id in rows}
        return output

    def update_from_output(self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput) -> dict[int, EngineCoreOutputs]:
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        busy = self.has_unfinished_requests()
        ran = self._steps.ran(scheduler_output, outputs, busy)
        if ran is not None and self._is_feather(self.waiting):
            self.waiting.ran(*ran)
            if self.waiting.failure is None:
                self._memory.keep(self.waiting.former.policy, idle=not busy)
        return outputs

    def shutdown(self) -> None:
        if self._is_feather(self.waiting) and self.waiting.failure is None:
            self._memory.keep(self.waiting.former.policy, now=True)
        super().shutdown()

    @staticmethod
    def _is_feather(queue: RequestQueue) -> TypeGuard[FeatherQueue]:
        return isinstance(queue, FeatherQueue)

    def make_stats(self, *args, **kwargs) -> SchedulerStats | None:
        stats = super().make_stats(*args, **kwargs)
        queue = self.waiting if isinstance(self.waiting, FeatherQueue) else None
        if stats is not None and (self.fallback or queue is not None):
            add_to(stats, self._report.numbers(None) if queue is None else self._report.numbers(queue.admission, queue.oldest_wait()))
        return stats

    def _fall_back(self, failure: str) -> None:
        logger.error("Feather failed (%s): requests are served first come, first served for the rest of this run", failure)
        self.fallback = failure
        waiting = list(self.waiting)
        self.waiting = create_request_queue(self.policy)
        for request in waiting:
            self.waiting.add_request(request)

"""vLLM's own scheduler with Feather's waiting queue in place of its first-come-first-served one."""

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.request_queue import SchedulingPolicy
from vllm.v1.request import Request

from feather.options import Options
from feather.vllm.prefix import prefix_path
from feather.vllm.queue import FeatherQueue


class FeatherScheduler(AsyncScheduler):
    """Everything but the choice of the next request, and of when to stop, is vLLM's.

    Options are read from ``additional_config["feather"]`` (see ``feather.options.Options``); a wrong one ends the
    start-up with a ValueError that names it.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.policy is not SchedulingPolicy.FCFS:
            raise ValueError(
                f"FeatherScheduler orders requests by their prefixes: scheduling_policy={self.policy.value!r} cannot be "
                "combined with it yet; leave the option at 'fcfs'"
            )
        if self.vllm_config.max_concurrent_batches > 1 and not self.scheduler_config.async_scheduling:
            # AsyncScheduler counts on it: without, a request would be scheduled on before its last token is known.
            raise ValueError(
                "FeatherScheduler with several batches in flight (pipeline parallelism) needs async scheduling, which "
                "is off here: leave out --no-async-scheduling, or use one pipeline stage"
            )
        self.options = Options.from_mapping(self.vllm_config.additional_config.get("feather", {}))
        self.waiting = self.make_feather_queue(self.options)

    def make_feather_queue(self, options: Options) -> FeatherQueue:
        def path_of(request: Request):
            return prefix_path(request, options.chunk_size, self.hash_block_size)

        return FeatherQueue(options.make_former(), path_of, lambda: self.running)

    def schedule(self, *args, **kwargs) -> SchedulerOutput:
        self.waiting.reconcile()
        return super().schedule(*args, **kwargs)

"""The scheduler of the studies: the waiting queue can be exchanged between runs, and every step is written down.

One engine serves all arms of a comparison, so they share its weights, its KV cache and the place of both in memory.
"""

import time

from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.request_queue import RequestQueue

from feather.options import Options
from feather.vllm.prefix import prefix_path
from feather.vllm.queue import FeatherQueue
from feather.vllm.scheduler import FeatherScheduler
from lab.engines.arms import ARMS, Arm
from lab.engines.baselines import ArrivalQueue, BlockTableQueue, OracleQueue, RadixQueue, WindowQueue, group_of
from lab.engines.published import make_former
from lab.engines.run import Step


def _clocked(name: str):
    def method(self, *arguments):
        start = time.perf_counter()
        try:
            return getattr(self.queue, name)(*arguments)
        finally:
            self.seconds += time.perf_counter() - start

    return method


class _ClockedQueue(RequestQueue):
    """Adds up the time that vLLM's scheduler spends inside its waiting queue."""

    def __init__(self, queue: RequestQueue):
        self.queue = queue
        self.seconds = 0.0

    def __getattr__(self, name: str):
        return getattr(self.queue, name)

    add_request = _clocked("add_request")
    pop_request = _clocked("pop_request")
    peek_request = _clocked("peek_request")
    prepend_request = _clocked("prepend_request")
    prepend_requests = _clocked("prepend_requests")
    remove_request = _clocked("remove_request")
    remove_requests = _clocked("remove_requests")
    reconcile = _clocked("reconcile")
    formed = _clocked("formed")
    ran = _clocked("ran")
    __bool__ = _clocked("__bool__")
    __len__ = _clocked("__len__")
    __iter__ = _clocked("__iter__")


class _Evictions:
    """Counts the cached blocks that are given up, through the seam of vLLM's block pool for such counts."""

    def __init__(self) -> None:
        self.count = 0

    def on_block_allocated(self, block) -> None:
        pass

    def on_block_accessed(self, block) -> None:
        pass

    def on_block_evicted(self, block) -> None:
        self.count += block.block_hash is not None

    def reset(self) -> None:
        pass


_ARRIVAL = Arm("order of arrival", "feather", {"policy": "never_stop", "order": "arrival"})


class StudyScheduler(FeatherScheduler):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.warmed: list[list[int]] = []  # prompts that a study has put into the prefix cache
        self.computed = 0  # prompt tokens so far
        self.sorted_rows = False  # what the scheduler lists side by side; on a CPU it is the attention backend that sorts
        self._evictions = self.kv_cache_manager.block_pool.metrics_collector = _Evictions()
        self.use(ARMS["FCFS"])

    def use(self, arm: Arm) -> None:
        """Exchange the waiting queue. Raises RuntimeError while a request is unfinished."""
        if self.requests:
            raise RuntimeError(f"cannot change to {arm.name} while requests are unfinished")
        self.arm = arm
        if self.sorted_rows and arm.kind == "fcfs":
            arm = _ARRIVAL  # it is Feather's queue that knows prefixes
        own = arm.options if arm.kind == "feather" else {}
        self.options = Options.from_mapping({"rows": "prefix" if self.sorted_rows else "engine"} | own)
        self.waiting = _ClockedQueue(self._make_queue(arm))
        self.steps: list[Step] = []

    def cached_blocks(self) -> dict[int, object]:
        """Block id → hash, of the blocks in the prefix cache."""
        return {block.block_id: block.block_hash for block in self.kv_cache_manager.block_pool.blocks if block.block_hash is not None}

    def keep_only(self, kept: dict[int, object]) -> bool:
        """Drop all cached blocks but these, as ``cached_blocks`` told them; False, and nothing is dropped, where some of them have gone."""
        cached = self.cached_blocks()
        if kept.items() - cached.items():
            return False
        self.kv_cache_manager.block_pool.evict_blocks(cached.keys() - kept.keys())
        return True

    def _make_queue(self, arm: Arm) -> RequestQueue:
        if arm.kind == "fcfs":
            return ArrivalQueue()
        if arm.kind == "oracle":
            return OracleQueue(running=lambda: self.running, **arm.options)
        if arm.kind == "radix":
            capacity = self.cache_config.num_gpu_blocks * self.block_size
            return RadixQueue(
                capacity=capacity, running=lambda: self.running, cached=self.warmed, computed=lambda: self.computed, **arm.options
            )
        if arm.kind == "block table":
            return BlockTableQueue(self.kv_cache_manager, running=lambda: self.running)
        if arm.kind == "window":
            return WindowQueue(self.kv_cache_manager, **arm.options)
        if arm.kind == "published":
            former, chunk = make_former(arm.options["rule"], max_batch=self.max_num_running_reqs, clock=lambda: self.clock())
            block = self.kv_cache_manager.block_pool.hash_block_size
            return FeatherQueue(former, lambda request: prefix_path(request, chunk, block), lambda: self.running)
        return self.make_feather_queue(self.options)

    @staticmethod
    def _is_feather(queue) -> bool:
        return isinstance(queue.queue, FeatherQueue)

    def _fall_back(self, failure: str) -> None:
        raise RuntimeError(f"the queue under study failed: {failure}")

    def schedule(self, *args, **kwargs) -> SchedulerOutput:
        if not self._is_feather(self.waiting):
            self.waiting.reconcile()
        decoding = {request.request_id for request in self.running if request.num_output_tokens > 0}
        evicted = self._evictions.count
        output = super().schedule(*args, **kwargs)
        tokens = output.num_scheduled_tokens
        if tokens:
            prefill = [count for id_, count in tokens.items() if id_ not in decoding]
            self.computed += sum(prefill)
            groups = {id_: group_of(self.requests[id_]) for id_ in tokens}
            stopped = len(self.waiting) > 0 and len(self.running) < self.max_num_running_reqs
            preempted, evicted = len(output.preempted_req_ids or ()), self._evictions.count - evicted
            self.steps.append(Step(groups, len(tokens) - len(prefill), sum(prefill), self.waiting.seconds, preempted, evicted, stopped))
            self.waiting.seconds = 0.0
        return output

"""Feather beside one of SGLang's schedulers: it takes the place of its policy, is told of every step, and steps aside if it fails."""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

from sglang.srt.managers.schedule_batch import Req, ScheduleBatch

from feather.admission import Admission
from feather.former import Formed
from feather.memory import Memory
from feather.options import Options
from feather.report import Report, registered, show
from feather.sglang.adder import SEAT
from feather.sglang.schedule_policy import FeatherSchedulePolicy
from feather.times import StepTimes

logger = logging.getLogger(__name__)

_MOST = 64  # steps in flight; more have been dropped by the engine


class Beside:
    """Puts its policy in the place of the scheduler's own. If Feather fails while serving, SGLang's first come, first served takes over
    for the rest of the run, with one error in the log, and ``scheduler.fallback`` gives the reason.

    Args:
        scheduler: SGLang's; its own policy, first come, first served, has been made.
        options: Feather's.
    """

    now: Callable[[], float] = staticmethod(time.monotonic)
    """gives seconds; a simulation puts its own in place"""

    def __init__(self, scheduler: Any, options: Options):
        self.scheduler, self._own = scheduler, scheduler.policy
        scheduler.fallback = None
        options = options.for_rank(_rank(scheduler))
        pool, cache = scheduler.token_to_kv_pool_allocator, scheduler.tree_cache
        former = options.make_former(
            max_batch=scheduler.max_running_requests,
            clock=lambda: self.now(),
            kv_use=lambda: 0.0 if cache.disable else 1 - (pool.available_size() + cache.evictable_size()) / pool.size,
        )
        sign = (1 if scheduler.schedule_low_priority_values_first else -1) if scheduler.enable_priority_scheduling else None
        self.policy = FeatherSchedulePolicy(former, options.chunk_size, self.running, sign, options.decision_budget)
        scheduler.policy = self.policy
        setattr(cache, SEAT, self.policy)
        self._memory = Memory(options.checkpoint, logger)
        self._memory.recall(former.policy)
        self._steps: deque[tuple[Formed | None, float, int]] = deque(maxlen=_MOST)  # in flight: formed, start, prompt tokens
        self._times = StepTimes()
        self._report = Report(options.chunk_size)
        self._metrics: dict[str, Any] = {}

    def running(self) -> set[Req]:
        """What runs. SGLang leaves the last prefill out of its running batch until the next step, and a chunked prompt until its end; and
        keeps in its batches for a while what has finished, is to be aborted or was retracted."""
        engine = self.scheduler
        batches = [batch.reqs for batch in (engine.running_batch, engine.last_batch) if batch is not None]
        found = chain(*batches, [] if engine.chunked_req is None else [engine.chunked_req])
        return {request for request in found if not (request.finished() or request.to_finish is not None or request.is_retracted)}

    def formed(self, batch: ScheduleBatch | None, start: float) -> None:
        """SGLang has chosen its next batch, if any, having begun at ``start``."""
        formed = self.policy.formed(self.scheduler.waiting_queue)
        if self.policy.failure is not None:
            self.failed(self.policy.failure)
        elif batch is not None:
            self._steps.append((formed, start, batch_prefill_tokens(batch)))

    @contextmanager
    def result_of(self, batch: ScheduleBatch) -> Iterator[None]:
        """Around SGLang's processing of a batch's result. Results come in the order of the steps."""
        requests = list(batch.reqs)
        before = sum(len(request.output_ids) for request in requests)
        yield
        now, busy = self.now(), bool(self.scheduler.waiting_queue or self.running())
        formed, start, prefill_tokens = self._steps.popleft() if self._steps else (None, now, 0)
        seconds = self._times.result(now, start, busy)
        if formed is None:
            return
        tokens = sum(len(request.output_ids) for request in requests) - before
        self.policy.ran(formed, tokens, seconds, prefill_tokens)
        if self.policy.failure is None:
            self._memory.keep(self.policy.former.policy, idle=not busy)
        self._tell(self.policy.admission)

    def failed(self, failure: str) -> None:
        logger.error("Feather failed (%s): requests are served first come, first served for the rest of this run", failure)
        self.scheduler.fallback = failure
        self.leave()
        self._tell(None)

    def leave(self) -> None:
        """Give the scheduler its own policy back."""
        self.scheduler.policy, self.scheduler.feather = self._own, None
        self._steps.clear()
        delattr(self.scheduler.tree_cache, SEAT)

    def _tell(self, admission: Admission | None) -> None:
        """On SGLang's ``/metrics`` (``--enable-metrics``), named and labelled as SGLang's own."""
        collector = getattr(self.scheduler, "metrics_collector", None)
        if collector is None:
            return
        if not self._metrics:
            import prometheus_client  # not before: SGLang sets its PROMETHEUS_MULTIPROC_DIR first

            self._metrics = registered(prometheus_client, "sglang:feather_", list(collector.labels))
        since = min((request.time_stats.wait_queue_entry_time for request in self.scheduler.waiting_queue), default=float("inf"))
        numbers = self._report.numbers(admission, max(0.0, time.perf_counter() - since))
        show(self._metrics, numbers, collector.labels)


def _rank(scheduler: Any) -> int:
    """Of the data-parallel engine."""
    if hasattr(scheduler, "dp_rank"):  # 0.5.9
        return scheduler.dp_rank or 0
    from sglang.srt.runtime_context import get_parallel

    return get_parallel().dp_rank or 0


def batch_prefill_tokens(batch: ScheduleBatch) -> int:
    """Prompt tokens that the step computes."""
    if not batch.forward_mode.is_extend():
        return 0
    return batch.extend_num_tokens - len(batch.decoding_reqs or ())

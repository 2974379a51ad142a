"""Feather's waiting queue: the whole of its seat in vLLM's admission loop.

vLLM's scheduler asks its queue three things while it admits requests: is there one (truth test), which (peek), and
take it (pop). A queue that reports itself empty therefore *stops the batch*, which is all that Feather needs.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence

from vllm.v1.core.sched.request_queue import RequestQueue
from vllm.v1.request import Request, RequestStatus

from feather.former import BatchFormer, Formed

_OVERRUNS = 3


class FeatherQueue(RequestQueue):
    """Holds the waiting requests and answers as the batch former decides.

    Args:
        former: forms the batches; not shared with another queue.
        path_of: a request's cumulative prefix hashes.
        running: gives the scheduler's live list of running requests (vLLM rebinds it, so a reference would go stale).
        by_priority: vLLM's ``scheduling_policy="priority"``: only the best priority that waits is offered to the
            former, and a stop never holds it back behind a running request of a worse one.
        decision_budget: seconds that a decision may take; one overrun may be the machine's, three in a row are not.

    A pop is not an admission (vLLM also pops a request to defer it), so the former hears of a start only once the
    request is seen among the running ones, and ``reconcile`` tells it of everything that came or went unasked.

    Nothing that the former or the policy in it does wrong reaches the engine: an exception, or decisions beyond their
    budget, are kept in ``failure``, and from then on the queue admits nobody and only keeps its requests, until the
    scheduler hands them to a queue of vLLM's own.
    """

    def __init__(
        self,
        former: BatchFormer,
        path_of: Callable[[Request], Sequence[Hashable]],
        running: Callable[[], list[Request]],
        by_priority: bool = False,
        decision_budget: float = float("inf"),
    ):
        self.former = former
        self.failure: str | None = None
        self.stops = 0  # decisions that ended in one
        self.decision_seconds = 0.0
        self._path_of = path_of
        self._running = running
        self._by_priority = by_priority
        self._decision_budget = decision_budget
        self._waiting: OrderedDict[str, Request] = OrderedDict()
        self._offered: dict[str, Request] = {}  # those of them that the former knows
        self._overruns = 0  # decisions in a row that took too long
        self._came_or_went = False  # since the best priority was offered
        self._popped: Request | None = None  # taken out; admitted or deferred, we shall see
        self._arrivals: dict[str, tuple[Request, int]] = {}  # arrival numbers of those that the former may see again
        self._paths: dict[str, Sequence[Hashable]] = {}  # of all that it knows or may see again; hashed once

    def reconcile(self) -> None:
        """Bring the former in line with what really runs. Called before each scheduling step."""
        self._guarded(self._reconcile)

    def _reconcile(self) -> None:
        self._settle()
        running = {request.request_id: request for request in self._running()}
        believed = self.former.running
        for request_id in believed - running.keys():
            self._forget(request_id)
        for request_id in running.keys() - believed:  # admitted past this queue, from kv_holding_waiting
            self._offer(running[request_id])
            self.former.start(request_id)
        for request, _ in list(self._arrivals.values()):
            if request.is_finished():
                del self._arrivals[request.request_id], self._paths[request.request_id]
        self.former.new_step()

    def formed(self) -> Formed | None:
        """The step has been scheduled; what ``ran`` is to be given with its result."""
        return self._guarded(self._formed)

    def _formed(self) -> Formed:
        self._settle()
        return self.former.formed()

    def ran(self, formed: Formed | None, tokens: int, seconds: float, prefill_tokens: int) -> None:
        """The step has given so many output tokens in so many seconds, and computed so many of prompts."""
        if formed is not None:
            self._guarded(self.former.ran, formed, tokens, seconds, prefill_tokens)

    # -- the admission loop ----------------------------------------------------------------------------------------

    def __bool__(self) -> bool:
        return self._guarded(self._next) is not None

    def peek_request(self) -> Request:
        request = self._guarded(self._next)
        if request is None:
            raise IndexError("peek from a queue that is empty or has stopped the batch")
        return request

    def pop_request(self) -> Request:
        request = self.peek_request()
        del self._waiting[request.request_id], self._offered[request.request_id]
        self._popped = request
        return request

    def _next(self) -> Request | None:
        self._settle()
        if not self._waiting:
            return None
        if self._by_priority and (self._came_or_went or not self._offered):
            self._offer_best_priority()
        start, before = time.perf_counter(), self.former.decisions
        request_id = self.former.next()
        taken = time.perf_counter() - start
        decided = self.former.decisions > before
        if decided:
            self.decision_seconds += taken
            self._overruns = self._overruns + 1 if taken > self._decision_budget else 0
        if self._overruns == _OVERRUNS:
            raise TimeoutError(f"{_OVERRUNS} decisions in a row took too long, the last {taken:.3f} s of {self._decision_budget:g} s")
        if request_id is None and not self._may_stop():
            request_id = self.former.oldest()
        self.stops += decided and request_id is None
        return None if request_id is None else self._offered[request_id]

    def _may_stop(self) -> bool:
        running = self._running()
        if not running:
            return False  # nothing would ever end the stop, and vLLM would spin for ever
        if not self._by_priority:
            return True
        return next(iter(self._offered.values())).priority >= max(request.priority for request in running)

    def _settle(self) -> None:
        """Find out what became of the request that was popped last."""
        request, self._popped = self._popped, None
        if request is None:
            return
        running = self._running()
        if running and running[-1] is request:
            self.former.start(request.request_id)
        else:
            self._arrivals[request.request_id] = request, self.former.cancel(request.request_id)

    # -- requests that come and go ---------------------------------------------------------------------------------

    def add_request(self, request: Request) -> None:
        self._waiting[request.request_id] = request
        self._guarded(self._add, request)

    def prepend_request(self, request: Request) -> None:
        # A preempted or deferred request keeps its place by arrival; the order here counts only after a failure.
        self._waiting[request.request_id] = request
        self._waiting.move_to_end(request.request_id, last=False)
        self._guarded(self._add, request)

    def prepend_requests(self, requests: Iterable[Request]) -> None:
        for request in requests:
            self.prepend_request(request)

    def remove_request(self, request: Request) -> None:
        del self._waiting[request.request_id]
        self._guarded(self._remove, request)

    def remove_requests(self, requests: Iterable[Request]) -> None:
        # vLLM offers the same requests to each of its queues: those that are not here are another's.
        for request in requests:
            if request.request_id in self._waiting:
                self.remove_request(request)

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._waiting.values())

    def oldest_wait(self) -> float:
        """Seconds since the request that is first in the queue arrived; 0 for an empty queue."""
        first = next(iter(self), None)
        return 0.0 if first is None else max(0.0, time.time() - first.arrival_time)

    # -- what the former is told -----------------------------------------------------------------------------------

    def _guarded(self, action: Callable, *arguments):
        """Do something that involves the former, unless it has failed. None where it has, or does so now."""
        if self.failure is not None:
            return None
        try:
            return action(*arguments)
        except Exception as error:
            self.failure = f"{type(error).__name__}: {error}"
            return None

    def _add(self, request: Request) -> None:
        self._settle()
        self._came_or_went = True
        request_id = request.request_id
        if request_id in self.former.running:
            if request.status == RequestStatus.PREEMPTED:
                self.former.preempt(request_id)
                self._offered[request_id] = request
                return
            self._forget(request_id)  # another request under the id of one that has finished since the last step
        if not self._by_priority:  # otherwise it waits to be offered until its priority's turn comes
            self._offer(request)
            self._offered[request_id] = request

    def _remove(self, request: Request) -> None:
        self._settle()
        self._came_or_went = True
        if self._offered.pop(request.request_id, None) is not None:
            self.former.cancel(request.request_id)
        self._paths.pop(request.request_id, None)
        self._arrivals.pop(request.request_id, None)

    def _offer(self, request: Request) -> None:
        request_id = request.request_id
        _, arrival = self._arrivals.pop(request_id, (None, None))
        if request_id not in self._paths:
            self._paths[request_id] = self._path_of(request)
        self.former.wait(request_id, self._paths[request_id], arrival)

    def _forget(self, request_id: str) -> None:
        self.former.finish(request_id)
        del self._paths[request_id]

    def _offer_best_priority(self) -> None:
        self._came_or_went = False
        best = min(request.priority for request in self._waiting.values())
        for request in list(self._offered.values()):
            if request.priority != best:
                del self._offered[request.request_id]
                self._arrivals[request.request_id] = request, self.former.cancel(request.request_id)
        unoffered = [request for id_, request in self._waiting.items() if request.priority == best and id_ not in self._offered]
        for request in sorted(unoffered):
            self._offer(request)
            self._offered[request.request_id] = request

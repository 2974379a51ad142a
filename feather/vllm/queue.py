"""Feather's waiting queue: the only place where it takes part in vLLM's admission loop.

While vLLM's scheduler admits requests, it asks its queue whether there is one (truth test), which (peek), and takes it (pop).
A queue that reports itself empty therefore *stops the batch*, which is all that Feather needs.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any

from vllm.v1.core.sched.request_queue import RequestQueue
from vllm.v1.request import Request as VllmRequest
from vllm.v1.request import RequestStatus

from feather.admission import Admission
from feather.former import BatchFormer, Formed
from feather.request import Request


class FeatherQueue(RequestQueue):
    """Holds the waiting requests and answers as the batch former decides.

    Args:
        former: forms the batches; not shared with another queue.
        path_of: gives a request's cumulative prefix hashes.
        running: gives the scheduler's live list of running requests (vLLM rebinds it, so a reference would go stale).
        by_priority: for vLLM's ``scheduling_policy="priority"``; see ``Admission``.
        decision_budget: seconds that a decision may take; see ``Admission``.

    A pop is not an admission, because vLLM also pops a request to defer it. So the former is told of an admission only when the
    request is seen among the running ones, and ``reconcile`` tells it of everything that came or went otherwise.

    After a ``failure`` (see ``Admission``) the queue admits nobody and only keeps its requests, until the scheduler hands them
    to a queue of vLLM's own.
    """

    def __init__(
        self,
        former: BatchFormer,
        path_of: Callable[[VllmRequest], Sequence[Hashable]],
        running: Callable[[], list[VllmRequest]],
        by_priority: bool = False,
        decision_budget: float = float("inf"),
    ):
        self.admission = Admission(former, by_priority, decision_budget)
        self._path_of = path_of
        self._running = running
        self._waiting: OrderedDict[Hashable, VllmRequest] = OrderedDict()
        self._popped: VllmRequest | None = None  # taken out; not yet known whether admitted or deferred
        self._deferred: dict[str, VllmRequest] = {}  # vLLM has them, and may bring them back

    @property
    def former(self) -> BatchFormer:
        return self.admission.former

    @property
    def failure(self) -> str | None:
        return self.admission.failure

    @property
    def stops(self) -> int:
        """decisions to stop"""
        return self.admission.stops

    @property
    def decision_seconds(self) -> float:
        return self.admission.decision_seconds

    def reconcile(self) -> None:
        """Tell the former what really runs. Called before each scheduling step."""
        self.admission.guarded(self._reconcile)

    def _reconcile(self) -> None:
        self._settle()
        running = {request.request_id: request for request in self._running()}
        believed = set(self.admission.running)
        for request_id in believed - running.keys():
            self.admission.finish(request_id)
        for request_id in running.keys() - believed:  # admitted past this queue, from kv_holding_waiting
            self._insert(running[request_id])
            self.admission.add_to_batch(request_id)
        for request in list(self._deferred.values()):
            if request.is_finished():
                self._remove(request)
        self.former.new_step()

    def formed(self) -> Formed | None:
        """The step has been scheduled. Returns what ``ran`` must be given with its result."""
        return self.admission.guarded(self._formed)

    def _formed(self) -> Formed:
        self._settle()
        return self.admission.formed()

    def ran(self, formed: Formed | None, tokens: int, seconds: float, prefill_tokens: int) -> None:
        """The step has produced so many output tokens in so many seconds, and computed so many prompt tokens."""
        if formed is not None:
            self.admission.guarded(self.former.ran, formed, tokens, seconds, prefill_tokens)

    # -- the admission loop ----------------------------------------------------------------------------------------

    def __bool__(self) -> bool:
        return self.admission.guarded(self._next) is not None

    def peek_request(self) -> VllmRequest:
        request = self.admission.guarded(self._next)
        if request is None:
            raise IndexError("peek from a queue that is empty or has stopped the batch")
        return request

    def pop_request(self) -> VllmRequest:
        request = self.peek_request()
        del self._waiting[request.request_id]
        self._popped = request
        return request

    def _next(self) -> VllmRequest | None:
        self._settle()
        request_id = self.admission.next(busy=bool(self._running()))
        return None if request_id is None else self._waiting[request_id]

    def _settle(self) -> None:
        """Find out whether the request that was popped last was admitted or deferred."""
        request, self._popped = self._popped, None
        if request is None:
            return
        running = self._running()
        if running and running[-1] is request:
            self.admission.add_to_batch(request.request_id)
        else:
            self.admission.set_aside(request.request_id)
            self._deferred[request.request_id] = request

    # -- requests that come and go ---------------------------------------------------------------------------------

    def add_request(self, request: VllmRequest) -> None:
        self._waiting[request.request_id] = request
        self.admission.guarded(self._add, request)

    def prepend_request(self, request: VllmRequest) -> None:
        # A preempted or deferred request keeps its place by arrival; the order here matters only after a failure.
        self._waiting[request.request_id] = request
        self._waiting.move_to_end(request.request_id, last=False)
        self.admission.guarded(self._add, request)

    def prepend_requests(self, requests: Iterable[VllmRequest]) -> None:
        for request in requests:
            self.prepend_request(request)

    def remove_request(self, request: VllmRequest) -> None:
        del self._waiting[request.request_id]
        self.admission.guarded(self._remove, request)

    def remove_requests(self, requests: Iterable[VllmRequest]) -> None:
        # vLLM passes the same requests to each of its queues; those that are not here are in another.
        for request in requests:
            if request.request_id in self._waiting:
                self.remove_request(request)

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[VllmRequest]:
        return iter(self._waiting.values())

    def __getitem__(self, place: int | slice) -> Any:
        # In the order of iteration, which is not the one in which Feather will admit them.
        return list(self._waiting.values())[place]

    def oldest_wait(self) -> float:
        """Seconds since the request that is first in the queue arrived; 0 for an empty queue."""
        first = next(iter(self), None)
        return 0.0 if first is None else max(0.0, time.time() - first.arrival_time)

    # -- what the former is told -----------------------------------------------------------------------------------

    def _add(self, request: VllmRequest) -> None:
        self._settle()
        if request.request_id in self.admission.running and request.status != RequestStatus.PREEMPTED:
            self.admission.finish(request.request_id)  # another request with its id has finished since the last step
        self._insert(request)

    def _insert(self, request: VllmRequest) -> None:
        request_id = request.request_id
        self._deferred.pop(request_id, None)
        if request_id in self.admission.running:
            self.admission.preempt(request_id)
        elif request_id in self.admission.aside:
            self.admission.put_back(request_id)
        else:
            self.admission.insert(Request(request_id, self._path_of(request), request.priority))

    def _remove(self, request: VllmRequest) -> None:
        self._settle()
        self._deferred.pop(request.request_id, None)
        self.admission.remove(request.request_id)

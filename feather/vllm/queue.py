"""Feather's waiting queue: the whole of its seat in vLLM's admission loop.

vLLM's scheduler asks its queue three things while it admits requests: is there one (truth test), which (peek), and
take it (pop). A queue that reports itself empty therefore *stops the batch*, which is all that Feather needs.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence

from vllm.v1.core.sched.request_queue import RequestQueue
from vllm.v1.request import Request, RequestStatus

from feather.former import BatchFormer


class FeatherQueue(RequestQueue):
    """Holds the waiting requests and answers as the batch former decides.

    Args:
        former: forms the batches; not shared with another queue.
        path_of: a request's cumulative prefix hashes.
        running: gives the scheduler's live list of running requests (vLLM rebinds it, so a reference would go stale).

    A pop is not an admission (vLLM also pops a request to defer it), so the former hears of a start only once the
    request is seen among the running ones, and ``reconcile`` tells it of everything that came or went unasked.
    """

    def __init__(
        self,
        former: BatchFormer,
        path_of: Callable[[Request], Sequence[Hashable]],
        running: Callable[[], list[Request]],
    ):
        self.former = former
        self._path_of = path_of
        self._running = running
        self._requests: dict[str, Request] = {}
        self._popped: Request | None = None  # taken out; admitted or deferred, we shall see
        self._deferred: dict[str, tuple[Request, int]] = {}  # popped without being admitted, with their arrival numbers
        self._paths: dict[str, Sequence[Hashable]] = {}  # of all that wait, run or are deferred; a prompt is hashed once

    def reconcile(self) -> None:
        """Bring the former in line with what really runs. Called before each scheduling step."""
        self._settle()
        running = {request.request_id: request for request in self._running()}
        believed = self.former.running
        for request_id in believed - running.keys():
            self.former.finish(request_id)
            del self._paths[request_id]
        for request_id in running.keys() - believed:  # admitted past this queue, from kv_holding_waiting
            self._wait(running[request_id])
            self.former.start(request_id)
        for request, _ in list(self._deferred.values()):
            if request.is_finished():
                del self._deferred[request.request_id], self._paths[request.request_id]
        self.former.new_step()

    # -- the admission loop ----------------------------------------------------------------------------------------

    def __bool__(self) -> bool:
        return self._next() is not None

    def peek_request(self) -> Request:
        request = self._next()
        if request is None:
            raise IndexError("peek from a queue that is empty or has stopped the batch")
        return request

    def pop_request(self) -> Request:
        request = self.peek_request()
        del self._requests[request.request_id]
        self._popped = request
        return request

    def _next(self) -> Request | None:
        self._settle()
        if not self._requests:
            return None
        request_id = self.former.next()
        if request_id is None and not self._running():
            # Nothing runs, so nothing would ever end the stop, and vLLM would spin for ever.
            request_id = self.former.oldest()
        return None if request_id is None else self._requests[request_id]

    def _settle(self) -> None:
        """Find out what became of the request that was popped last."""
        request, self._popped = self._popped, None
        if request is None:
            return
        running = self._running()
        if running and running[-1] is request:
            self.former.start(request.request_id)
        else:
            self._deferred[request.request_id] = request, self.former.cancel(request.request_id)

    # -- requests that come and go ---------------------------------------------------------------------------------

    def add_request(self, request: Request) -> None:
        self._settle()
        request_id = request.request_id
        if request_id in self.former.running:
            if request.status == RequestStatus.PREEMPTED:
                self.former.preempt(request_id, self._paths[request_id])
                self._requests[request_id] = request
                return
            # Another request under the id of one that has finished since the last step.
            self.former.finish(request_id)
            del self._paths[request_id]
        self._wait(request)
        self._requests[request_id] = request

    def _wait(self, request: Request) -> None:
        request_id = request.request_id
        _, arrival = self._deferred.pop(request_id, (None, None))
        if request_id not in self._paths:
            self._paths[request_id] = self._path_of(request)
        self.former.wait(request_id, self._paths[request_id], arrival)

    def prepend_request(self, request: Request) -> None:
        # A preempted or deferred request keeps its place by arrival.
        self.add_request(request)

    def prepend_requests(self, requests: Iterable[Request]) -> None:
        for request in requests:
            self.add_request(request)

    def remove_request(self, request: Request) -> None:
        self._settle()
        del self._requests[request.request_id], self._paths[request.request_id]
        self.former.cancel(request.request_id)

    def remove_requests(self, requests: Iterable[Request]) -> None:
        # vLLM offers the same requests to each of its queues: those that are not here are another's.
        for request in requests:
            if request.request_id in self._requests:
                self.remove_request(request)

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._requests.values())

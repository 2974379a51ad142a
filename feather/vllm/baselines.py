"""What Feather is measured against, as waiting queues for the same scheduler on the same engine."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator

from vllm.v1.core.sched.request_queue import RequestQueue
from vllm.v1.request import Request


def group_of(request: Request) -> int:
    """The prefix group that a study's workload has written on the request."""
    return request.sampling_params.extra_args["group"]


class OracleQueue(RequestQueue):
    """Group ids are given, so detection is free and exact: a group that runs already comes first, then the group of
    the oldest request. With ``stop`` a batch holds one group only, and nothing is admitted until it has run out.

    Shares no code with the tree, so that it can also tell when the tree is wrong.
    """

    def __init__(self, stop: bool, running: Callable[[], list[Request]]):
        self._stop = stop
        self._running = running
        self._groups: dict[int, deque[Request]] = {}  # in order of arrival within each group
        self._running_groups: set[int] = set()

    def reconcile(self) -> None:
        self._running_groups = {group_of(request) for request in self._running()}

    def _next_group(self) -> int | None:
        if not self._groups:
            return None
        related = [group for group in self._groups if group in self._running_groups]
        if not related and self._stop and self._running():
            return None
        return min(related or self._groups, key=lambda group: self._groups[group][0].arrival_time)

    def __bool__(self) -> bool:
        return self._next_group() is not None

    def peek_request(self) -> Request:
        return self._groups[self._next_group()][0]

    def pop_request(self) -> Request:
        group = self._next_group()
        request = self._groups[group].popleft()
        if not self._groups[group]:
            del self._groups[group]
        self._running_groups.add(group)
        return request

    def add_request(self, request: Request) -> None:
        self._groups.setdefault(group_of(request), deque()).append(request)

    def prepend_request(self, request: Request) -> None:
        self._groups.setdefault(group_of(request), deque()).appendleft(request)

    def prepend_requests(self, requests: Iterable[Request]) -> None:
        for request in requests:
            self.prepend_request(request)

    def remove_request(self, request: Request) -> None:
        queue = self._groups[group_of(request)]
        queue.remove(request)
        if not queue:
            del self._groups[group_of(request)]

    def remove_requests(self, requests: Iterable[Request]) -> None:
        for request in requests:
            if request in self._groups.get(group_of(request), ()):
                self.remove_request(request)

    def __len__(self) -> int:
        return sum(map(len, self._groups.values()))

    def __iter__(self) -> Iterator[Request]:
        for queue in self._groups.values():
            yield from queue

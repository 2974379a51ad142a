"""Feather in the two places where SGLang decides about admission: the policy that orders its queue, and the adder.

In every step SGLang lets its policy order the waiting queue, a list, and then goes through that list: it asks the adder to add
each request, and any answer but CONTINUE ends the batch. To order the whole list beforehand, Feather would have to decide in
every step about requests that memory or the token budget keep out, and to take those decisions back. So it puts only the first
request in its place beforehand. Each further one is put behind it once the adder has taken the one before (Python goes through
a list by position, and so sees the change). To stop, the adder answers that the batch is full.
"""

from collections.abc import Callable, Hashable, Sequence
from enum import Enum, auto
from typing import Any

from sglang.srt.managers.schedule_batch import Req, ScheduleBatch

from feather.admission import Admission
from feather.former import BatchFormer, Formed
from feather.hashing import hash_tokens
from feather.request import Request


class Verdict(Enum):
    """What happens to the request that SGLang has come to."""

    ADD = auto()
    PASS = auto()
    """not this one: another has been put behind it"""
    STOP = auto()


class FeatherSchedulePolicy:
    """Takes the place of SGLang's ``SchedulePolicy``.

    A request's id is SGLang's request object itself, because SGLang's own ids come from clients. A request runs from the moment that
    the adder takes it until it waits again or the engine no longer runs it, for whatever reason.

    Args:
        former: forms the batches; not shared.
        chunk_size: tokens per chunk of the tree.
        running: gives the requests that the engine runs, those left out that it has not cleared away yet.
        priority_sign: 1 if the least number is the best priority, -1 if the greatest is, None without priorities.
        decision_budget: seconds that a decision may take; see ``Admission``.
    """

    def __init__(
        self,
        former: BatchFormer,
        chunk_size: int,
        running: Callable[[], set[Req]],
        priority_sign: int | None = None,
        decision_budget: float = float("inf"),
    ):
        self.admission = Admission(former, priority_sign is not None, decision_budget)
        self._chunk_size = chunk_size
        self._running = running
        self._sign = priority_sign
        self._queue: list[Req] = []
        self._next: Any = None  # the request to admit next; None: none, the batch is stopped
        self._began = False  # whether SGLang has asked in the present step

    @property
    def former(self) -> BatchFormer:
        return self.admission.former

    @property
    def failure(self) -> str | None:
        """Why Feather has failed; the queue is then served in its present order."""
        return self.admission.failure

    def calc_priority(self, waiting_queue: list[Req], running_batch: ScheduleBatch | None = None, processed_tokens: int = 0) -> bool:
        """SGLang's name for ordering the queue. Returns False: no prefix was looked up in its cache."""
        self.admission.guarded(self._begin, waiting_queue)
        return False

    def waiting_queue_prefix_matched(self, waiting_queue: list[Req]) -> bool:
        """For SGLang's report of its load: it knows nothing of what waits."""
        return False

    def shortest_prefill_chunk_limit(self, chunked_req: Req, waiting_queue: list[Req], budget: int, page_size: int) -> None:
        """For SGLang's own policy of that name: a prompt in chunks takes all the tokens that there are."""

    def verdict(self, request: Req) -> Verdict:
        """Whether to add the request that SGLang has come to."""
        if self.failure is not None:
            return Verdict.ADD
        return self.admission.guarded(self._verdict, request) or Verdict.ADD

    def admitted(self, request: Req) -> bool:
        """The adder has taken the request. Returns False if the batch stops behind it."""
        self.admission.guarded(self._admitted, request)
        return self.failure is not None or self._next is not None

    def formed(self, waiting_queue: list[Req]) -> Formed | None:
        """The step has been scheduled. Returns what ``ran`` must be given with its result."""
        if not self._began:  # the batch was full or nobody waits, so SGLang has not asked
            self.admission.guarded(self._reconcile, waiting_queue)
        self._began, self._queue, self._next = False, [], None
        return self.admission.guarded(self.admission.formed)

    def ran(self, formed: Formed | None, tokens: int, seconds: float, prefill_tokens: int) -> None:
        """The step has produced so many output tokens in so many seconds, and computed so many prompt tokens."""
        if formed is not None:
            self.admission.guarded(self.former.ran, formed, tokens, seconds, prefill_tokens)

    # -- the same, without catching failures -------------------------------------------------------------------------

    def _begin(self, waiting_queue: list[Req]) -> None:
        self._reconcile(waiting_queue)
        self._began = True
        self._queue = waiting_queue
        self._choose(0)

    def _verdict(self, request: Req) -> Verdict:
        if self._next is None:
            return Verdict.STOP
        if self._next is request:
            return Verdict.ADD
        place = self._queue.index(request)
        # SGLang has passed over the request that was to be next: its adapter or its KV is not there yet.
        while self._next is not None and self._next is not request and self._next in self._queue[:place]:
            self.admission.set_aside(self._next)
            self._next = self.admission.next(busy=bool(self.admission.running))
        if self._next is None:
            return Verdict.STOP
        if self._next is request:
            return Verdict.ADD
        self._move(self._next, place + 1)
        return Verdict.PASS

    def _admitted(self, request: Req) -> None:
        self.admission.add_to_batch(request)
        self._choose(self._queue.index(request) + 1)

    def _choose(self, place: int) -> None:
        self._next = self.admission.next(busy=bool(self.admission.running))
        if self._next is not None:
            self._move(self._next, place)

    def _move(self, request: Req, place: int) -> None:
        self._queue.remove(request)
        self._queue.insert(place, request)

    def _reconcile(self, waiting_queue: list[Req]) -> None:
        admission, waiting, running = self.admission, set(waiting_queue), self._running()
        request: Any
        for request in (admission.waiting | admission.aside) - waiting:
            admission.remove(request)
        for request in [request for request in admission.running if request not in waiting and request not in running]:
            admission.finish(request)
        for request in waiting_queue:
            if request in admission.running:
                admission.preempt(request)
            elif request in admission.aside:
                admission.put_back(request)
            elif request not in admission.waiting:
                self._insert(request)
        for request in running - admission.running:  # admitted past this policy
            self._insert(request)
            admission.add_to_batch(request)
        self.former.new_step()

    def _insert(self, request: Req) -> None:
        priority = 0 if self._sign is None else self._sign * request.priority
        self.admission.insert(Request(request, prompt_path(request, self._chunk_size), priority))


def prompt_path(request: Req, chunk_size: int) -> Sequence[Hashable]:
    """The prompt's chunk hashes. SGLang keeps what makes the prefix besides the tokens (the LoRA adapter, and in 0.5.9 the cache salt) in
    ``extra_key``, and puts placeholders for images among the tokens. A prompt given as embeddings shares nothing."""
    if request.input_embeds is not None:
        return ()
    salt = getattr(request, "cache_salt", None)
    keys = [(0, key.encode()) for key in (request.extra_key, salt and f"salt {salt}") if key]
    return hash_tokens(request.origin_input_ids, chunk_size, keys)

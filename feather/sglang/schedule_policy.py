"""Feather in the two places where SGLang decides about admission: the policy that orders its queue, and the adder.

In every step SGLang has its policy order the waiting queue, a list, and then goes through that list: the adder is asked
to add each request, and anything but CONTINUE ends the batch. Ordering the whole list beforehand would mean to decide about
requests that memory or the token budget keep out, in every step again, and to take those decisions back. So only the first
is put in its place beforehand; each further one is put behind it once the adder has taken the one before (Python goes
through a list by position, and sees that), and where Feather stops, the adder's answer is that the batch is full.
"""

from collections.abc import Callable, Hashable, Sequence
from enum import Enum, auto

from sglang.srt.managers.schedule_batch import Req, ScheduleBatch

from feather.admission import Admission
from feather.former import BatchFormer, Formed
from feather.hashing import hash_tokens


class Verdict(Enum):
    ADD = auto()
    PASS = auto()
    """not this one: another has been put behind it"""
    STOP = auto()


class FeatherPolicy:
    """Takes the place of SGLang's ``SchedulePolicy``.

    SGLang's requests are told apart as objects: ids come from clients. A request is taken to run from the moment that the
    adder takes it until it is finished or aborted (its own word for it), or waits again: what SGLang calls its running batch
    leaves out a request whose prompt is being computed in parts.

    Args:
        former: forms the batches; not shared.
        chunk_size: tokens per chunk of the tree.
        busy: whether the engine has anything to run besides the waiting requests.
        priority_sign: 1 where the least number is the best priority, -1 where the greatest is, None without priorities.
        decision_budget: seconds that a decision may take.
    """

    def __init__(
        self,
        former: BatchFormer,
        chunk_size: int,
        busy: Callable[[], bool],
        priority_sign: int | None = None,
        decision_budget: float = float("inf"),
    ):
        self.admission = Admission(former, priority_sign is not None, decision_budget)
        self._chunk_size = chunk_size
        self._busy = busy
        self._sign = priority_sign
        self._queue: list[Req] = []
        self._next: Req | None = None  # who is to be admitted next; None: nobody, the batch is stopped
        self._began = False  # whether the present step has come by here

    @property
    def former(self) -> BatchFormer:
        return self.admission.former

    @property
    def failure(self) -> str | None:
        """Why Feather has given up; the queue is then served in the order in which it stands."""
        return self.admission.failure

    def calc_priority(self, waiting_queue: list[Req], running_batch: ScheduleBatch | None = None) -> bool:
        """SGLang's name for ordering the queue. Returns False: no prefix has been looked up in its cache."""
        self.admission.guarded(self._begin, waiting_queue)
        return False

    def verdict(self, request: Req) -> Verdict:
        """What is to become of the request that SGLang has come to."""
        if self.failure is not None:
            return Verdict.ADD
        return self.admission.guarded(self._verdict, request) or Verdict.ADD

    def admitted(self, request: Req) -> bool:
        """The adder has taken the request. Returns False where the batch is to be stopped behind it."""
        self.admission.guarded(self._admitted, request)
        return self.failure is not None or self._next is not None

    def formed(self, waiting_queue: list[Req]) -> Formed | None:
        """The step has been scheduled; what ``ran`` is to be given with its result."""
        if not self._began:  # the batch was full, or nobody waits: SGLang has not asked
            self.admission.guarded(self._reconcile, waiting_queue)
        self._began = False
        return self.admission.guarded(self.admission.formed)

    def ran(self, formed: Formed | None, tokens: int, seconds: float, prefill_tokens: int) -> None:
        """The step has given so many output tokens in so many seconds, and computed so many of prompts."""
        if formed is not None:
            self.admission.guarded(self.former.ran, formed, tokens, seconds, prefill_tokens)

    # -- the same, where a failure is not caught ---------------------------------------------------------------------

    def _begin(self, waiting_queue: list[Req]) -> None:
        self._reconcile(waiting_queue)
        self._began = True
        self._queue = waiting_queue
        self._choose(0, self._busy())

    def _verdict(self, request: Req) -> Verdict:
        if self._next is None:
            return Verdict.STOP
        if self._next is request:
            return Verdict.ADD
        place = self._queue.index(request)
        # SGLang has passed over the one that was to be next, for want of its adapter or of its KV.
        while self._next is not None and self._next is not request and self._next in self._queue[:place]:
            self.admission.set_aside(self._next)
            self._next = self.admission.next(self._busy())
        if self._next is None:
            return Verdict.STOP
        if self._next is request:
            return Verdict.ADD
        self._move(self._next, place + 1)
        return Verdict.PASS

    def _admitted(self, request: Req) -> None:
        self.admission.start(request)
        self._choose(self._queue.index(request) + 1, True)

    def _choose(self, place: int, busy: bool) -> None:
        self._next = self.admission.next(busy)
        if self._next is not None:
            self._move(self._next, place)

    def _move(self, request: Req, place: int) -> None:
        self._queue.remove(request)
        self._queue.insert(place, request)

    def _reconcile(self, waiting_queue: list[Req]) -> None:
        admission, known = self.admission, self.admission.waiting
        for request in (known | admission.aside) - set(waiting_queue):
            admission.withdraw(request)
        for request in list(admission.running):
            if request.finished() or request.to_finish is not None:
                admission.finish(request)
        for request in waiting_queue:
            if request not in known:
                priority = 0 if self._sign is None else self._sign * request.priority
                admission.wait(request, lambda request=request: prefix_path(request, self._chunk_size), priority)
        self.former.new_step()


def prefix_path(request: Req, chunk_size: int) -> Sequence[Hashable]:
    """The prompt's chunk hashes. SGLang keeps what besides the tokens makes the prefix (LoRA adapter, cache salt) in
    ``extra_key``, and has put stand-ins for images among the tokens. A prompt that is given as embeddings shares nothing."""
    if request.input_embeds is not None:
        return ()
    keys = [(0, request.extra_key.encode())] if request.extra_key else []
    return hash_tokens(request.origin_input_ids, chunk_size, keys)

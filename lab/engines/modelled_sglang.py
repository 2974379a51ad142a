"""SGLang 0.5.9's real scheduler, policies, adder and radix cache, as the modelled device drives them.

Its own code decides whom the waiting queue brings first, who is admitted and with how many tokens (``new_token_ratio``), that prompts
run before and apart from decoding, what is evicted from the radix cache and who is retracted when memory is full. Ours are:

* the loop: every step's result is there before the next one is scheduled. SGLang, by default, schedules one step ahead, and
  there a finished request stays for one step more;
* the sizes: KV cache and token budget are those that ``ModelledEngine`` gives vLLM, where SGLang sizes both by the GPU's memory
  (``chunked_prefill_size`` 4096 on 48 GB);
* tensors on the CPU, so that the recorded cost of a step holds the writing of tables that a GPU would do beside it.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from feather.options import Options
from feather.sglang import POLICY, VERSIONS, install
from lab.engines.arms import SGLANG_ARMS, Arm
from lab.engines.run import Step
from lab.engines.scheduling import Scheduled
from lab.engines.sglang_modelless import ModellessScheduler, Req, made_up, make_request
from lab.llm import Model
from lab.model.steptime import Batch
from lab.workloads import Prompt

_NOT_ASKED = "not asked"  # the kind of a step in which SGLang left its policy alone: the batch is full, or nobody waits


class SglangScheduling:
    """``lab.engines.scheduling.Scheduling`` by SGLang, over a KV cache of so many tokens; ``block_size`` is what evictions are counted
    in; ``clock`` gives the seconds that Feather takes for the time. Its own pages are of one token (SGLang's default)."""

    version = f"sglang {VERSIONS[0]}"
    sorts = False

    def __init__(self, model: Model, kv_tokens: int, max_batch: int, max_batched_tokens: int, block_size: int, clock: Callable[[], float]):
        logging.getLogger("sglang.srt.managers.scheduler").setLevel(logging.ERROR)  # a warning for every retraction
        self.real = _Scheduler(
            kv_tokens, model.max_tokens, schedule_policy="fcfs", max_running_requests=max_batch,
            chunked_prefill_size=max_batched_tokens, max_prefill_tokens=max_batched_tokens,
        )  # fmt: skip
        self.real.clock = clock
        self._block_size = block_size
        self._requests: dict[str, Req] = {}
        self._groups: dict[str, int] = {}
        self._evict, self.real.tree_cache.evict = self.real.tree_cache.evict, self._count_evicted

    @property
    def unfinished(self) -> int:
        return len(self._requests)

    @property
    def waiting(self) -> int:
        return len(self.real.waiting_queue)

    @property
    def row_ids(self) -> list[str]:
        return [request.rid for request in self._running.reqs]

    def use(self, arm: Arm) -> None:
        if self._requests:
            raise RuntimeError(f"cannot change to {arm.name} while requests are unfinished")
        if arm.kind not in ("fcfs", "feather", "sglang"):
            raise ValueError(f"{arm.name!r} is not one of the arms inside SGLang {VERSIONS[0]}: {', '.join(SGLANG_ARMS)}")
        self.real.change_policy(arm)
        self.steps: list[Step] = []
        self._groups.clear()
        self._batch, self._decoding = None, []
        self._queue_seconds, self._charged = 0.0, _NOT_ASKED
        for name in ("calc_priority", "verdict", "admitted", "formed", "ran"):
            if hasattr(self.real.policy, name):
                setattr(self.real.policy, name, self._clocked(getattr(self.real.policy, name)))

    def forget(self, warmed: list[list[int]]) -> None:
        self.real.forget()

    def add(self, id_: str, prompt: Prompt, arrival: float) -> None:
        if not self._requests:
            self.real.idle()
        self._requests[id_] = request = make_request(id_, prompt.tokens, prompt.decode_tokens)
        self._groups[id_] = prompt.group
        self.real._add_request_to_queue(request)

    def schedule(self) -> Scheduled | None:
        real, unfinished_prompt = self.real, self.real.chunked_req
        real.num_retracted_reqs, self._evicted, self._charged = 0, 0, _NOT_ASKED
        batch = real.get_next_batch_to_run()
        if batch is None:  # when a full batch has finished as one, SGLang's loop turns once idly and then admits
            real.idle()
            batch = real.get_next_batch_to_run()
        if batch is None:
            return None
        self._running = real.cur_batch = batch
        prefill = batch.extend_num_tokens if batch.forward_mode.is_extend() else 0
        busy = len(real.running_batch.reqs) + (len(batch.reqs) if prefill else 0)
        self.steps.append(Step(
            {request.rid: self._groups[request.rid] for request in batch.reqs}, 0 if prefill else len(batch.reqs), prefill, self._queue_seconds,
            preempted=real.num_retracted_reqs, evicted=round(self._evicted / self._block_size), stopped=bool(real.waiting_queue) and busy < real.max_running_requests,
        ))  # fmt: skip
        self._queue_seconds = 0.0
        admitted = len(batch.reqs) - (unfinished_prompt in batch.reqs) if prefill else 0
        charged = "feather" if real.feather is not None else self._charged
        return Scheduled(len(batch.reqs), admitted, charged)

    def batch(self, free_prefill: bool) -> Batch:
        requests = self._running.reqs
        if not self._running.forward_mode.is_extend():
            if requests == self._decoding:
                self._batch.private_tokens += self._batch.rows
                return self._batch
            self._decoding, new = list(requests), None
        else:
            self._decoding, new = [], [request.extend_input_len for request in requests]
        contexts = [len(request.fill_ids) if new else request.seqlen for request in requests]
        self._batch = Batch(contexts, *_shared(requests), None if free_prefill else new)
        return self._batch

    def deliver(self) -> tuple[list[str], int]:
        requests = list(self._running.reqs)
        before = [len(request.output_ids) for request in requests]
        self.real.process_batch_result(self._running, made_up(self._running))
        self.real.last_batch = self._running
        done = [self._requests.pop(request.rid) for request in requests if request.finished()]
        sampled = [request.rid for request, had in zip(requests, before) if len(request.output_ids) > had]
        return sampled, sum(request.cached_tokens for request in done)

    def drop(self) -> bool:
        return False

    def _clocked(self, method: Callable) -> Callable:
        def clocked(*arguments):
            if method.__name__ == "calc_priority" and self.real.feather is None:
                self._charged = self.real.policy._determine_active_policy(arguments[0]).value
            start = time.perf_counter()
            try:
                return method(*arguments)
            finally:
                self._queue_seconds += time.perf_counter() - start

        return clocked

    def _count_evicted(self, params):
        result = self._evict(params)
        self._evicted += result.num_tokens_evicted
        return result


class _Scheduler(ModellessScheduler):
    def change_policy(self, arm: Arm) -> None:
        if self.feather is not None:
            self.feather.leave()
        self.schedule_policy = self.server_args.schedule_policy = {"fcfs": "fcfs", "feather": POLICY}.get(arm.kind) or arm.options["policy"]
        if arm.kind == "feather":  # the budget is one of real time, of which a virtual clock knows nothing
            install(replace(Options.from_mapping(arm.options), decision_budget=float("inf")).flat())
        self.init_schedule_policy()
        if self.feather is not None:
            self.feather.now, self.feather.failed = self.clock, _failed
        if not arm.options.get("cut_off", True):
            policy = self.policy
            policy._determine_active_policy = lambda waiting: policy.policy

    def idle(self) -> None:
        """What the event loop does where there is nothing to run."""
        self.last_batch, self.new_token_ratio = None, self.init_new_token_ratio

    def forget(self) -> None:
        """What ``flush_cache`` does, without asking a GPU."""
        self.init_running_status()
        self.tree_cache.reset()
        self.req_to_token_pool.clear()
        self.token_to_kv_pool_allocator.clear()


def _failed(failure: str) -> None:
    raise RuntimeError(f"the policy under study failed: {failure}")


def _shared(requests: list[Req]) -> tuple[list[int], list[list[tuple[int, int]]]]:
    """What the requests share of the KV cache, as ``Batch`` takes it: SGLang's radix tree says what is stored once. A stretch is a
    node of it that at least two of them are on; who computes a prefix only now has it for itself until the step is through."""
    chains = [_chain(request.last_node) for request in requests]
    through = Counter(node for chain in chains for node in chain)
    places: dict = {}
    members = []
    for chain in chains:
        shared = tuple(node for node in chain if through[node] > 1)
        members.append(places.setdefault(shared, len(places)))
    return members, [[(node.id, len(node.key)) for node in chain] for chain in places]


def _chain(node) -> list:
    chain = []
    while node.parent is not None:
        chain.append(node)
        node = node.parent
    return chain

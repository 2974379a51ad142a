"""What the former believes is what the engine does, whatever happens to requests and in whatever order.

A random driver does to each engine's real scheduler what clients and operators do, and compares beliefs with the engine's own
account after every step: 10 500 operations each.
"""

import gc
import random
import weakref
from concurrent.futures import Future
from types import SimpleNamespace

import modelless
import pytest
import vllm
from vllm.config import KVTransferConfig
from vllm.lora.request import LoRARequest
from vllm.sampling_params import StructuredOutputsParams
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.outputs import KVConnectorOutput
from vllm.v1.request import RequestStatus

import feather.sglang
from feather.vllm import FeatherScheduler

CHUNK = 32
PAST_THE_QUEUE = vllm.__version__.startswith("0.25")  # goes a request whose grammar is not ready, which the queue never sees
OPTIONS = {
    "threshold": {"policy": "lab.policies.Threshold", "chunk_size": CHUNK, "min_batch": 2, "max_loss": 0, "max_loss_under_load": 0},
    "bandit": {"policy": "lab.policies.Bandit", "chunk_size": CHUNK, "max_wait": 0.05},
    "never_stop": {"policy": "never_stop", "chunk_size": CHUNK, "saturated_after": 1.0},
}
OPERATIONS = 1_500


def prompt(group, number, length=96):
    rng = random.Random(group)
    return [rng.randrange(10, 9999) for _ in range(length)] + [10_000 + number] * 5


class Play:
    """Does ``operations``, a method's name → its weight, at random."""

    operations: dict[str, int] = {}

    def __init__(self, seed):
        self.rng = random.Random(seed)
        self.count = 0

    def play(self, times):
        names, weights = zip(*self.operations.items())
        for name in self.rng.choices(names, weights, k=times):
            getattr(self, name)()
            self.count += 1
            if name == "step":
                self.compare()


# -- vLLM ----------------------------------------------------------------------------------------------------------------


class Loading(modelless.Driver):
    """The KV of one waiting request a step arrives from elsewhere, where a connector loads any."""

    def complete(self, result):
        if self.scheduler.connector is None:
            return
        loading = [r.request_id for r in self.scheduler.requests.values() if r.status == RequestStatus.WAITING_FOR_REMOTE_KVS]
        arrived = [id_ for id_ in loading if id_ not in self.scheduler.finished_recving_kv_req_ids][:1]
        result.kv_connector_output = KVConnectorOutput(finished_recving=set(arrived))


class PlayVllm(Play):
    """With adapters beyond what fits (deferred), grammars that are not ready (deferred), too few KV blocks (preempted)."""

    operations = {
        "step": 50,
        "add": 22,
        "structured": 2,
        "compile": 3,
        "abort": 8,
        "abort_and_add_again": 2,
        "pause": 3,
        "unpause": 8,
        "reset": 2,
    }

    def __init__(self, scheduler, depth, seed, adapters=0, grammars=False):
        super().__init__(seed)
        self.scheduler, self.driver = scheduler, Loading(scheduler, depth)
        self.adapters, self.grammars = adapters, grammars
        self.uncompiled = []
        self.deferrals = self.preemptions = 0
        set_aside = scheduler.waiting.admission.set_aside

        def defer(request_id):
            self.deferrals += 1
            set_aside(request_id)

        scheduler.waiting.admission.set_aside = defer

    def request(self, id_, **arguments):
        adapter = self.rng.randrange(self.adapters + 1)
        length = self.rng.choice(
            [0, 40, 96, 96, 300] if self.scheduler.connector is None else [96, 300]
        )  # the connector has 64 tokens of each
        return modelless.make_request(
            self.scheduler, id_, prompt(self.rng.randrange(4), int(id_), length), self.rng.randint(1, 20),
            priority=self.rng.randrange(3), lora_request=LoRARequest(f"adapter {adapter}", adapter, "/adapters") if adapter else None,
            **arguments,
        )  # fmt: skip

    def step(self):
        self.driver.step()

    def add(self):
        if len(self.scheduler.requests) < 40:
            self.driver.add(self.request(str(self.count)))

    def structured(self):
        if self.grammars:
            request = self.request(str(self.count), structured_outputs=StructuredOutputsParams(regex="a*"))
            request.structured_output_request.grammar = Future()
            self.uncompiled.append(request)
            self.driver.add(request)

    def compile(self):
        if self.uncompiled:
            self.uncompiled.pop(0).structured_output_request._grammar.set_result(modelless.Grammar())

    def abort(self):
        if self.scheduler.requests:
            modelless.abort(self.scheduler, self.rng.choice(list(self.scheduler.requests)))

    def abort_and_add_again(self):
        if self.scheduler.requests and self.scheduler.connector is None and not self.driver.in_flight:
            modelless.abort(self.scheduler, id_ := self.rng.choice(list(self.scheduler.requests)))
            self.driver.add(self.request(id_))

    def pause(self):
        self.scheduler.set_pause_state(self.rng.choice(list(PauseState)))

    def unpause(self):
        self.scheduler.set_pause_state(PauseState.UNPAUSED)

    def reset(self):
        while self.driver.in_flight:
            self.driver.deliver()
        if self.scheduler.connector is None:
            self.scheduler.reset_prefix_cache(reset_running_requests=True)

    def compare(self):
        scheduler, queue = self.scheduler, self.scheduler.waiting
        assert scheduler.fallback is None
        queue.reconcile()
        admission, running = queue.admission, {request.request_id for request in scheduler.running}
        assert queue.failure is None
        assert queue.former.running == set(admission.running) == running
        known, not_running = admission.waiting | admission.aside, scheduler.requests.keys() - running
        if PAST_THE_QUEUE:
            not_running -= {request.request_id for request in scheduler.skipped_waiting} - known
        assert known == not_running
        assert admission.waiting == {request.request_id for request in queue}
        self.preemptions += sum(request.status == RequestStatus.PREEMPTED for request in queue)

    def end(self):
        self.unpause()
        while self.uncompiled:
            self.compile()
        self.driver.run(5_000)
        self.scheduler.schedule()
        assert (
            self.scheduler.fallback is None and not self.scheduler.waiting.former.running and not self.scheduler.waiting.former.tree.nodes()
        )


CONNECTOR = KVTransferConfig(kv_connector="Loader", kv_connector_module_path="connector", kv_role="kv_both")
VLLM = {
    "plain": (1, "threshold", {}, {}),
    "preempting": (2, "never_stop", {"blocks": 40}, {}),
    "priorities": (1, "threshold", {"blocks": 40, "scheduling_policy": "priority"}, {}),
    "adapters": (2, "threshold", {"enable_lora": True, "max_loras": 1, "max_lora_rank": 8}, {"adapters": 2}),
    "grammars": (1, "never_stop", {"scheduling_policy": "priority"}, {"grammars": True}),
    "loaded": (1, "bandit", {"kv_transfer_config": CONNECTOR, "disable_hybrid_kv_cache_manager": True}, {}),
    "everything": (
        2, "bandit", {"blocks": 50, "enable_lora": True, "max_loras": 1, "max_lora_rank": 8, "enable_prefix_caching": False},
        {"adapters": 2, "grammars": True},
    ),
}  # fmt: skip


@pytest.mark.parametrize("mode", VLLM)
def test_vllm(tmp_path, mode):
    depth, options, settings, kinds = VLLM[mode]
    scheduler = modelless.make_scheduler(FeatherScheduler, tmp_path, max_tokens=256, feather=OPTIONS[options], **settings)
    play = PlayVllm(scheduler, depth, mode, **kinds)
    play.play(OPERATIONS)
    play.end()
    assert (play.preemptions > 0) or "blocks" not in settings
    deferring = {"adapters", "loaded", "everything"} | (set() if PAST_THE_QUEUE else {"grammars"})
    assert (play.deferrals > 0) is (mode in deferring)


# -- SGLang --------------------------------------------------------------------------------------------------------------

if feather.sglang.missing() is None:
    import sglang_modelless  # noqa: F401 puts the stubs in place that SGLang 0.5.9 needs without a GPU

    # isort: split
    from sglang.srt.environ import envs
    from sglang.srt.managers.io_struct import AbortReq
    from sglang_modelless import TODAY, Driver, has_row, make_scheduler, retract, retractions, tell_rejected
    from sglang_modelless import make_request as make_timeless_request

needs_sglang = pytest.mark.skipif(feather.sglang.missing() is not None, reason=feather.sglang.missing() or "")


def sglang(options, queued=None, **settings):
    """A scheduler, its driver, and the set of ids that it turned away."""
    scheduler, rejected = make_scheduler(OPTIONS[options], **settings), set()
    scheduler.max_queued_requests = queued
    tell_rejected(scheduler, rejected.add)
    return scheduler, Driver(scheduler), rejected


class Times:
    """SGLang's record of a request's times, as far as it decides anything; the real one is stubbed in 0.5.9."""

    wait_queue_entry_time = forward_entry_time = 0.0

    def __getattr__(self, name):
        return 0.0


def make_request(*arguments, **named):
    request = make_timeless_request(*arguments, **named)
    if not TODAY:
        request.time_stats = Times()
    return request


def runs(request):
    return has_row(request) and not request.finished() and request.to_finish is None


class PlaySglang(Play):
    operations = {
        "step": 50, "add": 22, "abort": 6, "retract": 5, "retract_all": 1, "expire_waiting": 1, "expire_running": 1, "abort_all": 1
    }  # fmt: skip

    def __init__(self, mode, options, **settings):
        super().__init__(mode)
        self.scheduler, self.driver, self.rejected = sglang(options, queued=8, **settings)
        self.alive = []
        self.retractions = 0

    def add(self):
        priority = self.rng.choice([0, 20, 40]) if self.scheduler.enable_priority_scheduling else None
        tokens = prompt(self.rng.randrange(4), self.count, self.rng.choice([0, 40, 96, 96]))
        self.alive.append(make_request(f"{self.count}.", tokens, self.rng.randint(1, 20), priority=priority))
        self.driver.add(self.alive[-1])

    def step(self):
        self.driver.step()

    def abort(self):
        if self.alive:
            self.scheduler.abort_request(AbortReq(rid=self.rng.choice(self.alive).rid))

    def abort_all(self):
        self.scheduler.abort_request(AbortReq(abort_all=True))

    def retract(self):
        """As SGLang does where its KV pool is full; where the queue is full, too, it is turned away."""
        batch = self.scheduler.running_batch
        if self.driver.results:
            return  # SGLang itself never does while a result is on its way
        if able := [place for place, request in enumerate(batch.reqs) if runs(request)]:
            retract(self.scheduler, self.rng.choice(able))

    def retract_all(self):
        """As it does for new weights."""
        last = self.scheduler.last_batch
        if self.scheduler.chunked_req is not None or (last is not None and last.forward_mode.is_extend()):
            return  # SGLang 0.5.9 fails: it merges into a batch without tensors, and loses a prompt that it has computed in part
        self.scheduler.pause_generation(SimpleNamespace(mode="retract"))
        self.scheduler.continue_generation(SimpleNamespace(torch_empty_cache=False))

    def expire_waiting(self):
        with envs.SGLANG_REQ_WAITING_TIMEOUT.override(1e-9):
            self.step()

    def expire_running(self):
        with envs.SGLANG_REQ_RUNNING_TIMEOUT.override(1e-9):
            self.step()

    def compare(self):
        scheduler, policy = self.scheduler, self.scheduler.policy
        assert scheduler.fallback is None
        policy.admission.guarded(policy._reconcile, scheduler.waiting_queue)
        assert policy.failure is None
        admission = policy.admission
        self.alive = [request for request in self.alive if not request.finished() and request.rid not in self.rejected]
        assert policy.former.running == set(admission.running) == {request for request in self.alive if runs(request)}
        assert admission.waiting | admission.aside == set(scheduler.waiting_queue)
        self.retractions = max([self.retractions, *map(retractions, self.alive)])

    def end(self):
        self.driver.run()
        forgotten(self.scheduler)


def forgotten(scheduler):
    """Asserts that nothing is left of anybody."""
    policy = scheduler.policy
    policy.formed(scheduler.waiting_queue)
    assert scheduler.fallback is None and policy.failure is None
    assert not policy.former.running and not policy.former.waiting and not policy.former.tree.nodes()
    assert not policy.admission.running and not policy.admission.waiting and not policy.admission.aside


SGLANG = {
    "plain": ("threshold", {}),
    "chunked": ("bandit", {"chunked_prefill_size": 64}),
    "mixed": ("threshold", {"enable_mixed_chunk": True, "chunked_prefill_size": 64}),
    "overlap": ("bandit", {"disable_overlap_schedule": False}),
    "full": ("never_stop", {"slots": 400, "schedule_conservativeness": 0.1}),
    "priorities": ("threshold", {"enable_priority_scheduling": True}),
    "everything": (
        "threshold", {"enable_priority_scheduling": True, "slots": 500, "schedule_conservativeness": 0.1, "disable_overlap_schedule": False,
                      "chunked_prefill_size": 64},
    ),
}  # fmt: skip


@needs_sglang
@pytest.mark.parametrize("mode", SGLANG)
def test_sglang(mode):
    options, settings = SGLANG[mode]
    play = PlaySglang(mode, options, **settings)
    play.play(OPERATIONS)
    play.end()
    assert play.rejected and play.retractions


# -- the ways in which SGLang lets go of a request that ran ----------------------------------------------------------------


def turned_away(scheduler, driver):
    """The queue is full when it is retracted."""
    return [retract(scheduler)]


def pushed_out(scheduler, driver):
    """A better one takes its place in the queue."""
    victim = retract(scheduler)
    driver.add(make_request("better.", prompt(9, 9), 3, priority=40))
    return [victim]


def expired(scheduler, driver):
    """It has waited too long for its return."""
    victim = retract(scheduler)
    with envs.SGLANG_REQ_WAITING_TIMEOUT.override(1e-9):
        driver.step()
    return [victim]


def aborted(scheduler, driver):
    """Its client leaves before its return."""
    victim = retract(scheduler)
    scheduler.abort_request(AbortReq(rid=victim.rid))
    return [victim]


def preempted(scheduler, driver):
    """Better ones take its place in the batch, and the queue is full."""
    ran = list(scheduler.running_batch.reqs)
    for n in range(3):
        driver.add(make_request(f"better.{n}", prompt(9, n), 3, priority=40))
    most, scheduler.max_queued_requests = scheduler.max_queued_requests, 1
    driver.step()
    scheduler.max_queued_requests = most
    return [request for request in ran if request.is_retracted]


def all_retracted(scheduler, driver):
    """New weights are loaded while the queue is nearly full."""
    ran = list(scheduler.running_batch.reqs)
    scheduler.pause_generation(SimpleNamespace(mode="retract"))
    scheduler.continue_generation(SimpleNamespace(torch_empty_cache=False))
    return ran


WAYS = {
    turned_away: {"queued": 4}, pushed_out: {"queued": 5, "enable_priority_scheduling": True}, expired: {}, aborted: {},
    preempted: {"queued": 7, "max_running_requests": 4, "enable_priority_scheduling": True}, all_retracted: {"queued": 6},
}  # fmt: skip


@needs_sglang
@pytest.mark.parametrize("overlap", [False, True], ids=["", "overlap"])
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_request_that_ran_and_never_returns_leaves_no_ghost(way, overlap):
    settings = {"max_running_requests": 8, **WAYS[way], "disable_overlap_schedule": not overlap}
    scheduler, driver, rejected = sglang("threshold", **settings)
    priority = {"priority": 0} if scheduler.enable_priority_scheduling else {}
    everyone = weakref.WeakSet()
    for cycle in range(3):
        driver.add(*(make_request(f"{cycle}.{n}", prompt(cycle, n), 30, **priority) for n in range(4)))
        for _ in range(4):
            driver.step()
        driver.add(*(make_request(f"{cycle}.w{n}", prompt(cycle + 50, 50 + n), 3, **priority) for n in range(4)))
        everyone.update(driver.requests)
        victims = way(scheduler, driver)
        assert victims and {request.rid for request in victims} & rejected
        driver.run()
    forgotten(scheduler)
    scheduler.max_queued_requests = None
    stops, fresh = scheduler.policy.admission.stops, Driver(scheduler)
    fresh.add(*(make_request(f"{group}.n{n}", prompt(100 + group, n), 12, **priority) for n in range(4) for group in range(4)))
    fresh.run()
    assert all(len({id_.split(".")[0] for id_ in batch}) == 1 for batch in fresh.decodes)
    assert scheduler.policy.admission.stops > stops or scheduler.max_running_requests == 4, "stops as before (a full batch needs none)"
    forgotten(scheduler)
    del driver, fresh, victims
    scheduler.result_queue = scheduler.last_batch = scheduler.cur_batch = scheduler.adder = scheduler.can_run_list = None
    scheduler.running_batch.reqs.clear()
    gc.collect()
    assert not everyone, "nor does anything of Feather's keep it alive"

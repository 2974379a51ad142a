"""Whatever vLLM's own scheduler accepts works unchanged under Feather: each feature that meets the waiting queue, without a model.

Preemption, aborts, cache reset, colliding hashes, faults and fairness are in test_scheduler.py. What these tests cannot tell,
because it takes a GPU or several machines: async scheduling inside an engine (the CPU platform turns it off; here
``AsyncScheduler`` is driven two schedules deep), real KV transfers, multimodal encoders, and data-parallel engines that
wait for each other.
"""

import random
from concurrent.futures import Future

import pytest
import torch
from modelless import Driver, Grammar, abort, make_request, make_scheduler
from vllm.config import KVTransferConfig
from vllm.lora.request import LoRARequest
from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange
from vllm.pooling_params import PoolingParams
from vllm.sampling_params import StructuredOutputsParams
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.outputs import DraftTokenIds, KVConnectorOutput
from vllm.v1.request import RequestStatus

from feather.vllm import FeatherScheduler
from feather.vllm.prefix import prefix_path

THRESHOLD = {"policy": "lab.policies.Threshold", "chunk_size": 32, "min_batch": 2, "max_loss": 0, "max_loss_under_load": 0}
NEVER_STOP = {"policy": "never_stop", "chunk_size": 32}

pytestmark = [
    pytest.mark.parametrize("options", [THRESHOLD, NEVER_STOP], ids=["threshold", "never_stop"]),
    pytest.mark.parametrize("depth", [1, 2], ids=["sync", "two deep"]),
]


def prompt(group, number, length=128):
    rng = random.Random(group)
    return [rng.randrange(10, 9999) for _ in range(length)] + [10_000 + number] * 5


def fill(scheduler, groups=3, each=4, length=128, **args):
    """Requests "group.number" with 2 … 9 tokens to decode, the groups in turns."""
    return [
        make_request(scheduler, f"{group}.{number}", prompt(group, number, length), 2 + (3 * group + number) % 8, **args)
        for number in range(each)
        for group in range(groups)
    ]


def check(driver, requests, gone=()):
    """Everybody but ``gone`` has finished once, with all tokens, and Feather holds nothing of anybody."""
    stayed = [request for request in requests if request.request_id not in gone]
    assert sorted(id_ for id_ in driver.finished if id_ not in gone) == sorted(request.request_id for request in stayed)
    assert all(driver.tokens[request.request_id] == request.max_tokens for request in stayed)
    scheduler = driver.scheduler
    assert scheduler.fallback is None and not scheduler.requests
    scheduler.waiting.reconcile()
    assert not scheduler.waiting.former.running and not scheduler.waiting.former.tree._nodes
    assert not scheduler.waiting.admission.aside and not scheduler.waiting.admission.running and not scheduler.waiting.admission.waiting


@pytest.mark.parametrize("caching", [True, False], ids=["prefix caching", "none"])
def test_long_prompts_are_prefilled_in_chunks(tmp_path, options, depth, caching):
    scheduler = make_scheduler(FeatherScheduler, tmp_path, max_tokens=200, feather=options, enable_prefix_caching=caching)
    driver, requests = Driver(scheduler, depth), fill(scheduler, length=512)
    driver.add(*requests)
    driver.run()
    check(driver, requests)
    assert sum("0.0" in batch for batch in driver.batches) >= requests[0].max_tokens + 2, "517 tokens are three chunks"
    assert (driver.cached_tokens > 0) is caching


@pytest.mark.parametrize("state", [PauseState.PAUSED_NEW, PauseState.PAUSED_ALL], ids=lambda state: state.name)
def test_pausing_admits_nobody_and_resuming_goes_on(tmp_path, options, depth, state):
    scheduler = make_scheduler(FeatherScheduler, tmp_path, feather=options)
    driver, requests = Driver(scheduler, depth), fill(scheduler, each=6)
    driver.add(*requests[:9])
    driver.step()
    running = {request.request_id for request in scheduler.running}
    scheduler.set_pause_state(state)
    driver.add(*requests[9:])
    for _ in range(15):
        driver.step()
    seen = {id_ for batch in driver.batches for id_ in batch}
    assert seen == running and (set(driver.finished) == running) is (state is PauseState.PAUSED_NEW)
    scheduler.set_pause_state(PauseState.UNPAUSED)
    driver.run()
    check(driver, requests)


def test_the_cache_can_be_reset_while_requests_wait_and_run(tmp_path, options, depth):
    scheduler = make_scheduler(FeatherScheduler, tmp_path, feather=options)
    driver, requests = Driver(scheduler, depth), fill(scheduler, each=6)
    driver.add(*requests)
    for _ in range(3):
        for _ in range(2):
            driver.step()
        while driver.in_flight:
            driver.deliver()
        assert scheduler.reset_prefix_cache(reset_running_requests=True)
    driver.run()
    check(driver, requests)


def test_adapters_beyond_max_loras_wait_and_no_batch_holds_more(tmp_path, options, depth):
    scheduler = make_scheduler(FeatherScheduler, tmp_path, feather=options, enable_lora=True, max_loras=1, max_lora_rank=8)
    driver, requests = Driver(scheduler, depth), []
    for number in range(15):
        adapter = LoRARequest(f"adapter {number % 3}", number % 3 + 1, "/adapters") if number % 5 else None
        requests.append(make_request(scheduler, str(number), prompt(0, number), 3, lora_request=adapter))
    driver.add(*requests)
    driver.step()
    deferred = next(request for request in requests if request.lora_request and request not in scheduler.running)
    abort(scheduler, deferred.request_id)
    driver.run()
    adapters = {request.request_id: request.lora_request.lora_name for request in requests if request.lora_request}
    assert max(len({adapters[id_] for id_ in batch if id_ in adapters}) for batch in driver.batches) == 1
    check(driver, requests, gone={deferred.request_id})


def test_structured_output_waits_for_its_grammar_and_holds_up_nobody(tmp_path, options, depth):
    scheduler = make_scheduler(FeatherScheduler, tmp_path, feather=options)
    driver, requests = Driver(scheduler, depth), fill(scheduler)
    structured = [
        make_request(scheduler, f"0.{n}", prompt(0, n), 3, structured_outputs=StructuredOutputsParams(regex="a*")) for n in (8, 9)
    ]
    for request in structured:
        request.structured_output_request.grammar = Future()
    driver.add(*structured, *requests)
    for _ in range(60):
        driver.step()
    assert sorted(driver.finished) == sorted(request.request_id for request in requests)
    abort(scheduler, "0.9")
    structured[0].structured_output_request._grammar.set_result(Grammar())
    driver.run()
    check(driver, [*requests, *structured], gone={"0.9"})


class Speculating(Driver):
    """Three tokens are drafted for every request, and 0 … 3 of them accepted."""

    accepted = 0

    def sample(self, request, output):
        drafted = len(output.scheduled_spec_decode_tokens.get(request.request_id, ()))
        kept = self.accepted % (drafted + 1)
        self.accepted += 1
        return [7] * (kept + 1)

    def deliver(self):
        ids = list(self.in_flight[0].num_scheduled_tokens)
        super().deliver()
        if self.depth == 1:
            self.scheduler.update_draft_token_ids(DraftTokenIds(ids, [[7, 7, 7] for _ in ids]))


def test_speculative_tokens_from_n_grams(tmp_path, options, depth):
    """Two deep, the scheduler holds places for drafts that it does not know yet, as with drafts made on a GPU."""
    drafts = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 2}
    scheduler = make_scheduler(FeatherScheduler, tmp_path, feather=options, speculative_config=drafts)
    driver, requests = Speculating(scheduler, depth), fill(scheduler, each=6)
    driver.add(*requests)
    driver.run()
    assert driver.accepted < sum(request.max_tokens for request in requests), "no draft was ever accepted"
    check(driver, requests)


class Pooling(Driver):
    def sample(self, request, output):
        return []

    def complete(self, result):
        result.pooler_output = [torch.zeros(1) if id_ in self.scheduler.requests and self.through(id_) else None for id_ in result.req_ids]

    def through(self, id_):
        request = self.scheduler.requests[id_]
        return request.num_computed_tokens >= request.num_prompt_tokens


def test_pooling_requests_finish_with_their_prefill(tmp_path, options, depth):
    scheduler = make_scheduler(FeatherScheduler, tmp_path, feather=options, runner="pooling", convert="embed")
    driver = Pooling(scheduler, depth)
    driver.add(*fill(scheduler, each=6, length=300, pooling_params=PoolingParams(task="embed")))
    driver.run()
    assert len(driver.finished) == len(set(driver.finished)) == 18 and scheduler.fallback is None
    scheduler.waiting.reconcile()
    assert not scheduler.waiting.former.tree._nodes


class Loading(Driver):
    """The KV of one waiting request a step has arrived."""

    def complete(self, result):
        loading = [r.request_id for r in self.scheduler.requests.values() if r.status == RequestStatus.WAITING_FOR_REMOTE_KVS]
        arrived = [id_ for id_ in loading if id_ not in self.scheduler.finished_recving_kv_req_ids][:1]
        result.kv_connector_output = KVConnectorOutput(finished_recving=set(arrived))


def test_requests_whose_kv_is_loaded_from_elsewhere_are_kept_account_of(tmp_path, options, depth):
    connector = KVTransferConfig(kv_connector="Loader", kv_connector_module_path="connector", kv_role="kv_both")
    scheduler = make_scheduler(
        FeatherScheduler, tmp_path, feather=options, kv_transfer_config=connector, disable_hybrid_kv_cache_manager=True
    )
    driver, requests = Loading(scheduler, depth), fill(scheduler)
    driver.add(*requests)
    driver.step()
    believed = scheduler.waiting.former
    for _ in range(4):
        driver.step()
        scheduler.waiting.reconcile()
        assert believed.running == {request.request_id for request in scheduler.running}
    driver.run()
    check(driver, requests)


def test_data_parallel_ranks_are_schedulers_of_their_own(tmp_path, options, depth):
    """Each forms its batches alone, through idle steps and while its prefills are throttled in favour of another rank's."""
    ranks = [make_scheduler(FeatherScheduler, tmp_path, feather=options, data_parallel_size=2) for _ in range(2)]
    drivers = [Driver(scheduler, depth) for scheduler in ranks]
    requests = [fill(scheduler, groups=2 + rank, each=3 + 4 * rank) for rank, scheduler in enumerate(ranks)]
    for driver, own in zip(drivers, requests):
        driver.add(*own)
    for step in range(500):
        for driver in drivers:
            driver.step(throttle_prefills=step % 3 != 0)
        if not any(scheduler.has_unfinished_requests() for scheduler in ranks):
            break
    for driver, own in zip(drivers, requests):
        driver.run()
        check(driver, own)


@pytest.mark.parametrize("caching", [True, False], ids=["vLLM's block hashes", "from tokens"])
def test_images_salts_and_adapters_are_part_of_the_prefix(tmp_path, options, depth, caching):
    """Where prefix caching is on the keys come with vLLM's own block hashes, else Feather mixes them in."""
    scheduler = make_scheduler(FeatherScheduler, tmp_path, feather=options, enable_prefix_caching=caching)

    def path(**arguments):
        return list(prefix_path(make_request(scheduler, "r", range(10, 138), **arguments), 32, 16))

    def image(name):
        place = PlaceholderRange(offset=40, length=4)
        return [MultiModalFeatureSpec(data=None, modality="image", identifier=name, mm_position=place)]

    plain, cat, dog = path(), path(mm_features=image("cat")), path(mm_features=image("dog"))
    assert plain == path() and cat[0] == dog[0] == plain[0] and len({cat[1], dog[1], plain[1]}) == 3
    others = [path(cache_salt="one"), path(cache_salt="two"), path(lora_request=LoRARequest("adapter", 1, "/adapters"))]
    assert len({other[0] for other in (plain, *others)}) == 4


@pytest.mark.parametrize("seed", range(5))
def test_a_stop_never_holds_back_a_better_priority(tmp_path, options, depth, seed):
    """After every step: whoever still waits, although rows and tokens were left, is no better than anybody who runs."""
    options = {**options, **({"min_batch": 1} if "min_batch" in options else {})}
    scheduler = make_scheduler(FeatherScheduler, tmp_path, max_num_seqs=12, feather=options, scheduling_policy="priority")
    driver, rng, requests, stops = Driver(scheduler, depth), random.Random(seed), [], 0
    for number in range(60):
        priority = 2 if rng.random() < 0.9 else rng.randrange(2)
        request = make_request(scheduler, str(number), prompt(rng.randrange(3), number), rng.randint(1, 20), priority=priority)
        requests.append(request)
        driver.add(request)
        for _ in range(2):
            output = scheduler.schedule()
            if len(scheduler.running) < 12 and output.total_num_scheduled_tokens < 512 and len(scheduler.waiting):
                stops += 1
                assert min(r.priority for r in scheduler.waiting) >= max(r.priority for r in scheduler.running)
            driver.in_flight.append(output)
            if len(driver.in_flight) == depth:
                driver.deliver()
    assert (stops > 0) is (options["policy"] == "lab.policies.Threshold")
    driver.run()
    check(driver, requests)


@pytest.mark.parametrize("seed", range(10))
def test_everything_at_once(tmp_path, options, depth, seed):
    """Arrivals, aborts, pauses, resets, preemption and deferrals in any order lose nobody."""
    rng = random.Random(seed)
    scheduler = make_scheduler(
        FeatherScheduler, tmp_path, blocks=60, max_tokens=256, feather=options, enable_lora=True, max_loras=1, max_lora_rank=8,
        scheduling_policy=rng.choice(["fcfs", "priority"]), enable_prefix_caching=rng.random() < 0.7,
    )  # fmt: skip
    driver, requests, aborted = Driver(scheduler, depth), [], set()
    for number in range(60):
        adapter = rng.randrange(1, 3)
        request = make_request(
            scheduler, str(number), prompt(rng.randrange(4), number, rng.choice([0, 40, 128, 300])), rng.randint(1, 30),
            priority=rng.randrange(3), cache_salt=rng.choice([None, "salt"]),
            lora_request=LoRARequest(f"adapter {adapter}", adapter, "/adapters") if rng.random() < 0.5 else None,
        )  # fmt: skip
        requests.append(request)
        driver.add(request)
        if rng.random() < 0.2 and scheduler.requests:
            aborted.add(victim := rng.choice(list(scheduler.requests)))
            abort(scheduler, victim)
        if rng.random() < 0.1:
            scheduler.set_pause_state(rng.choice(list(PauseState)))
        if rng.random() < 0.05:
            while driver.in_flight:
                driver.deliver()
            scheduler.reset_prefix_cache(reset_running_requests=True)
        for _ in range(rng.randrange(3)):
            driver.step()
    scheduler.set_pause_state(PauseState.UNPAUSED)
    driver.run(5000)
    check(driver, requests, gone=aborted)
